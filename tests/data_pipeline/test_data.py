"""`chameleon data`: the table and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from html_page import check_page

from chameleon_jax.config import to_dict
from chameleon_jax.console.cli import main
from chameleon_jax.console.data import in_columns

TRAIN = {
    "steps": 30, "batch_size": 4, "optimizer": {"warmup_steps": 1},
    "model": {"d_model": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 8},
    "stages": [{"share": 0.5, "weights": {"mixed": 1}}, {"share": 0.5, "weights": {"mixed": 1, "prose": 3}}],
}  # fmt: skip


@pytest.fixture
def train_yaml(prepared, tmp_path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**TRAIN, "data": str(prepared), "output": str(tmp_path / "run")}))
    return path


def figures_of(printed: str, *words: str) -> list[str]:
    (line,) = (line for line in printed.splitlines() if line.split()[: len(words)] == list(words))
    return line.split()[len(words) :]


def test_the_table_says_what_each_source_gives_to_each_stage(prepared, train_yaml, capsys):
    assert main(["data", str(train_yaml), "--page", "none"]) == 0
    printed = capsys.readouterr().out
    header = json.loads((prepared / "dataset.json").read_text())["sources"]
    assert figures_of(printed, "mixed")[:2] == ["40", f"{header['mixed']['pictures']}"]
    by_weight, by_rows, text, image, epochs = figures_of(printed, "2", "prose")
    assert (by_weight, image) == ("75.0%", "0")
    assert abs(float(by_rows.rstrip("%")) - 75) < 8  # of sixty rows
    epochs, prose = float(epochs), header["prose"]
    assert int(text.replace(",", "")) == pytest.approx(epochs * prose["text_tokens"], rel=0.02)
    read = [float(figures_of(printed, *words)[-1]) * header[words[1]]["rows"] for words in
            (("1", "mixed"), ("2", "mixed"), ("2", "prose"))]  # fmt: skip
    assert sum(read) == pytest.approx(30 * 4, abs=1)


def test_the_page_shows_rows_of_every_source(prepared, train_yaml, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["data", str(train_yaml), "--page", str(page), "--samples", "2"]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    shown = check_page(text)
    assert shown.text_of("h2") == ["What was prepared", "What training reads", "mixed", "prose", "held_out.unseen"]
    assert text.count("<div class='row'>") == 6
    assert re.search(r"is picture \d, which nobody has seen\.", text)
    assert "The fox said" in text
    assert len(shown.all("img")) > 2
    assert all("learnt" in image["class"] and "weight 1 in the loss" in image["alt"] for image in shown.all("img"))


def test_a_run_that_has_begun_has_read_a_part(prepared, train_yaml, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10, "loss": 2.0}\n')
    assert main(["data", str(train_yaml), "--page", "none"]) == 0
    before, after = capsys.readouterr().out.split("What it has read, up to step 10")
    whole, part = (float(figures_of(printed, "1", "mixed")[-1]) for printed in (before, after))
    assert part == pytest.approx(whole * 10 / 15, rel=0.05)


def test_the_yaml_of_prepare_leads_to_its_rows(command, prepared, tmp_path, capsys):
    path = tmp_path / "prepare.yaml"
    path.write_text(yaml.safe_dump(to_dict(command)))
    assert main(["data", str(path), "--page", "none"]) == 0
    assert "held_out.unseen" in capsys.readouterr().out


def test_rows_are_printed_as_show_printed_them(prepared, capsys):
    assert main(["data", str(prepared), "--source", "prose", "--rows", "0"]) == 0
    printed = capsys.readouterr().out
    assert main(["show", str(prepared), "--source", "prose", "--rows", "0"]) == 0
    assert printed == capsys.readouterr().out
    assert "⟦The fox said" in printed


@pytest.mark.parametrize("words", [("data", "--rows", "0"), ("show",)])
def test_a_page_of_rows_that_are_printed_is_refused(words, prepared, tmp_path, capsys):
    name, *options = words
    assert main([name, str(prepared), *options, "--page", str(tmp_path / "page.html")]) == 2
    assert "page.html': is written by `chameleon data` without --rows" in capsys.readouterr().err


def test_what_is_no_data_is_refused(tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text("kind: kite\n")
    assert main(["data", str(path)]) == 2
    assert f"{path}: expected a folder of rows, or the YAML file" in capsys.readouterr().err


def test_columns_are_aligned():
    assert in_columns([("name", "count"), ("a", "1,000"), ("bcd", "7")]) == "name  count\na     1,000\nbcd       7"
