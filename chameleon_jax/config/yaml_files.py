"""YAML files, read within limits; what is wrong with one is a `ConfigError` of one line that names file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from chameleon_jax.errors import ConfigError, FileError, printable
from chameleon_jax.runtime.reading import DEEPEST, LONGEST_NUMBER, read_bytes

LARGEST_YAML = 256 << 10
"""Bytes of a YAML file; the longest recipe has 4 KB."""
LARGEST_DOCUMENT = 1 << 20
"""Characters of what it says with every alias written out, and ten more for each value."""


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


def parse_yaml(text: str) -> Any:
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
        return parse_yaml(text)
    except ConfigError as error:
        separator = ", " if str(error).startswith("line ") else ": "
        raise ConfigError(f"{path}{separator}{error}") from None
