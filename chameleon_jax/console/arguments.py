"""Parses the arguments of `chameleon COMMAND` with tyro, and merges them with the command's YAML file.

A config may have hundreds of keys, and those of its lists depend on a file that is itself an argument. So tyro is only
given the keys that occur on the command line, and returns their values as text. Types and values are checked by the
same code as those of YAML files (`chameleon_jax.config.reading`), so that errors are the same in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import tyro
from tyro.conf import Positional, PositionalMetavarFromFieldName, arg

from chameleon_jax.config import ConfigError, find_configs, read_config
from chameleon_jax.config.reading import find_key, parse_value, require, shortened

_OPTION = re.compile(r"--[^\W\d][\w.-]*(=|$)", re.ASCII)
"""An option. Prompts that merely begin with dashes, such as "--- a/file.py" and "-5 degrees", do not match."""
_FLAGS = ("-q", "-v")
_VERBATIM = "\0"
"""Prefix of words that tyro would otherwise read as options. No command line can contain this character."""

RECIPES = ("demo", "shapes", "showcase", "showcase_gpu")
"""Folders in configs/ with one YAML file per command."""


def recipes(file: str) -> tuple[str, ...]:
    """Paths of the YAML files with this name in the folders of recipes, relative to configs/."""
    return tuple(f"{folder}/{file}.yaml" for folder in RECIPES)


@dataclass(frozen=True)
class NoArguments:
    """A command whose arguments are all keys of its config."""


@dataclass(frozen=True)
class ConfigFile:
    """A command that requires a YAML file."""

    config: Positional[str]
    """A YAML file, or the name of one in configs/"""


@dataclass(frozen=True)
class OptionalConfigFile:
    """A command that accepts a YAML file."""

    config: Positional[str] = ""
    """A YAML file"""


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command."""

    quiet: Annotated[bool, arg(aliases=("-q",))] = False
    """Print results, warnings and errors, but no progress."""
    verbose: Annotated[bool, arg(aliases=("-v",))] = False
    """Print log messages of libraries, and tracebacks of errors."""
    compilation_cache: str = ""
    """Folder where compiled programs are cached; 'none' disables the cache. Default: JAX_COMPILATION_CACHE_DIR, or else
    chameleon_jax/compiled in the user's cache folder, except for commands that measure compilation."""


@dataclass(frozen=True)
class Command:
    name: str
    summary: str
    config: type
    run: str
    """A function in `chameleon_jax`, as "module:name". It is called with the config, that of `options` if there is one,
    and the fields of `arguments` as keywords, and returns results to print."""
    arguments: type = NoArguments
    """A dataclass of arguments that are not keys of the config. Its fields are strings, tuples of strings, or flags."""
    options: type | None = None
    """A second config whose keys are only accepted on the command line."""
    example: str = ""
    configs: tuple[str, ...] = ()
    """Patterns of the YAML files in configs/ that may be given by name."""
    json: bool = False
    """Print the results as JSON."""
    keeps_programs: bool = False
    """Use JAX's compilation cache by default. Commands that measure compilation do not."""
    then: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    """Commands that may be run next, with `{output}` for that of the config; or a function that returns them for it."""
    listed: bool = True
    """Whether `chameleon --help` names it. Older names of commands go on working without."""

    @property
    def usage(self) -> str:
        """The positional arguments, as in "MODEL [PROMPT]"."""
        fields = [each for each in dataclasses.fields(self.arguments) if is_positional(self.arguments, each.name)]
        names = ((each.name.upper(), each.default is dataclasses.MISSING) for each in fields)
        return " ".join(name if is_required else f"[{name}]" for name, is_required in names)

    def shipped(self) -> dict[str, Path]:
        """The YAML files in configs/ by name; those in a folder of recipes have the name of the folder."""
        root = find_configs()
        files = sorted(path for pattern in self.configs for path in root.glob(pattern))
        return {path.parent.name if path.parent.name in RECIPES else path.stem: path for path in files}

    def find_file(self, given: str) -> str | Path:
        """The YAML file that `given` refers to, a path or a name.

        Raises:
          ConfigError: if it is neither a path nor the name of a file in configs/.
        """
        if given.endswith((".yaml", ".yml")) or "/" in given:
            shipped_file = find_configs().parent / given  # configs/… works from any folder
            return shipped_file if given.startswith("configs/") and not Path(given).exists() else given
        shipped = self.shipped()
        nearest = difflib.get_close_matches(given, shipped, n=1)
        names = f" or one of {', '.join(shipped)}" if shipped else ""
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        require(given in shipped, "CONFIG", given, f"must be a YAML file{names}{hint}")
        return shipped[given]


def is_positional(cls: type, name: str) -> bool:
    """Whether a field of a command's arguments is positional."""
    return Positional in getattr(typing.get_type_hints(cls, include_extras=True)[name], "__metadata__", ())


class Parsed(NamedTuple):
    """A parsed command line."""

    config: Any
    options: Any
    arguments: dict[str, Any]
    common: CommonOptions


