"""Strict reading of dataclasses: from YAML, from plain data, from command-line overrides.

A key that does not exist, a value of the wrong type and a combination that cannot work are each one `ConfigError`
line that names the place, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from chameleon_jax.config.docstrings import FieldsInDocstring
from chameleon_jax.errors import ConfigError, FileError, printable
from chameleon_jax.runtime.reading import DEEPEST, LONGEST_NUMBER, read_bytes

T = TypeVar("T")

LARGEST_YAML = 256 << 10
"""Bytes of a YAML file; the longest recipe has 4 KB."""
LARGEST_DOCUMENT = 1 << 20
"""Characters of what it says with every alias written out, and ten more for each value."""
BEYOND_WHOLE_NUMBERS = 2**31
"""Whole numbers are counted in 32 bits on a device, all but seeds (`require_seed`). Sizes have limits of their own."""

_UNIONS = (types.UnionType, typing.Union)  # `int | None` is one, `Literal[…] | None` the other


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises `ConfigError` "key = value: allowed" unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} = {shortened(value)}: {allowed}")


def shortened(value: Any, limit: int = 200) -> str:
    """`repr` of a value as it came from a file, without ever building more of it than is shown."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * limit:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= limit else f"{value[:limit]!r}…"
    if isinstance(value, (list, tuple, dict)):
        pairs = isinstance(value, dict)
        parts, left = [], limit
        for item in value.items() if pairs else value:
            if left <= 0:
                parts.append("…")
                break
            parts.append(": ".join(shortened(part, left) for part in item) if pairs else shortened(item, left))
            left -= len(parts[-1])
        opening, closing = "{}" if pairs else "()" if isinstance(value, tuple) else "[]"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"{opening}{', '.join(parts)}{comma}{closing}"
    return repr(value)


@typing.dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose values are checked as strictly from Python as from YAML: by the types of its
    fields, then by what its own `__post_init__` requires; numbers are finite. Lists become tuples, and mappings nested
    configs. The texts below the fields become part of its docstring.
    """
    own_checks = getattr(cls, "__post_init__", lambda self: None)  # its own, or those it inherits

    def __post_init__(self) -> None:
        if type(self).__post_init__ is not __post_init__:  # called by that of a subclass, which does the rest
            return own_checks(self)
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            converted = _convert(hint, value, name)
            if converted is not value:
                object.__setattr__(self, name, converted)
        own_checks(self)
        for name in _hints(type(self)):  # what no range has refused
            _require_finite(getattr(self, name), name)

    cls.__post_init__ = __post_init__
    docstring = cls.__doc__
    cls = dataclasses.dataclass(frozen=True)(cls)
    cls.__doc__ = FieldsInDocstring(docstring)
    return cls


def require_seed(seed: int, bits: int = 63) -> None:
    """Raises `ConfigError` unless random numbers can be drawn from `seed`."""
    require(0 <= seed < 2**bits, "seed", seed, f"must be from 0 to 2^{bits} - 1")


def _require_finite(value: Any, key: str) -> None:
    if isinstance(value, float):
        require(math.isfinite(value), key, value, "must be a finite number")
    elif isinstance(value, (tuple, dict)):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            _require_finite(each, f"{key}.{name}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return f"a mapping from names to {_type_name(typing.get_args(hint)[1])}"
    if typing.get_origin(hint) in _UNIONS:
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint) or "a mapping"


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Returns `value`, as read from YAML or given in Python, as an instance of the type `hint`."""

    def wrong() -> ConfigError:
        return ConfigError(f"{printable(key)} = {shortened(value)}: must be {_type_name(hint)}")

    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, key)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            raise wrong()
        return value
    if origin in _UNIONS:
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _convert(next(option for option in typing.get_args(hint) if option is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong()
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, each, f"{key}.{index}") for index, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong()
        return {str(name): _convert(typing.get_args(hint)[1], each, f"{key}.{name}") for name, each in value.items()}
    if hint is float:
        # YAML reads 3e-4 (no dot) as text; people write it all the time.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise wrong() from None
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise wrong()
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise wrong()
        if key.rpartition(".")[2] != "seed":
            require(abs(value) < BEYOND_WHOLE_NUMBERS, key, value, "must be below 2^31")
        return int(value)
    if not isinstance(value, hint):
        raise wrong()
    return value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Builds the dataclass `cls` from plain data, as strictly as the types say.

    Args:
      cls: a dataclass whose fields are int, float, bool, str, Literal, X | None, tuple[X, ...], dict[str, X] or
        other dataclasses.
      values: a mapping, as `yaml.safe_load` gives it. A class method `variant` of `cls` may name the subclass that it
        is read as, and a class method `fill_in` say what a file that leaves out a key means, where that is not the
        default in Python.
      where: dotted path of `values`, for messages.

    Raises:
      ConfigError: an unknown key, a missing key, a wrong type or a value the dataclass refuses.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where or cls.__name__} = {shortened(values)}: must be a mapping of the keys of {cls.__name__}"
        )
    try:
        if hasattr(cls, "variant"):
            cls = cls.variant(values)
        if hasattr(cls, "fill_in"):
            values = cls.fill_in(values)
    except ConfigError as error:
        raise error if not where else ConfigError(f"{where}.{error}") from None
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name)[:100], fields, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "known keys: " + ", ".join(fields)
            raise ConfigError(f"{prefix}{printable(name)}: there is no such key; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing; must be {_type_name(hints[name])}")
    converted = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise error if not where else ConfigError(f"{where}.{error}") from None


