"""What tokenizers learn from: everything, or a sample that fits into memory and does not depend on the order."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from tiny_models import random_picture

from chameleon_jax.config import ConfigError, from_dict
from data_pipeline import segments
from data_pipeline.segments import Sample, read_texts
from data_pipeline.sources import SourceConfig


def test_sample_is_the_same_in_any_order_and_fits():
    items = [(f"id {number}", number, 1 + number % 7) for number in range(2000)]
    samples = []
    for seed in range(3):
        random.Random(seed).shuffle(items)
        sample = Sample(1000)
        for item in items:
            sample.add(*item)
        samples.append(sorted(sample.items("numbers")))
        assert 990 < sum(1 + number % 7 for number in samples[-1]) <= 1000
    assert samples[0] == samples[1] == samples[2]
    assert len(samples[0]) == len(set(samples[0]))
    assert 800 < np.mean(samples[0]) < 1200


def test_everything_is_kept_in_its_order_if_it_fits(capsys):
    sample = Sample(300)
    for number in range(300):
        sample.add(f"id {number}", number, 1)
    assert sample.items("numbers") == list(range(300))
    assert capsys.readouterr().err == ""


def test_one_item_is_kept_however_large():
    sample = Sample(10)
    sample.add("id", "large", 11)
    assert sample.items("texts") == ["large"]


@pytest.fixture
def source(tmp_path):
    """Twenty texts with a picture each, one of which is missing, and a line that is none."""
    lines = []
    for number in range(20):
        random_picture(number).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"picture {number:02}"}))
    (tmp_path / "7.png").unlink()
    (tmp_path / "own.jsonl").write_text("\n".join(["{", *lines]))
    return lambda **keys: from_dict(SourceConfig, {"kind": "documents", "path": str(tmp_path / "own.jsonl"), **keys})


def test_texts_are_read_or_sampled_and_what_is_left_out_is_said(source, monkeypatch, capsys):
    everything = read_texts([source()], "")
    assert everything == [f"picture {number:02}" for number in range(20)]
    assert "records that cannot be used: 1; the first is own.jsonl, line 1: not valid JSON" in capsys.readouterr().err
    monkeypatch.setattr(segments, "MOST_TEXT", 60)
    sample = read_texts([source()], "")
    assert len(sample) == 6
    assert set(sample) < set(everything)
    assert "learning from the text of 6 records" in capsys.readouterr().err


def test_forms_apply_and_sources_without_text_are_refused(source):
    assert read_texts([source(form={"templates": ["{text} again"]})], "")[0] == "picture 00 again"
    with pytest.raises(ConfigError, match="their documents hold no text"):
        read_texts([source(filter={"min_characters": 1000})], "")