class _Key(NamedTuple):
    owner: type
    """The config that has the key."""
    path: str
    hint: Any


def parse(command: Command, words: list[str]) -> Parsed:
    """Parses the words after a command.

    Raises:
      ConfigError: for the first mistake, in one line.
    """
    words, keys = _mentioned_keys(command, words)
    texts = {name: tuple[str, ...] if _is_list(key.hint) else str for name, key in keys.items()}
    kind = make_dataclass("Arguments", [
        ("arguments", Annotated[command.arguments, arg(name="")]),
        ("common", Annotated[CommonOptions, arg(name="")]),
        ("texts", Annotated[TypedDict("Texts", texts, total=False), arg(name="")]),
    ])  # fmt: skip
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            given, left = tyro.cli(
                kind, args=words, return_unknown_args=True, add_help=False, prog=f"chameleon {command.name}",
                config=(PositionalMetavarFromFieldName,),
            )  # fmt: skip
    except SystemExit:
        raise _one_line_error(command, printed.getvalue()) from None
    if left:
        raise ConfigError(
            f"{shortened(_unescape(left[0]))}: is one argument too many; expected {command.usage or 'only options'}"
        )
    overrides: dict[type, dict[str, Any]] = {command.config: {}, command.options: {}}
    for name, text in given.texts.items():
        key = keys[name]
        try:
            overrides[key.owner][key.path] = parse_value(key.hint, _unescape(text))
        except ConfigError as error:
            raise ConfigError(f"--{name} = {error}") from None
    arguments = {name: _unescape(value) for name, value in vars(given.arguments).items()}
    file = arguments.pop("config", None)
    config = read_config(command.config, command.find_file(file) if file else None, overrides[command.config])
    options = read_config(command.options, None, overrides[command.options]) if command.options else None
    return Parsed(config, options, arguments, given.common)


def _mentioned_keys(command: Command, words: list[str]) -> tuple[list[str], dict[str, _Key]]:
    """The config keys that occur as options in `words`, and `words` rewritten for tyro.

    `--flag` becomes `--flag=true`, as flags may also be given with a value, and words that only begin with a dash are
    escaped.
    """
    own = {field.name for cls in (command.arguments, CommonOptions) for field in dataclasses.fields(cls)}
    written: list[str] = []
    keys: dict[str, _Key] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-o" and rest:
            word = "--output"
        if word == "--":
            return [*written, word, *rest], keys
        name, equals, value = word.removeprefix("--").partition("=")
        if not _OPTION.match(word):
            written.append(_VERBATIM + word if word.startswith("-") and word not in _FLAGS else word)
            continue
        if name.replace("-", "_") in own:
            written.append(word)
            continue
        key, negated = _find(command, name)
        if key.hint is bool and not equals:
            value = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else str(not negated).lower()
            name, equals = key.path, "="
        keys[name.replace("-", "_")] = key
        written.append(f"--{name}{equals}{value}")
    return written, keys


def _unescape(value: Any) -> Any:
    """A string, or a tuple of strings, as typed."""
    if isinstance(value, tuple):
        return tuple(map(_unescape, value))
    return value.removeprefix(_VERBATIM) if isinstance(value, str) else value


def _find(command: Command, name: str) -> tuple[_Key, bool]:
    """The key that an option names, and whether it is negated as in `--no-flag`."""
    owners = [cls for cls in (command.options, command.config) if cls]
    errors = []
    for owner in owners:
        try:
            return _Key(owner, *find_key(owner, name)), False
        except ConfigError as error:
            errors.append(error)
    for owner in owners:
        with contextlib.suppress(ConfigError):
            key = _Key(owner, *find_key(owner, re.sub(r"(^|\.)no[-_](?=[^.]*$)", r"\1", name)))
            if key.hint is bool:
                return key, True
    own = [field.name for cls in (command.arguments, CommonOptions) for field in dataclasses.fields(cls)]
    if nearest := difflib.get_close_matches(name.replace("-", "_"), own, n=1):
        raise ConfigError(f"--{name}: there is no such option; did you mean --{nearest[0].replace('_', '-')}?")
    raise max(errors, key=lambda error: "did you mean" in str(error))


def _is_list(hint: Any) -> bool:
    """Whether values are lists of strings or numbers, which may be given one after another."""
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    return item is not None and (item in (int, float, str) or typing.get_origin(item) is typing.Literal)


def _one_line_error(command: Command, printed: str) -> ConfigError:
    """The error that tyro printed, without its box."""
    words = " ".join(re.sub(r"[─│╭╮╰╯]", " ", printed).split())
    if option := re.search(r"Missing value for argument \W*(--[\w.-]+)", words):
        return ConfigError(f"{option[1]}: a value must follow")
    names = [name for name in command.usage.split() if name.isupper()]
    if missing := [name for name in names if re.search(rf"\b{name}\b|\barguments\.{name.lower()}\b", words)]:
        return ConfigError(f"{missing[0]} is missing; expected {command.usage}, for example {command.example}")
    return ConfigError(words)
