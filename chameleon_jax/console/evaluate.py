"""`chameleon evaluate-image-tokenizer`: measures one or two image tokenizers on pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_jax.config import ConfigError, EvaluateImageTokenizerCommand, from_dict, require
from chameleon_jax.config.yaml_files import read_yaml
from chameleon_jax.console.data import in_columns
from chameleon_jax.errors import FileError
from chameleon_jax.evaluation.image_tokenizer import Measured, evaluate_image_tokenizers
from chameleon_jax.project.look import propose
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.files import write_text
from chameleon_jax.runtime.folders import Kind, check_file
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.image import ImageTokenizer, NoImageDecoder
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer
from chameleon_jax.weights.inception import read_inception
from chameleon_jax.weights.lpips import read_lpips

if TYPE_CHECKING:
    from data_pipeline.records import Rejected
    from data_pipeline.squares import Square

_CAPTIONED = ("folder", "table", "webdataset", "parquet")
PAGE = Kind(
    "a page of this command", lambda path: b"chameleon evaluate-image-tokenizer</code>" in path.read_bytes()[-200:]
)


def evaluate_image_tokenizer(config: EvaluateImageTokenizerCommand, *, model: str, data: str) -> dict[str, Any]:
    """Measures the image tokenizer of a model, and with `compare` a second one. Writes a page if `output` is given.

    Returns:
      The figures of one tokenizer; with `compare` or `json` they are printed here.
    """
    if config.output:
        import matplotlib  # noqa: F401 - what the page needs is missed before the work, not after it

        check_file(config.output, PAGE)
    names = [model, config.compare] if config.compare else [model]
    tokenizers = [_open(name) for name in names]
    sides = [tokenizer.config.resolution for tokenizer in tokenizers]
    same = f"must have the resolution of {model}: it has {sides[-1]} pixels a side, not {sides[0]}"
    require(sides[0] == sides[-1], "compare", config.compare, same)
    lpips = read_lpips(config.lpips.vgg, config.lpips.heads) if config.lpips.vgg else None
    inception = read_inception(config.inception) if config.inception else None
    squares = usable(read_squares(data, sides[0]), data, config.count)
    measured = evaluate_image_tokenizers(tokenizers, squares, lpips=lpips, inception=inception, samples=config.samples)
    if config.output:
        from chameleon_jax.pages.reconstructions import reconstructions_page

        write_text(config.output, reconstructions_page(measured, names, data))
    return _results(config, names, measured)


def _results(config: EvaluateImageTokenizerCommand, names: list[str], measured: Measured) -> dict[str, Any]:
    page = {"page": config.output} if config.output else {}
    if config.json:
        figures = [{"model": name, **figures} for name, figures in zip(names, measured.figures, strict=True)]
        print(json.dumps({"pictures": measured.pictures, "tokenizers": figures, **page}, indent=2))
        return {}
    first, *others = measured.figures
    if not others:
        return {"pictures": measured.pictures, **first, **page}
    rows = [(name, *(f"{figures[name]:.4g}" for figures in measured.figures)) for name in first]
    print(in_columns([(f"{measured.pictures:,} pictures", *names), *rows]))
    return page


def _open(name: str) -> ImageTokenizer:
    tokenizer = read_image_tokenizer(name)
    if not tokenizer.can_decode:
        raise NoImageDecoder(f"{name}: its image tokenizer came without the decoder, so it cannot be measured")
    return tokenizer


def read_squares(data: str, side: int) -> Iterator[Square | Rejected]:
    """The pictures that DATA means: of a YAML file those held out, if any are.

    Raises:
      FileError, ConfigError: if there is nothing of the kind.
    """
    from data_pipeline.sources import SourceConfig
    from data_pipeline.squares import squares_of_prepared, squares_of_sources

    datasets = "out/datasets"
    if data.endswith((".yaml", ".yml")):
        values = read_yaml(data)
        values = values if isinstance(values, dict) else {}
        if values.get("data"):
            return squares_of_prepared(str(values["data"]), side)
        part = "held_out" if values.get("held_out") else "sources"
        entries = values.get(part)
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"{data}: expected a list `sources` or `held_out`, or `data` with a folder of pictures")
        sources = [from_dict(SourceConfig, each, f"{data}: {part}.{nth}") for nth, each in enumerate(entries)]
        datasets = str(values.get("datasets", datasets))
    elif (as_path(data) / "dataset.json").is_file():
        return squares_of_prepared(data, side)
    else:
        sources = [from_dict(SourceConfig, each) for each in _find(data)]
    return squares_of_sources(sources, datasets, side)


def _find(data: str) -> list[dict[str, Any]]:
    """The sources that read what is in a folder, or a file. Pictures need no captions here."""
    if not Path(data).exists():
        raise FileError(f"{data}: there is no such file or folder; what lies elsewhere is named in a YAML file")
    found = [
        source | ({"uncaptioned": "keep"} if source["kind"] in _CAPTIONED else {})
        for source, _ in propose(Path(data).absolute())
        if source["kind"] != "text"
    ]
    if not found:
        raise ConfigError(
            f"{data}: no pictures were found; expected a folder of them, JSON lines or a table that name them, tars, "
            "Parquet, a folder of `chameleon prepare` with keep: pictures, or a YAML file with a list of `sources`"
        )
    return found


def usable(squares: Iterable[Square | Rejected], data: str, limit: int) -> Iterator[Square]:
    """The pictures that can be used, up to `limit` if it is not 0. Says at the end how many cannot be.

    Raises:
      ConfigError: if there are none.
    """
    from data_pipeline.squares import Square

    used = unusable = 0
    first = ""
    for square in squares:
        if isinstance(square, Square):
            used += 1
            yield square
        else:
            unusable += 1
            first = first or f"{square.place}: {square.reason}"
        if limit and used == limit:
            break
    if not used:
        raise ConfigError(f"{data}: holds no pictures{f' that can be used; the first is {first}' if first else ''}")
    if unusable:
        console.print(f"warning: pictures that cannot be used: {unusable:,}; the first is {first}")
