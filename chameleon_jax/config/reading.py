"""Strict reading of dataclasses: from YAML, from plain data, from the words of a command line.

A key that does not exist, a value of the wrong type and a combination that cannot work are each one `ConfigError`
line that names the place, the value, what is allowed, and the nearest key.

Compared were tyro's and draccus's YAML readers, OmegaConf, pydantic, cattrs and msgspec: their errors are several
lines, groups of exceptions or boxes, or name the place without the value or the nearest key, and most convert values
of the wrong type. Translating those errors would take more code than the hundred lines that read a dataclass here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from chameleon_jax.config.docstrings import FieldsInDocstring
from chameleon_jax.config.yaml_files import parse_yaml, read_yaml
from chameleon_jax.errors import ConfigError, printable

T = TypeVar("T")

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
        default in Python; `moved_keys` says what older files call some keys. A class method `short_form` turns a value
        that stands for a mapping into it, and leaves others as they are.
      where: dotted path of `values`, for messages.

    Raises:
      ConfigError: an unknown key, a missing key, a wrong type or a value the dataclass refuses.
    """
    if hasattr(cls, "short_form"):
        values = cls.short_form(values)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where or cls.__name__} = {shortened(values)}: must be a mapping of the keys of {cls.__name__}"
        )
    try:
        if hasattr(cls, "variant"):
            cls = cls.variant(values)
        values = _with_moved_keys(cls, values)
        if hasattr(cls, "fill_in"):
            values = cls.fill_in(values)
    except ConfigError as error:
        raise error if not where else ConfigError(f"{where}.{error}") from None
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in fields:
            raise _no_such_key(where, name, fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing; must be {_type_name(hints[name])}")
    converted = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise error if not where else ConfigError(f"{where}.{error}") from None


def _with_moved_keys(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the keys of older files where `cls.moved_keys` says that they are now.

    Raises:
      ConfigError: if a key is given in both places.
    """
    for old, new in getattr(cls, "moved_keys", {}).items():
        *sections, name = old.split(".")
        place = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and name in place:
            value = place[name]
            values = _changed(values, [*sections, name], lambda place, name: place.pop(name))

            def move(place: dict[str, Any], name: str, old: str = old, new: str = new, value: Any = value) -> None:
                require(name not in place, old, value, f"is now {new}, which is given too; leave this out")
                place[name] = value

            values = _changed(values, new.split("."), move)
    return values


def _changed(values: Any, path: Sequence[str], change: Callable[[dict[str, Any], str], Any]) -> Any:
    """A copy of nested mappings with the innermost one of `path` changed; what is no mapping is left for the types to
    refuse."""
    if not isinstance(values, dict):
        return values
    values, (name, *rest) = dict(values), path
    if rest:
        values[name] = _changed(values.get(name, {}), rest, change)
    else:
        change(values, name)
    return values


def _no_such_key(where: str, name: Any, known: Iterable[str]) -> ConfigError:
    nearest = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
    return ConfigError(f"{where}{'.' if where else ''}{printable(name)}: there is no such key; {hint}")


def to_dict(config: Any) -> Any:
    """The plain data (mappings, lists, numbers, text) that `from_dict` reads back to an equal config."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {name: to_dict(item) for name, item in config.items()}
    return config


def find_key(cls: type, name: str) -> tuple[str, Any]:
    """The key of the config `cls` that `name` selects, such as "stages.0.weights.my-text", and its type.

    Fields may be written with `-` for `_`; entries of a mapping are called what their owner calls them.

    Raises:
      ConfigError: if there is no such key.
    """
    hint, path = cls, ""
    for old, new in getattr(cls, "moved_keys", {}).items():
        if f"{name}.".replace("-", "_").startswith(f"{old}."):
            name = new + name[len(old) :]
            break
    for part in name.split("."):
        options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
        fields = {
            key: of for option in options if dataclasses.is_dataclass(option) for key, of in _keys(option).items()
        }
        containers = {typing.get_origin(option): typing.get_args(option) for option in options}
        if fields:
            part = part.replace("-", "_")
            # A class that chooses among variants may know some by what a file says of them alone.
            if part not in fields and not hasattr(hint, "variant"):
                raise _no_such_key(path, part, fields)
            hint = fields.get(part, Any)
        elif tuple in containers:
            if not part.isdigit():
                raise ConfigError(f"{name}: {part!r} is not a position in a list")
            hint = containers[tuple][0]
        elif dict in containers:
            hint = containers[dict][1]
        else:
            raise ConfigError(f"{name}: {path} has no keys of its own")
        path = f"{path}.{part}".removeprefix(".")
    return path, hint


def _keys(cls: type) -> dict[str, Any]:
    """Types of the fields of a dataclass, and of all its variants."""
    variants = cls.__subclasses__() if hasattr(cls, "variant") else ()
    return {name: hint for each in (*variants, cls) for name, hint in _hints(each).items()}


def parse_value(hint: Any, words: str | Sequence[str]) -> Any:
    """A value of the type `hint` from the command line: text stands for itself, all else is YAML.

    A list is one word of YAML (`[1, 2]`), or one word for each entry (`1 2`).
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    if not isinstance(words, str):
        if len(words) == 1 and words[0].startswith("["):
            return parse_yaml(words[0])
        return [parse_value(typing.get_args(options[0])[0], word) for word in words]
    is_text = str in options or any(typing.get_origin(option) is Literal for option in options)
    if is_text and not (words == "null" and type(None) in options):
        return words
    try:
        return parse_yaml(words)
    except ConfigError:
        raise ConfigError(f"{shortened(words)}: is not valid YAML") from None


def _override(values: Any, key: str, value: Any) -> None:
    """Sets `values[a][b]… = value` for the key "a.b…", in nested mappings and lists, in place."""
    name, _, rest = key.partition(".")
    if isinstance(values, list):
        if int(name) >= len(values):
            raise ConfigError(f"{name} is not a position in a list of {len(values)}")
        name = int(name)
    elif not isinstance(values, dict):
        raise ConfigError(f"{shortened(values)} has no keys of its own")
    if not rest:
        values[name] = value
    else:
        _override(values[name] if isinstance(values, list) else values.setdefault(name, {}), rest, value)


def find_configs() -> Path:
    """The folder of ready-made YAML files: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def read_config(cls: type[T], path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> T:
    """Reads the config `cls` from a YAML file.

    Args:
      cls: the dataclass to build.
      path: a YAML file; None starts from the defaults of `cls`.
      overrides: values that replace those of the file, by dotted key: `{"optimizer.learning_rate": 3e-4,
        "sources.0.split": "test"}`.

    Raises:
      ConfigError: naming the file, the key, the value and what is allowed.
    """
    values = read_yaml(path) if path is not None else {}
    if values is None:
        values = {}
    try:
        if isinstance(values, dict):
            values = _with_moved_keys(cls, values)
            for name, value in (overrides or {}).items():
                key, _ = find_key(cls, name)
                try:
                    _override(values, key, value)
                except ConfigError as error:
                    raise ConfigError(f"{key}: {error}") from None
        return from_dict(cls, values)
    except ConfigError as error:
        raise error if path is None else ConfigError(f"{path}: {error}") from None
