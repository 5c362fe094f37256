"""The texts below the fields of a dataclass, as part of its docstring: `help(cls)` shows them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing


class FieldsInDocstring:
    """The docstring of a dataclass followed by its fields. It is put together from the source when it is first asked
    for, so that importing stays quick; without source it is the docstring alone.
    """

    def __init__(self, docstring: str | None):
        self._docstring = inspect.cleandoc(docstring or "")

    def __get__(self, instance: object, owner: type) -> str:
        fields = _list_of_fields(owner)
        return f"{self._docstring}\n\nAttributes:\n{fields}".lstrip() if fields else self._docstring


@functools.cache
def _list_of_fields(cls: type) -> str:
    docs: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        docs |= field_docs(parent)
    lines, hints = [], typing.get_type_hints(cls)  # without what `Annotated` adds
    for field in dataclasses.fields(cls):
        if field.name not in docs:  # the signature, which `help` shows too, says all there is to say
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = "" if default is dataclasses.MISSING else f" = {default!r}"
        if len(value) > 60:  # such as a config of its own
            value = f" = {type(default).__name__}(…)"
        hint = re.sub(r"(\w+\.)+(?=\w)", "", inspect.formatannotation(hints[field.name]))  # without names of modules
        entry = f"{field.name} ({hint}{value}): {' '.join(docs[field.name].split())}"
        lines.append(textwrap.fill(entry, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines)


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The string below each annotated name in the body of a class; empty if its source cannot be read."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    docs = {}
    statements = getattr(body, "body", [])
    for field, below in itertools.pairwise(statements):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
            docs[ast.unparse(field.target)] = inspect.cleandoc(text.value)
    return docs
