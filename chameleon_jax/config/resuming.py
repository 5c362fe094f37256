"""What a run that is resumed from a checkpoint may change in its config.

A key says so where it is declared, by its annotation; the keys of a nested config inherit that of the config. A key
without one must keep its value: the run would be another one.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Annotated, Any, TypeVar

from chameleon_jax.config.reading import to_dict

T = TypeVar("T")


class OnResume(enum.Enum):
    """What another value means for a resumed run."""

    ANOTHER_RUN = enum.auto()
    OTHER_ROUNDING = enum.auto()
    SAME_NUMBERS = enum.auto()


Adjustable = Annotated[T, OnResume.SAME_NUMBERS]
"""A key that a resumed run may change: no number that it computes depends on it."""
ChangesRounding = Annotated[T, OnResume.OTHER_ROUNDING]
"""A key that a resumed run may change to move to other hardware; it is then no longer the same run bit for bit."""


def keys_where(config: Any, meaning: OnResume) -> dict[str, Any]:
    """Values, as plain data by dotted key, of all keys of a config whose change has this meaning."""

    def search(config: Any, inherited: OnResume, prefix: str) -> dict[str, Any]:
        found = {}
        hints = typing.get_type_hints(type(config), include_extras=True)
        for field in dataclasses.fields(config):
            own = [mark for mark in getattr(hints[field.name], "__metadata__", ()) if isinstance(mark, OnResume)]
            value, of_field = getattr(config, field.name), own[0] if own else inherited
            if dataclasses.is_dataclass(value):
                found |= search(value, of_field, f"{prefix}{field.name}.")
            elif of_field is meaning:
                found[prefix + field.name] = to_dict(value)
        return found

    return search(config, OnResume.ANOTHER_RUN, "")