def to_dict(config: Any) -> Any:
    """The plain data (mappings, lists, numbers, text) that `from_dict` reads back to an equal config."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {name: to_dict(item) for name, item in config.items()}
    return config


def _override(values: Any, path: list[str], value: Any, flag: str) -> None:
    """Sets `values[path[0]][path[1]]… = value` in nested mappings and lists, in place."""
    for depth, name in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(values, list):
            if not name.isdigit() or int(name) >= len(values):
                raise ConfigError(f"{flag}: {name!r} is not a position in a list of {len(values)}")
            name = int(name)
        elif not isinstance(values, dict):
            raise ConfigError(f"{flag}: {'.'.join(path[:depth])} has no keys of its own")
        elif name not in values:  # names that people gave, such as those of sources, may have dashes
            name = name.replace("-", "_")
        if last:
            values[name] = value
        elif isinstance(values, list):
            values = values[name]
        else:
            values = values.setdefault(name, {})


def _parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """Splits `--a.b-c 3 --d=x` into [("--a.b-c", 3), ("--d", "x")]; values are YAML."""
    pairs = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise ConfigError(f"{flag!r}: expected an option such as --key value (keys are those of the YAML file)")
        flag, separator, text = flag.partition("=")
        if not separator:
            if not rest:
                raise ConfigError(f"{flag}: a value must follow")
            text = rest.pop(0)
        try:
            pairs.append((flag, _parse_yaml(text)))
        except ConfigError:
            raise ConfigError(
                f"{flag} = {shortened(text)}: cannot be read; quote text that holds YAML's own signs"
            ) from None
    return pairs


def find_configs() -> Path:
    """The folder of ready-made YAML files: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, within limits, and a key written twice is the error that the YAML standard says it is."""

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            _check_nodes(node)
        return node

    def construct_yaml_int(self, node):
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(
                None, None, f"a whole number of {len(node.value):,} characters", node.start_mark
            )
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _check_nodes(root: yaml.Node) -> None:
    """Refuses keys that are written twice, and a document that is much larger than its text: an alias stands for all
    that it names, and a merge key copies it, so a kilobyte can stand for terabytes."""
    sizes: dict[int, tuple[int, int]] = {}  # of each node with all below it: characters, depth

    def measure(node: yaml.Node, above: tuple[int, ...]) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in above or len(above) > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deep, or in itself", node.start_mark)
        size, depth = 10, 1
        if isinstance(node, yaml.ScalarNode):
            size += len(node.value)
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        for child in children:
            for part in child if isinstance(child, tuple) else (child,):
                more, deeper = measure(part, (*above, id(node)))
                size, depth = size + more, max(depth, deeper + 1)
        if size > LARGEST_DOCUMENT or depth > DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, "its aliases stand for more than a config can hold", node.start_mark
            )
        sizes[id(node)] = size, depth
        return sizes[id(node)]

    measure(root, ())


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {printable(key.value)!r} is written twice", key.start_mark
                )
            seen.add(key.value)


def _parse_yaml(text: str) -> Any:
    """What a YAML document says.

    Raises:
      ConfigError: one line with the reason, which begins with the line number if there is one.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also for impossible dates and numbers
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f"line {line + 1}: " if line is not None else ""
        reason = (str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{place}not valid YAML: {printable(reason)}") from None


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file; a missing or malformed one is a `ConfigError` naming the file and line."""
    try:
        text = read_bytes(path, LARGEST_YAML).decode("utf-8")
    except FileError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return _parse_yaml(text)
    except ConfigError as error:
        separator = ", " if str(error).startswith("line ") else ": "
        raise ConfigError(f"{path}{separator}{error}") from None


def read_config(cls: type[T], path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """Reads the config `cls` from a YAML file and applies command-line overrides.

    Args:
      cls: the dataclass to build.
      path: a YAML file; None starts from the defaults of `cls`.
      overrides: arguments such as `["--optimizer.learning-rate", "3e-4"]`; `-` and `_` are the same, a number selects
        from a list (`--sources.0.split test`).

    Raises:
      ConfigError: naming the file or option, the key, the value and what is allowed.
    """
    values = read_yaml(path) if path is not None else {}
    if values is None:
        values = {}
    pairs = _parse_overrides(list(overrides))
    if isinstance(values, dict):
        for flag, value in pairs:
            _override(values, flag.removeprefix("--").split("."), value, flag)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        raise error if path is None else ConfigError(f"{path}: {error}") from None
