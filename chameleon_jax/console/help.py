"""`--help` on one screen, `--help-all`, and shell completion."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import AvoidSubcommands, OmitSubcommandPrefixes, PositionalMetavarFromFieldName, arg, subcommand

from chameleon_jax.config import find_configs, read_config
from chameleon_jax.config.docstrings import field_docs
from chameleon_jax.console.arguments import Command, CommonOptions, is_positional

_NAMES = 26
"""Width of the column of names in a list of options."""


def short_help(command: Command, file: str | None) -> Iterator[str]:
    """Lines of `--help`: usage, and the first sentence of the documentation of each top-level key.

    Args:
      file: the YAML file whose values are shown; None for the first of the command's, if it has any.
    """
    has_keys = bool(dataclasses.fields(command.config))
    yield f"usage: chameleon {command.name} {command.usage}{' [--key value …]' if has_keys else ''}".rstrip()
    yield f"\n{command.summary[0].upper()}{command.summary[1:]}."
    if command.example:
        yield f"Example: {command.example}"
    arguments, options = [], []
    for cls in filter(None, (command.arguments, command.options, CommonOptions)):
        for each in dataclasses.fields(cls):
            positional = is_positional(cls, each.name)
            rows = arguments if positional else options
            name = each.name.upper() if positional else f"--{each.name.replace('_', '-')}"
            text = _docs(cls)[each.name]
            if each.name == "config" and command.configs:
                text = f"{text}: {', '.join(command.shipped())}"
            rows.append((name, text))
    if arguments:
        yield "\narguments:"
        yield from (_paragraph(*row) for row in arguments)
    yield "\noptions:"
    yield from (_row(*row) for row in options)
    if has_keys:
        yield from _keys(command, file)
    yield f"\nEverything in full: chameleon {command.name} --help-all"


def _keys(command: Command, file: str | None) -> Iterator[str]:
    config, source = _shown_config(command, file)
    docs, groups = _docs(command.config), []
    yield f"\nkeys, with {f'the values of {source}' if source else 'their defaults'}:"
    for each in dataclasses.fields(command.config):
        value = getattr(config, each.name, each.default) if config else each.default
        name = each.name.replace("_", "-")
        if _has_keys(value) or (value is dataclasses.MISSING and dataclasses.is_dataclass(each.type)):
            groups.append(f"--{name}.…")
            continue
        typed = "" if value is dataclasses.MISSING else _typed(value)
        yield _row(f"--{name} {typed}".rstrip(), docs.get(each.name, ""))
    if groups:
        yield textwrap.fill(
            f"and groups: {' '.join(groups)}", _width(), initial_indent="  ", subsequent_indent="    ",
            break_on_hyphens=False,
        )  # fmt: skip


def _docs(cls: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass and its bases."""
    return {name: text for base in reversed(cls.__mro__) for name, text in field_docs(base).items()}


def _has_keys(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or (isinstance(value, tuple) and bool(value) and _has_keys(value[0]))


def _typed(value: Any) -> str:
    """A value as typed on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(_typed, value)) or "[]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return shlex.quote(str(value))


def _width() -> int:
    return max(60, min(shutil.get_terminal_size(fallback=(100, 40)).columns, 120))


def _paragraph(name: str, text: str) -> str:
    first = f"  {name:<{_NAMES}} "
    return textwrap.fill(text, _width(), initial_indent=first, subsequent_indent=" " * (_NAMES + 3))


def _row(name: str, text: str) -> str:
    """One line with a name and as much of the first sentence as fits."""
    sentence = re.split(r"(?<=[.;])\s", text)[0].rstrip(";")
    first = f"  {name:<{_NAMES}} "
    room = _width() - len(first)
    return (first + textwrap.shorten(sentence, room, placeholder=" …") if room > 12 else first).rstrip()


def _shown_config(command: Command, file: str | None) -> tuple[Any, str]:
    """The config whose values are shown, and its file; None if the class's defaults are shown."""
    if not file and command.configs:
        file = next(iter(command.shipped()))
    if not file:
        return None, ""
    path = Path(command.find_file(file))
    root = find_configs()
    return read_config(command.config, path), str(path.relative_to(root.parent) if root in path.parents else path)


def print_full_help(command: Command, file: str | None) -> None:
    """Prints `--help-all`: every key with its type, documentation and value."""
    with contextlib.suppress(SystemExit):
        tyro.cli(
            _all_options(command, file), args=["--help"], prog=f"chameleon {command.name}", description=command.summary,
            config=(PositionalMetavarFromFieldName, AvoidSubcommands),
        )  # fmt: skip
    explained = set()
    for path, text, entry in _empty_lists(command.config, _shown_config(command, file)[0]):
        if entry not in explained:
            explained.add(entry)
            print(textwrap.fill(f"--{path}, a list that is empty here. {text} Keys of each entry:", _width()))
            print(*(_paragraph(name, doc) for name, doc in _docs(entry).items()), "", sep="\n")


def _empty_lists(cls: type, config: Any, path: str = "") -> Iterator[tuple[str, str, type]]:
    """Lists of configs that have no entry of which tyro could show the keys: names, documentation, and the class of
    their entries."""
    docs, hints = _docs(cls), typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        name, hint = f"{path}{each.name.replace('_', '-')}", hints[each.name]
        value = getattr(config, each.name, each.default)
        entry = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
        if dataclasses.is_dataclass(value):
            yield from _empty_lists(type(value), value, f"{name}.")
        elif dataclasses.is_dataclass(entry):
            if value:
                yield from _empty_lists(type(value[0]), value[0], f"{name}.0.")
            else:
                yield name, docs.get(each.name, ""), entry


def _all_options(command: Command, file: str | None = None) -> type:
    """A dataclass of everything that a command accepts. Lists of configs are represented by their first entry."""
    config, _ = _shown_config(command, file)
    default = {}
    if config is not None:
        shown = copy.copy(config)
        for each in dataclasses.fields(config):
            value = getattr(config, each.name)
            if isinstance(value, tuple) and _has_keys(value):
                object.__setattr__(shown, each.name, value[:1])
        default = {"default": shown}
    parts = {"arguments": command.arguments, "common": CommonOptions, "options": command.options}
    return make_dataclass(command.name.replace(" ", "_").replace("-", "_"), [
        *((name, Annotated[part, arg(name="")]) for name, part in parts.items() if part),
        ("config", Annotated[command.config, arg(name="")], field(**default)),
    ])  # fmt: skip


def completion(commands: Iterable[Command], shell: str) -> str:
    """The completion script for a shell."""
    own, groups = {}, {}
    for command in commands:
        group, _, name = command.name.rpartition(" ")
        kind = _all_options(command)
        if group:
            groups.setdefault(group, []).append(Annotated[kind, subcommand(name=name, description=command.summary)])
        else:
            own[command.name] = kind, command.summary
    for group, kinds in groups.items():
        if group in own:  # a command of its own too, such as `compile` beside `compile generate`
            options, summary = own[group]
            rest = [("command", typing.Union[(None, *kinds)], field(default=None))]
            own[group] = make_dataclass(group, rest, bases=(options,)), summary
        else:
            own[group] = make_dataclass(group, [("command", typing.Union[tuple(kinds)])]), ""  # noqa: UP007
    parts = [Annotated[kind, subcommand(name=name, description=summary)] for name, (kind, summary) in own.items()]
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(
            typing.Union[tuple(parts)],  # noqa: UP007
            prog="chameleon", args=["--tyro-write-completion", shell, "-"],
            config=(PositionalMetavarFromFieldName, OmitSubcommandPrefixes),
        )  # fmt: skip
    return script.getvalue()
