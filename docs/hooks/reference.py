"""The reference, made from the code when the site is built: commands, config keys, recipes, Python names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from links import recipe_anchor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import chameleon_jax
import chameleon_jax.training
import data_pipeline
from chameleon_jax import config as configs
from chameleon_jax.config.docstrings import field_docs
from chameleon_jax.console.arguments import Command, CommonOptions, is_positional
from chameleon_jax.console.cli import COMMANDS, SHELLS, main
from data_pipeline.config import SourceConfig
from data_pipeline.sources.source import _KINDS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

MODULES = {
    "generation": (
        "The engine that generates, and its parts. [How it works](../generation.md).",
        ("engine", "handle", "events", "stream", "answer", "options", "memory", "sampling", "guidance", "modality",
         "jacobi"),
    ),
    "models": (
        "Pure Flax Linen modules and functions, which need only jax and flax.",
        ("transformer", "attention", "attention_mask", "decoding", "vq", "discriminator", "perceptual", "inception",
         "lora", "flops"),
    ),
    "tokens": (
        "Documents to ids and back.",
        ("vocabulary", "documents", "chat", "text", "image"),
    ),
    "weights": (
        "Reading and writing the released formats. [What can be read and written](../formats.md).",
        ("formats", "checkpoint", "layout", "image_tokenizer", "adapters", "hub"),
    ),
}  # fmt: skip
"""Modules of `chameleon_jax` whose public names are documented, by page, with what is said first."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"commands": commands(), "keys": keys(), "recipes": recipes(), **python_pages()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


# Commands.


def commands() -> str:
    parts = [
        "# Commands",
        "This page says what `chameleon COMMAND --help-all` says. Keys of a command are those of its YAML file; all of "
        "them can also be given on the command line, as in `--optimizer.learning-rate 3e-4`, with - or _ in their "
        "names. [Recipes](recipes.md) that come with the package go by their names.",
        "| | |\n|---|---|\n" + "\n".join(
            f"| [{name}](#chameleon-{_slug(name)}) | {command.summary} |"
            for name, command in COMMANDS.items() if command.listed
        ),
        "## Options of every command",
        _definitions(_fields(CommonOptions)),
        *(_command(command) for command in COMMANDS.values() if command.listed),
        f"## chameleon completion\n\nPrints the completion script for {', '.join(SHELLS)}.\n\n"
        '```sh\neval "$(chameleon completion bash)"\n```',
        "## Exit status\n\n" + inspect.getdoc(main).partition("\n\n")[2],
    ]  # fmt: skip
    return "\n\n".join(parts)


def _command(command: Command) -> str:
    has_keys = bool(dataclasses.fields(command.config))
    usage = f"chameleon {command.name} {command.usage}".rstrip() + (" [--key value …]" if has_keys else "")
    parts = [f"## chameleon {command.name}", f"{command.summary[0].upper()}{command.summary[1:]}.", f"    {usage}"]
    if command.example:
        parts.append(f"Example: `{command.example}`")
    if fields := _fields(command.arguments):
        parts.append(_definitions(fields))
    if command.options:
        parts.append("On the command line alone, keys of " + _link(command.options, "keys.md") + ".")
    if has_keys:
        parts.append("Keys: " + _link(command.config, "keys.md") + ".")
    if command.configs:
        links = (
            f"[{name}](recipes.md#{recipe_anchor(path.relative_to(CONFIGS.parent))})"
            for name, path in command.shipped().items()
        )
        parts.append(f"Recipes: {', '.join(links)}.")
    return "\n\n".join(parts)


def _fields(cls: type) -> list[tuple[str, str]]:
    docs = _docs(cls)
    return [
        (f"`{each.name.upper()}`" if is_positional(cls, each.name) else f"`--{each.name.replace('_', '-')}`",
         _escaped(docs.get(each.name, "")))
        for each in dataclasses.fields(cls)
    ]  # fmt: skip


# Config keys.


