"""A bad picture is named and costs its own record only; odd ones are read as what they are. In files of every kind."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import encoded, kept_squares, picture_file
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.console.commands import prepare
from chameleon_jax.document import DocumentError, to_rgb
from chameleon_jax.tokens.image import resize_and_crop
from data_pipeline.records import Picture, Record
from data_pipeline.sources import FolderSource, ParquetSource, SourceConfig, TableSource, WebDatasetSource

PHOTO = random_picture(0, (64, 48))


def folder(root: Path, pictures: dict[str, bytes]) -> SourceConfig:
    for name, data in pictures.items():
        (root / name).write_bytes(data)
        (root / name).with_suffix(".txt").write_text(name)
    return FolderSource(path=str(root))


def table(root: Path, pictures: dict[str, bytes]) -> SourceConfig:
    for name, data in pictures.items():
        (root / name).write_bytes(data)
    (root / "table.csv").write_text("image,text\n" + "".join(f"{name},{name}\n" for name in pictures))
    return TableSource(path=str(root / "table.csv"))


def webdataset(root: Path, pictures: dict[str, bytes]) -> SourceConfig:
    with tarfile.open(root / "pictures.tar", "w") as tar:
        for name, data in pictures.items():
            for member, content in ((name, data), (f"{name.split('.')[0]}.txt", name.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return WebDatasetSource(path=str(root / "pictures.tar"))


def parquet(root: Path, pictures: dict[str, bytes]) -> SourceConfig:
    cells = [{"bytes": data, "path": name} for name, data in pictures.items()]
    pq.write_table(pa.table({"image": cells, "text": list(pictures)}), root / "pictures.parquet")
    return ParquetSource(path=str(root / "pictures.parquet"))


KINDS = (folder, table, webdataset, parquet)


def opened(source: SourceConfig) -> dict[str, Image.Image | str]:
    """What became of the picture of each caption: the picture, or why there is none."""
    found: dict[str, Image.Image | str] = {}
    for record in source.read_all():
        assert isinstance(record, Record), "pictures are not looked at while they are read"
        (picture, caption) = record.segments
        try:
            found[caption] = picture.open(exif=source.exif)
        except DocumentError as error:
            found[caption] = str(error)
    return found


def claiming(data: bytes, place: int, width: int, height: int) -> bytes:
    """A PNG or JPEG file whose header says another size."""
    if data.startswith(b"\x89PNG"):
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


JPEG, PNG, WEBP = encoded(PHOTO, "JPEG"), encoded(PHOTO), encoded(PHOTO, "WEBP", lossless=True)
BAD = {
    "truncated.jpg": (JPEG[:-100], "the picture cannot be decoded: image file is truncated"),
    "truncated.png": (PNG[:-60], "the picture cannot be decoded"),
    "truncated.webp": (WEBP[:-40], "the picture cannot be decoded"),
    "lying.png": (claiming(PNG, 16, 640, 480), "the picture cannot be decoded"),
    "lying.webp": (WEBP[:21] + struct.pack("<I", (3000 - 1) | (2000 - 1) << 14) + WEBP[25:], "cannot be decoded"),
    "empty.jpg": (b"", "the file is empty"),
    "zeros.png": (bytes(1000), "not a picture in a format that can be read"),
    "page.jpg": (b"<html>404 Not Found</html>", "not a picture in a format that can be read"),
    "bomb.png": (claiming(PNG, 16, 60_000, 60_000), "could be decompression bomb"),
    "bomb.jpg": (claiming(JPEG, 0, 65_000, 65_000), "could be decompression bomb"),
    "large.jpg": (claiming(JPEG, 0, 13_000, 13_000), "13,000 x 13,000 pixels; JPEG pictures of up to 109,051,904"),
}


@pytest.mark.parametrize("make", KINDS)
def test_bad_pictures_are_named_and_others_are_read(tmp_path, make: Callable):
    pictures = {"a.png": picture_file(1), **{name: data for name, (data, _) in BAD.items()}, "z.jpg": JPEG}
    pictures = {f"{number:02}-{name}": data for number, (name, data) in enumerate(pictures.items())}
    source = make(tmp_path, pictures)
    first, *found, last = opened(source).items()
    assert first[1].tobytes() == random_picture(1).tobytes()
    assert last[1].size == PHOTO.size
    for number, ((name, reason), (_, message)) in enumerate(zip(found, BAD.values(), strict=True), start=1):
        place = {
            webdataset: f"pictures.tar: {name}: ", parquet: f"pictures.parquet, row {number}, image: "
        }.get(make, f"{tmp_path}/{name}: ")  # fmt: skip
        assert isinstance(reason, str), name
        assert reason.startswith(place)
        assert message in reason
        assert "\n" not in reason


@pytest.mark.parametrize("make", KINDS)
def test_image_tokenizers_learn_from_the_good_ones(tmp_path, make):
    source = make(tmp_path, {"1.png": picture_file(1), "2.png": PNG[:-60], "3.png": picture_file(3), "4.png": b""})
    np.testing.assert_array_equal(kept_squares(source), np.stack([np.asarray(random_picture(seed)) for seed in (1, 3)]))


def test_prepare_counts_bad_pictures_and_keeps_the_others(own_command, tmp_path, capsys):
    """Of every kind of source in one job: what is read is kept or listed."""
    pictures = {"good-1.png": picture_file(1), **{name: data for name, (data, _) in BAD.items()}, "good-2.jpg": JPEG}
    pictures = {f"{number}-{name}": data for number, (name, data) in enumerate(pictures.items())}
    sources = []
    for make in KINDS:
        (tmp_path / make.__name__).mkdir()
        sources.append(make(tmp_path / make.__name__, pictures))
    prepare(dataclasses.replace(own_command, sources=tuple(sources), held_out=(), max_rejected=0.9, processes=1))
    output = Path(own_command.output)
    header = json.loads((output / "dataset.json").read_text())
    said = capsys.readouterr().err
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    for source in sources:
        reasons = [entry["reason"] for entry in rejected if entry["source"].endswith(source.name)]
        for message in (message for _, message in BAD.values()):
            assert any(message in reason for reason in reasons), (source.name, message)
        assert len(reasons) == len(BAD)
        assert f"sources.{source.name}: rejected 2: not a picture in a format that can be read" in said
        assert header["sources"][source.name]["documents"] == header["sources"][source.name]["pictures"] == 2


@pytest.mark.parametrize("make", KINDS)
def test_odd_pictures_are_read_as_what_they_are(tmp_path, make):
    grey = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096)
    frames = [random_picture(seed) for seed in range(3)]
    animation = lambda kind: encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)  # noqa: E731
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    strip = random_picture(0, (1, 10_000))
    source = make(
        tmp_path,
        {
            "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"), "deep.png": encoded(grey),
            "film.webp": animation("WEBP"), "film2.png": animation("PNG"), "strip.png": encoded(strip),
            "turned.jpg": encoded(PHOTO, "JPEG", exif=exif), "lying.jpg": claiming(JPEG, 0, 640, 480),
        },
    )  # fmt: skip
    found = opened(source)
    assert to_rgb(found["cmyk.jpg"]).size == PHOTO.size
    assert np.asarray(to_rgb(found["deep.png"]))[..., 0].ravel().tolist() == [16 * value for value in range(16)]
    assert to_rgb(found["film.webp"]).tobytes() == frames[0].tobytes(), "the first frame"
    assert to_rgb(found["film2.png"]).tobytes() == frames[0].tobytes()
    assert found["strip.png"].tobytes() == strip.tobytes()
    assert resize_and_crop(found["strip.png"], 16).size == (16, 16)
    assert found["turned.jpg"].size == PHOTO.size[::-1]
    assert found["lying.jpg"].size == (640, 480), "what is missing is grey, as in any viewer"


@pytest.mark.parametrize("make", KINDS)
def test_pictures_are_turned_unless_told_not_to(tmp_path, make):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = make(tmp_path, {"turned.jpg": encoded(PHOTO, "JPEG", exif=exif)})
    unturned = type(source)(path=source.path, exif=False)
    assert opened(source)["turned.jpg"].size == PHOTO.size[::-1]
    assert opened(unturned)["turned.jpg"].size == PHOTO.size


def test_missing_file_is_named(tmp_path):
    source = table(tmp_path, {"a.png": picture_file(1), "b.png": picture_file(2)})
    (tmp_path / "a.png").unlink()
    found = opened(source)
    assert found["a.png"] == f"{tmp_path}/a.png: no such picture file"
    assert found["b.png"].tobytes() == random_picture(2).tobytes()


@pytest.mark.parametrize("name", ["..", "/dev/zero", "a\0b.png", "x" * 300])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name):
    (tmp_path / "table.csv").write_text(f"image,text\n{name},what\n")
    (reason,) = opened(TableSource(path=str(tmp_path / "table.csv"))).values()
    assert isinstance(reason, str)


def test_pictures_stay_encoded_until_they_are_opened(tmp_path):
    source = folder(tmp_path, {"a.png": b"not looked at"})
    (record,) = source.read_all()
    assert record.segments[0] == Picture(str(tmp_path / "a.png"))
    assert record.segments[0].read() == b"not looked at"
