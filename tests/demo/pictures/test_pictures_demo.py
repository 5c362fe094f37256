"""`chameleon demo pictures` from nothing to report, with a few dozen pictures and a model that learns little."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from html_page import check_page

from chameleon_jax.config import find_configs
from chameleon_jax.console.cli import main
from chameleon_jax.demo.pictures.report import LINKS

pytestmark = pytest.mark.slow

FIGURES = {
    "drawing_accuracy", "drawing_family_accuracy", "drawing_family_accuracy_by_edges", "drawing_accuracy_in_languages",
    "caption_accuracy", "caption_family_accuracy", "caption_accuracy_in_languages", "edit_accuracy",
    "edit_family_accuracy", "trained_drawing_accuracy", "question_accuracy", "translation_accuracy",
    "reconstruction_accuracy", "reconstruction_psnr_db", "total_minutes", "peak_memory_gib",
}  # fmt: skip
SOURCES = {
    "emoji_names": 40, "emoji_edits": 10, "emoji_translations": 10, "emoji_questions": 10, "emoji_stories": 10,
}  # fmt: skip


def _recipes(folder) -> None:
    sources = [{"kind": kind, "count": count} for kind, count in SOURCES.items()]
    read = lambda name: yaml.safe_load((find_configs() / "demo" / f"{name}.yaml").read_text())  # noqa: E731
    image, train = read("image_tokenizer"), read("train")
    image["tokenizer"] |= {"steps": 10, "warmup_steps": 2, "batch_size": 8}
    image["tokenizer"]["model"] |= {"resolution": 64, "space_to_depth": 16, "channels": 16, "latent_channels": 16}
    train |= {"steps": 4, "evaluate_every": 0, "log_every": 2}
    train["stages"] = [{"share": 1.0, "weights": dict.fromkeys(SOURCES, 1)}]
    train["optimizer"]["warmup_steps"] = 2
    train["checkpoint"]["every"] = 4
    train["model"] |= {"vocab_size": 1024, "d_model": 32, "num_layers": 2, "mlp_dim": 64}
    recipes = {
        "text_tokenizer": {"output": "", "tokenizer": {"vocab_size": 700}, "sources": sources},
        "image_tokenizer": {**image, "sources": [{"kind": "emoji_names", "count": 16}], "held_out": []},
        "prepare": {
            "text_tokenizer": "", "image_tokenizer": "", "output": "", "sequence_length": 128, "sources": sources,
            "held_out": [{"kind": "emoji_names", "split": "test", "count": 4}],
        },
        "train": train,
        "evaluation": {
            **yaml.safe_load((find_configs() / "showcase" / "evaluation.yaml").read_text()), "trained_drawings": 5,
        },
    }  # fmt: skip
    for name, values in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, few_pictures):
    """The folder of a finished demo, and its recipes."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "recipes").mkdir()
    _recipes(folder / "recipes")
    arguments = ["demo", "pictures", "--recipes", str(folder / "recipes"), "--output", str(folder / "out")]
    assert main(arguments) == 0
    return folder / "out", arguments


def test_every_figure_of_the_page_is_there(demo):
    output, _ = demo
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics.keys() >= FIGURES
    assert all(np.isfinite(metrics[key]) for key in FIGURES)
    assert all(0 <= metrics[key] <= 1 for key in FIGURES if key.endswith("accuracy"))
    page = check_page((output / "report.html").read_text(encoding="utf-8"), LINKS)
    alts = [image["alt"] for image in page.all("img")]
    assert sum(alt.startswith("drawn: ") for alt in alts) == sum(alt.startswith("true: ") for alt in alts) > 10
    assert "OpenMoji" in (output / "report.html").read_text(encoding="utf-8")


def test_finished_stages_are_reused_and_the_page_is_written_again(demo, capsys):
    output, arguments = demo
    before = json.loads((output / "metrics.json").read_text())
    (output / "report.html").unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("reused from an earlier run") == 4
    after = json.loads((output / "metrics.json").read_text())
    same = [key for key in before if key.endswith("accuracy")]
    assert [before[key] for key in same] == [after[key] for key in same]