def keys() -> str:
    parts = [
        "# Config keys",
        "Every key of every YAML file, and so of every command line, with its type and default. Nested mappings are "
        "written with dots: `optimizer.learning_rate`. From Python they are the fields of frozen dataclasses, in "
        "`chameleon_jax.config` and `data_pipeline`.",
    ]
    users: dict[type, list[str]] = {}
    for command in COMMANDS.values():
        for cls in filter(None, (command.config, command.options)):
            if command.listed:
                users.setdefault(cls, []).append(
                    f"[chameleon {command.name}](commands.md#{_slug(f'chameleon {command.name}')})"
                )
    for cls in config_classes():
        parts.append(f"## {cls.__name__} {{ #{cls.__name__.lower()} }}")
        parts.append(_escaped(_said(cls)))
        if cls in users:
            parts.append(f"Keys of {', '.join(users[cls])}.")
        inherited = {each.name for each in dataclasses.fields(SourceConfig)} if cls in _KINDS.values() else set()
        if inherited:
            parts.append("Besides the keys of " + _link(SourceConfig) + ":")
        parts.append(_definitions(_keys(cls, inherited)) or "None of its own.")
    return "\n\n".join(parts)


def config_classes() -> list[type]:
    """All config classes that commands read, those of commands first, then what is nested in them."""
    found = dict.fromkeys(
        cls for command in COMMANDS.values() if command.listed
        for cls in (command.config, command.options) if cls and dataclasses.fields(cls)
    )  # fmt: skip
    waiting = list(found)
    while waiting:
        cls = waiting.pop(0)
        inner = [each for hint in typing.get_type_hints(cls).values() for each in _nested(hint)]
        for each in inner + (list(_KINDS.values()) if cls is SourceConfig else []):
            if each not in found:
                found[each] = None
                waiting.append(each)
    return list(found)


