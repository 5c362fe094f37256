"""`chameleon evaluate-image-tokenizer`: what it prints and draws, and the pictures that it finds in any files."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from html_page import check_page
from tiny_models import image_tokenizer, random_picture

from chameleon_jax.config import from_dict
from chameleon_jax.config.reading import config
from chameleon_jax.console.cli import main
from chameleon_jax.console.evaluate import read_squares, usable
from chameleon_jax.errors import ChameleonError
from chameleon_jax.tokens.documents import save_image_tokenizer
from chameleon_jax.tokens.image import ImageTokenizer, scale
from data_pipeline.config import PrepareCommand
from data_pipeline.prepare import prepare
from data_pipeline.processes import cores
from data_pipeline.records import Picture, Record
from data_pipeline.sources import SourceConfig
from data_pipeline.squares import AHEAD, squares_of_sources


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_image_tokenizer(image_tokenizer(seed), folder / str(seed))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        random_picture(seed).save(folder / f"{seed}.png")
    return folder


def evaluated(capsys, *words: object) -> dict:
    """What the command prints as JSON."""
    status = main(["evaluate-image-tokenizer", *map(str, words), "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


# ----------------------------------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions(models, photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    more = ("--compare", models / "1", "--count", 2, "--output", page, "--samples", 1)
    page.write_text("Written by <code>chameleon evaluate-image-tokenizer</code>.</footer>")  # an older one
    found = evaluated(capsys, models / "0", photos, *more)
    assert found["pictures"] == 2
    assert found["page"] == str(page)
    originals = np.stack([np.asarray(random_picture(seed)) for seed in range(2)])
    for seed, figures in enumerate(found["tokenizers"]):
        tokenizer = image_tokenizer(seed)
        codes = tokenizer.encode_pixels(scale(originals))
        rebuilt = np.rint(127.5 * (np.clip(tokenizer.decode_codes(codes), -1, 1) + 1))
        decibels = 10 * np.log10(255**2 / np.mean((rebuilt - originals) ** 2, axis=(1, 2, 3)))
        share = np.bincount(codes.ravel(), minlength=16) / codes.size
        some = share[share > 0]
        assert figures["model"] == str(models / str(seed))
        assert figures["reconstruction_psnr_db"] == pytest.approx(decibels.mean(), rel=1e-5)
        assert figures["codebook_used"] == np.mean(share > 0)
        assert figures["dead_codes"] == np.sum(share == 0)
        assert figures["codebook_perplexity"] == pytest.approx(np.exp(-np.sum(some * np.log(some))), rel=1e-5)

    shown = check_page(page.read_text())
    alts = [each["alt"] for each in shown.all("img")]
    assert len(alts) == 2 * 3  # the worst and a random one, in three versions
    assert sum(alt.startswith("original: ") for alt in alts) == 2
    assert len(shown.all("svg")) == 4


# ----------------------------------------------------------------------------------------------------------------------
# Pictures of any kind
# ----------------------------------------------------------------------------------------------------------------------


def test_pictures_are_the_same_wherever_they_are(photos, tmp_path):
    lines = "".join(json.dumps(["A picture.", {"image": f"{photos}/{seed}.png"}]) + "\n" for seed in range(3))
    (tmp_path / "lines.jsonl").write_text(lines)
    source = {"kind": "folder", "path": str(photos), "uncaptioned": "keep"}
    other = {"kind": "documents", "path": str(tmp_path / "lines.jsonl"), "count": 1}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"sources": [other], "held_out": [source], "steps": 3}))
    prepare(from_dict(PrepareCommand, {
        "output": str(tmp_path / "kept"), "keep": "pictures", "resolution": 16, "processes": 1, "sources": [source],
    }), None)  # fmt: skip
    (tmp_path / "kept.yaml").write_text(json.dumps({"data": str(tmp_path / "kept")}))
    expected = [np.asarray(random_picture(seed)) for seed in range(3)]
    for data in (photos, *(tmp_path / name for name in ("lines.jsonl", "recipe.yaml", "kept", "kept.yaml"))):
        np.testing.assert_array_equal([square.pixels for square in read_squares(str(data), 16)], expected)
    assert len(list(usable(read_squares(str(photos), 16), "photos", 2))) == 2


def test_pictures_that_cannot_be_read_are_counted(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "9.jpg").write_text("<html>")
    assert len(list(usable(read_squares(str(tmp_path), 16), "photos", 0))) == 2
    assert "warning: pictures that cannot be used: 2; the first is 1.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text/a.txt", "A text.", "text: no pictures were found; expected a folder of them"),
        ("bad/a.png", "<html>", "bad: holds no pictures that can be used; the first is a.png: "),
        ("rows.yaml", "steps: 3", "rows.yaml: expected a list `sources` or `held_out`, or `data`"),
        ("other", "", "none: there is no such file or folder"),
    ],
)
def test_data_without_pictures_is_rejected(tmp_path, name, content, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    data = str(tmp_path / ("none" if name == "other" else name.split("/")[0]))
    with pytest.raises(ChameleonError, match=re.escape(message)):
        list(usable(read_squares(data, 16), data, 0))


def test_mistakes_are_explained_in_a_line(models, photos, tmp_path, capsys):
    tokenizer = image_tokenizer()
    broken = tmp_path / "broken.pth"
    broken.write_text("<html>404</html>")
    smaller = dataclasses.replace(tokenizer.config, resolution=8)
    params = {name: part for name, part in tokenizer.params.items() if name != "decoder"}
    save_image_tokenizer(ImageTokenizer(smaller, tokenizer.params), tmp_path / "small")
    save_image_tokenizer(ImageTokenizer(tokenizer.config, params), tmp_path / "blind")
    for words, message in (
        ((tmp_path / "none", photos), "none: holds no image tokenizer (there is no such file or folder)"),
        ((tmp_path / "blind", photos), "blind: its image tokenizer came without the decoder"),
        ((models / "0", photos, "--compare", tmp_path / "small"), "it has 8 pixels a side, not 16"),
        ((models / "0", photos, "--lpips.vgg", "vgg16.pth"), "lpips.heads = '': must be given too"),
        ((models / "0", photos, "--lpips.vgg", broken, "--lpips.heads", broken), "broken.pth: not a torch checkpoint"),
        ((models / "0", photos, "--output", broken), "broken.pth: is there already; choose another name"),
        ((models / "0", photos, "--inception", broken), "broken.pth: not a torch checkpoint"),
    ):
        assert main(["evaluate-image-tokenizer", *map(str, words)]) != 0
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1


@config
class Counted(SourceConfig):
    """Pictures without end, which are counted when they are read."""

    kind: str = "counted"

    def read_all(self, datasets: str = "") -> Iterator[Record]:
        file = io.BytesIO()
        random_picture(0, (20, 24)).save(file, "PNG")
        while True:
            COUNTED.append(1)
            yield Record(str(len(COUNTED)), f"line {len(COUNTED)}", (Picture("a picture", file.getvalue()),))


COUNTED: list[int] = []


def test_pictures_are_read_only_a_little_ahead():
    squares = squares_of_sources([Counted()], "", 16)
    for number in range(1, 50):
        square = next(squares)
        assert square.name == f"line {number}"
        assert square.pixels.shape == (16, 16, 3)
        assert len(COUNTED) <= number + AHEAD * cores()
    squares.close()
