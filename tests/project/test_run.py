"""`chameleon run`: from a folder of files to a page, with sizes that take seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from html_page import check_page
from photos import draw_photos

from chameleon_jax.console.cli import main
from chameleon_jax.project.run import _identities, open_project


def shrink(folder: Path, **changes: dict) -> None:
    """Changes values of the YAML files in a folder, as someone in a hurry does."""
    for name, values in changes.items():
        path = folder / f"{name.replace('_', '-')}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in values.items():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place[int(section) if isinstance(place, list) else section]
            place[last] = value
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


def without_learning(folder: Path) -> dict[str, dict]:
    """Values with which nothing takes long, for a folder whose source is the first."""
    model = {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 16}
    train = {f"model.{key}": value for key, value in model.items()}
    return {
        "train": {**train, "steps": 4, "log_every": 2, "evaluate_every": 4, "checkpoint.every": 4, "batch_size": 8,
                  "optimizer.warmup_steps": 1, "execution.remat": "none"},
    }  # fmt: skip


def test_text_alone_becomes_rows_that_can_be_looked_at(tmp_path, capsys):
    data, mine = tmp_path / "letters", tmp_path / "mine"
    data.mkdir()
    for number in range(30):
        (data / f"{number}.txt").write_text(f"Letter {number}: the quick brown fox jumps over the lazy dog.\n" * 8)
    assert main(["init", str(data), "-o", str(mine)]) == 0
    assert not (mine / "train-image-tokenizer.yaml").exists()
    assert main(["train-text-tokenizer", str(mine / "train-text-tokenizer.yaml")]) == 0
    assert main(["prepare", str(mine / "prepare.yaml"), "--processes", "1"]) == 0
    capsys.readouterr()
    assert main(["data", str(mine / "train.yaml")]) == 0
    assert re.search(r"^ *1 +letters +100\.0%", capsys.readouterr().out, re.MULTILINE)
    page = (mine / "rows.html").read_text(encoding="utf-8")
    numbers = [set(map(int, re.findall(r"Letter (\d+):", section))) for section in page.split("<h2>")[-2:]]
    assert all(numbers)
    assert not numbers[0] & numbers[1], "learnt from and held out"


@pytest.mark.slow
def test_the_walk_of_the_guide(tmp_path, capsys):
    """Two commands; the same again, which does nothing; a number is changed; a picture is added."""
    photos, mine = draw_photos(tmp_path / "photos", 24), tmp_path / "mine"
    assert main(["init", str(photos), "-o", str(mine)]) == 0
    tiny = {"resolution": 16, "space_to_depth": 4, "channels": 16, "latent_channels": 8, "code_dim": 4, "num_codes": 16}
    shrink(
        mine,
        train_image_tokenizer={
            **{f"tokenizer.model.{key}": value for key, value in tiny.items()},
            "tokenizer.steps": 12, "tokenizer.warmup_steps": 2,
        },
        prepare={"sequence_length": 96, "sources.0.form.copies": 2},
        **without_learning(mine),
    )  # fmt: skip
    assert main(["run", str(mine), "--samples", "2"]) == 0
    report = (mine / "report.html").read_text(encoding="utf-8")
    headings = check_page(report, links=("data.html",)).text_of("h2")
    assert headings == ["It draws", "It reads pictures", "How it learnt", "How long it took"]
    assert report.count("<figure>") == 2 * 2
    assert len(re.findall(r"A (?:red|yellow|green|blue) \w+ on pale paper\.", report)) >= 4
    assert "photos" in check_page((mine / "data.html").read_text(encoding="utf-8")).text_of("h2")

    stages = json.loads((mine / "stages.json").read_text())
    assert list(stages) == ["train text tokenizer", "train image tokenizer", "prepare data", "train Chameleon",
                            "look at the result"]  # fmt: skip
    capsys.readouterr()
    assert main(["run", str(mine), "--samples", "2"]) == 0
    assert capsys.readouterr().err.count("reused from an earlier run") == 5
    shrink(mine, train={"steps": 6})
    assert main(["run", str(mine), "--samples", "2"]) == 0
    assert capsys.readouterr().err.count("reused from an earlier run") == 3
    before = _identities(open_project(mine))
    (photos / "024.txt").write_text("A red circle.")
    (photos / "000.jpg").rename(photos / "024.jpg")
    assert _identities(open_project(mine)) != before
    assert main(["generate", str(mine / "run"), "A red circle ", "--mode", "image", "--output", str(tmp_path)]) == 0
    guide = (Path(__file__).parents[2] / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    (tmp_path / "photos.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    assert main([
        "prepare", str(tmp_path / "photos.yaml"), "--tokenizer", str(mine / "run"), "--output", str(tmp_path / "rows"),
        "--sources.0.path", str(photos), "--held-out.0.path", str(photos), "--sequence-length", "96",
    ]) == 0  # fmt: skip
    assert main(["data", str(tmp_path / "rows")]) == 0


def test_only_what_init_wrote_is_run(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("steps: 3\n")
    assert main(["run", str(tmp_path)]) == 1
    assert "`chameleon init` did not write this folder" in capsys.readouterr().err