def _nested(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for each in typing.get_args(hint) if typing.get_origin(hint) is not Literal else ():
        yield from _nested(each)


def _keys(cls: type, without: set[str]) -> Iterator[tuple[str, str]]:
    docs, hints = _docs(cls), typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if each.name in without and each.name != "kind":
            continue
        text = docs.get(each.name, "")
        if not text and dataclasses.is_dataclass(hints[each.name]):
            text = re.split(r"(?<=\.)\s", _said(hints[each.name]))[0]
        yield f"`{each.name}`: {_type(hints[each.name])}{_default(each)}", _escaped(text)


def _said(cls: type) -> str:
    """The docstring of a config, without its fields."""
    return (cls.__doc__ or "").partition("Attributes:")[0].strip()


def _type(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping of names to {_type(inner[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(each) for each in inner)
    if dataclasses.is_dataclass(hint):
        return _link(hint)
    return {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}.get(
        hint, "mapping"
    )


def _default(field: dataclasses.Field) -> str:
    """The default of a key as YAML has it. Of a nested config, what differs from its own defaults."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return ""
    if dataclasses.is_dataclass(value):
        value = {
            each.name: getattr(value, each.name) for each in dataclasses.fields(value)
            if each.default is not dataclasses.MISSING and getattr(value, each.name) != each.default
        }  # fmt: skip
        if not value:
            return ""
    return f", default `{json.dumps(value, ensure_ascii=False, default=dataclasses.asdict)}`"


# Recipes.


def recipes() -> str:
    parts = [
        "# Recipes",
        "The YAML files that come with the package, in `configs/`. Comments say where each number is from.",
    ]
    for folder in (CONFIGS, *(path for path in sorted(CONFIGS.rglob("*")) if path.is_dir())):
        for path in sorted(folder.glob("*.yaml")):
            anchor = recipe_anchor(path.relative_to(CONFIGS.parent))
            text = path.read_text(encoding="utf-8").rstrip()
            parts.append(f"## {path.relative_to(CONFIGS)} {{ #{anchor} }}\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts)


# Python names.


def python_pages() -> dict[str, str]:
    """Pages of the public names of the packages, by name. Each name is documented once."""
    pages = {}
    for name, (summary, modules) in MODULES.items():
        pages[name] = "\n\n".join((
            f"# chameleon_jax.{name}", summary, *(_module(f"chameleon_jax.{name}.{each}") for each in modules)
        ))  # fmt: skip
    first = _on_first_page()
    others = sorted(each for each in _public(chameleon_jax) if each not in first)
    pages["chameleon_jax"] = "\n\n".join((
        "# chameleon_jax",
        "The names for using a model; `import chameleon_jax` needs only jax, flax, optax and numpy, and is quick.",
        f"On other pages: {', '.join(_reference(*each) for each in others)}.",
        *(_object(home, name) for name, home in first),
    ))  # fmt: skip
    pages["training"], pages["data_pipeline"] = _package(chameleon_jax.training), _package(data_pipeline)
    functions = [name for name in configs.__all__ if isinstance(getattr(configs, name), types.FunctionType)]
    classes = [getattr(configs, name) for name in configs.__all__ if dataclasses.is_dataclass(getattr(configs, name))]
    known = config_classes()
    pages["config"] = "\n\n".join((
        "# chameleon_jax.config",
        (configs.__doc__ or "").strip(),
        f"Classes, with their fields: {', '.join(_link(cls, 'keys.md') for cls in classes if cls in known)}.",
        *(_object(cls.__module__, cls.__name__) for cls in classes if cls not in known),
        *(_object(getattr(configs, name).__module__, name) for name in functions),
    ))  # fmt: skip
    return pages


def _on_first_page() -> list[tuple[str, str]]:
    """Public names of `chameleon_jax` that have no page of a package of their own, and the modules that define them."""
    packages = {f"chameleon_jax.{name}" for name in (*MODULES, "config", "training")}
    return [(name, home) for name, home in _public(chameleon_jax) if ".".join(home.split(".")[:2]) not in packages]


def _public(package: types.ModuleType) -> list[tuple[str, str]]:
    """The public names of a package, and the modules that define them."""
    return [(name, home) for home, names in package.HOMES.items() for name in names]


def _package(package: types.ModuleType) -> str:
    """The public names of a package. Configs are on their own page, and some names on that of `chameleon_jax`."""
    public, known = _public(package), config_classes()
    keyed = [getattr(package, name) for name, _ in public if getattr(package, name) in known]
    links = ", ".join(_link(cls, "keys.md") for cls in keyed)
    return "\n\n".join((
        f"# {package.__name__}",
        (package.__doc__ or "").strip(),
        f"Configs, with their fields: {links}." if keyed else "",
        *(_object(home, name) for name, home in public
          if getattr(package, name) not in keyed and (name, home) not in _on_first_page()),
    ))  # fmt: skip


def _module(path: str) -> str:
    """A module's own text, and each public function and class that it defines."""
    module = importlib.import_module(path)
    names = [
        name for name, value in vars(module).items()
        if isinstance(value, types.FunctionType | type) and value.__module__ == path and not name.startswith("_")
    ]  # fmt: skip
    return "\n\n".join((
        f"## {path.removeprefix('chameleon_jax.')} {{ #module-{path} }}",
        _escaped((module.__doc__ or "").strip()),
        *(_object(path, name, 3) for name in names),
    ))  # fmt: skip


def _object(home: str, name: str, level: int = 2) -> str:
    return f"::: {home}.{name}\n    options:\n      heading_level: {level}"


def _reference(name: str, home: str) -> str:
    if home.startswith("chameleon_jax.config"):
        value = getattr(configs, name)
        return _link(value, "keys.md") if value in config_classes() else f"[`{name}`][{value.__module__}.{name}]"
    return f"[`{name}`][{home}.{name}]"


# Markdown.


def _docs(cls: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and its bases."""
    return {name: text for base in reversed(cls.__mro__) for name, text in field_docs(base).items()}


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with their texts; one that has no text is a paragraph."""
    return "\n\n".join(
        f"{name}\n:   {' '.join(text.split())}" if text else f"{name}\n{{ .key }}" for name, text in pairs
    )


def _link(cls: type, page: str = "") -> str:
    return f"[`{cls.__name__}`]({page}#{cls.__name__.lower()})"


def _slug(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text.lower())


def _escaped(text: str) -> str:
    """A docstring as Markdown: what is no code keeps its <, * and brackets."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*\[\]])", r"\\\1", part.replace("<", "&lt;")) for part in parts
    )
