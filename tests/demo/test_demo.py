"""The demo from nothing to report, with recipes small enough to run in a minute; it learns little, and says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from html_page import check_page
from PIL import Image

from chameleon_jax import load
from chameleon_jax.bench.gpu.__main__ import main as gpu
from chameleon_jax.config import find_configs
from chameleon_jax.console.cli import main
from chameleon_jax.demo.digits.judge import Judge, nearest_distances

pytestmark = pytest.mark.slow

KEYS = {
    "caption_accuracy", "drawing_accuracy", "question_accuracy", "sum_accuracy", "copied_drawings",
    "reconstruction_psnr_db", "codebook_used", "text_bits_per_byte", "xz_bits_per_byte", "total_minutes",
    "peak_memory_gib",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a finished demo, and its recipes."""
    folder = tmp_path_factory.mktemp("demo")
    recipes = folder / "recipes"
    recipes.mkdir()
    values = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (find_configs() / "demo").glob("*.yaml")
    }
    values["text_tokenizer"]["tokenizer"]["vocab_size"] = 400
    values["image_tokenizer"]["tokenizer"] |= {"steps": 60, "warmup_steps": 10, "batch_size": 16}
    values["image_tokenizer"]["sources"][0]["count"] = 64
    for source in values["prepare"]["sources"][:4]:
        source |= {"count": 64, "split": "train[:64]"}
    values["prepare"]["sources"][4:] = [{"kind": "python_reference", "count": 2}, {"kind": "python_stdlib", "count": 2}]
    for source in values["prepare"]["held_out"]:
        source["count"] = 1 if source["kind"].startswith("python") else 8
        source["split"] = "test"
    values["train"] |= {"steps": 6, "evaluate_every": 0, "log_every": 2}
    values["train"]["checkpoint"]["every"] = 4
    values["train"]["optimizer"]["warmup_steps"] = 2
    values["train"]["model"] |= {"vocab_size": 768, "d_model": 32, "num_layers": 2, "mlp_dim": 64}
    values["evaluation"] |= {"split": "test[:60]", "train_split": "train[:200]", "drawings_per_digit": 2, "sums": 6}
    for name, recipe in values.items():
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["demo", "--recipes", str(recipes), "--output", str(folder / "demo")]) == 0
    return folder / "demo", recipes


def test_every_promised_figure_is_there_and_a_number(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    assert metrics.keys() >= KEYS
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(0 <= metrics[key] <= 1 for key in KEYS if key.endswith(("accuracy", "drawings", "used")))


def test_report_needs_no_other_file(demo):
    page = check_page((demo[0] / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) > 20 + 20 + 2 * 6  # captions, drawings, sums
    assert len(page.all("svg")) == 3 * 2  # wide and narrow


def test_second_run_reuses_every_stage_and_says_so(demo, capsys):
    output, recipes = demo
    before = (output / "report.html").stat().st_mtime_ns
    assert main(["demo", "--recipes", str(recipes), "--output", str(output)]) == 0
    assert capsys.readouterr().err.count("reused from an earlier run") == 5
    assert (output / "report.html").stat().st_mtime_ns == before


def test_the_stage_of_make_gpu_records_the_figures_of_a_demo(demo):
    output, recipes = demo
    assert gpu(["demo", "--rehearse", "--recipes", str(recipes), "--output", str(output.parent)]) == 0
    (check,) = json.loads((output.parent / "demo.json").read_text())["checks"]
    assert check["metrics"] == json.loads((output / "metrics.json").read_text())


def test_changed_recipe_redoes_its_stage_and_those_after_it(demo, capsys):
    output, recipes = demo
    recipe = yaml.safe_load((recipes / "train.yaml").read_text())
    original = (recipes / "train.yaml").read_text()
    (recipes / "train.yaml").write_text(yaml.safe_dump({**recipe, "seed": 5}))
    try:
        assert main(["demo", "--recipes", str(recipes), "--output", str(output)]) == 0
    finally:
        (recipes / "train.yaml").write_text(original)
    said = capsys.readouterr().err
    assert said.count("reused from an earlier run") == 3
    assert "▶ train Chameleon" in said
    assert "▶ judge and report" in said


def test_demo_folder_opens_as_a_model(demo, tmp_path, capsys):
    output = demo[0]
    assert load(output).config.d_model == 32
    drawn = tmp_path / "drawn"
    arguments = ["generate", str(output), "A handwritten two.", "--mode", "image", "--output", str(drawn)]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["0001.png", "0002.png"]
    first, second = (np.asarray(Image.open(drawn / name)) for name in ("0001.png", "0002.png"))
    assert first.shape == (32, 32, 3)
    assert (first == second).all(), "the same seed draws the same picture"
    assert f"[picture: {drawn / '0001.png'}]" in capsys.readouterr().out
    assert main(["generate", str(output), "⟨image⟩ is", "--image", str(drawn / "0001.png"), "--mode", "text"]) == 0


def test_judge_knows_real_digits_and_learns_only_from_what_it_is_given(demo):
    from chameleon_jax.demo.digits.evaluate import digit_pictures

    images, labels = digit_pictures("train", str(demo[0] / "datasets"))
    judge = Judge(images[:1000], labels[:1000], seed=0)
    assert np.mean(judge(images[1000:]) == labels[1000:]) > 0.97
    fooled = Judge(images[:1000], (labels[:1000] + 1) % 10, seed=0)
    assert np.mean(fooled(images[1000:]) == (labels[1000:] + 1) % 10) > 0.97


def test_nearest_distances_are_root_mean_squares():
    rng = np.random.default_rng(0)
    images, references = rng.normal(size=(3, 4, 4, 3)), rng.normal(size=(5, 4, 4, 3))
    expected = [min(np.sqrt(np.mean((image - other) ** 2)) for other in references) for image in images]
    np.testing.assert_allclose(nearest_distances(images, references), expected, rtol=1e-6)


def test_nearest_distances_see_through_small_moves():
    rng = np.random.default_rng(0)
    picture = np.ones((1, 8, 8, 3))
    picture[0, 2:6, 2:6] = rng.normal(size=(4, 4, 3))
    moved = np.roll(picture, (1, -2), axis=(1, 2))
    assert nearest_distances(moved, picture)[0] > 0.1
    assert nearest_distances(moved, picture, shift=1)[0] > 0.1
    np.testing.assert_allclose(nearest_distances(moved, picture, shift=2), 0, atol=1e-6)
