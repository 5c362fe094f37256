"""docs/data.md names every kind of source, and its examples are what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from chameleon_jax.config import from_dict
from data_pipeline import config  # noqa: F401 - registers the kinds of the demo
from data_pipeline.sources import SourceConfig
from data_pipeline.sources.source import _KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## (\w+)\n\n```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_kind_is_on_the_page():
    ours = {kind for kind, cls in _KINDS.items() if cls.__module__.startswith("data_pipeline.")}
    rows = PAGE.partition("|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert {kind for row in rows for kind in re.findall(r"`(\w+)`", row.split("|")[1])} == ours


def test_templates_on_the_page():
    (example,) = re.findall(r"```yaml\n(kind: table[^`]*?form:.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(from_dict(SourceConfig, yaml.safe_load(example)).form.templates) == 2


@pytest.mark.parametrize(("kind", "example"), EXAMPLES, ids=[kind for kind, _ in EXAMPLES])
def test_examples_are_configs(kind, example):
    assert from_dict(SourceConfig, yaml.safe_load(example)).kind == kind
