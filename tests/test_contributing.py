"""The example of a pull request in CONTRIBUTING.md works as it stands."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from chameleon_jax.config import ConfigError, from_dict
from data_pipeline import SourceConfig
from data_pipeline.sources import source as source_module


def test_example_of_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_KINDS", dict(source_module._KINDS))
    blocks = re.findall(r"```python\n(.*?)```", Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(), re.S)
    source, _, test, entry = blocks
    (tmp_path / "captioned_pictures_of_the_example.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("captioned_pictures_of_the_example")
    names: dict = {}
    exec(test, names)
    names["test_pictures_follow_their_captions"](tmp_path)
    assert re.search(r"\{.*\}", entry)[0] == '{"path": "test_pictures_follow_their_captions"}'
    with pytest.raises(ConfigError, match="path = '': must name a file"):
        from_dict(SourceConfig, {"kind": "captioned_pictures"})
