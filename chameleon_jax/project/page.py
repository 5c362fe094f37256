"""The page that `chameleon run` ends with."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.pages.parts import Section, document, img, page, table, tile
from chameleon_jax.project.samples import Sample, write_samples
from chameleon_jax.runtime.files import write_text
from chameleon_jax.training.metrics import read_metrics

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.project.run import Project

MARKED = "<span class='written'>marked</span>"


def write_report(
    path: Path, model: Chameleon, project: Project, samples: int, stages: dict[str, Any]
) -> dict[str, float]:
    """Writes the page. Returns the losses on the held-out sources."""
    held_out, train = project.prepare.held_out, project.train
    guided = any(source.form.drop_text for source in project.prepare.sources)
    written = write_samples(model, held_out, project.prepare.datasets, samples, 3.0 if guided else 1.0)
    lines = read_metrics(Path(train.output) / "metrics.jsonl")
    losses = _losses(lines, train.checkpoint.best)
    sections = [
        *_section("It draws", "Drawings for held-out captions, each beside the real picture.",
                  _drawings(written.drawings)),
        *_section("It reads pictures", "Held-out pictures, and what the image tokenizer rebuilds from their codes. In "
                  "bold the caption that the model writes, in grey the real one.", _captions(model, written.captions)),
        *_section("It answers", f"Held-out conversations: the first turn, and its answer {MARKED}.",
                  _continuations(written.answers)),
        *_section("It writes", f"Held-out texts, and its continuations {MARKED}.", _continuations(written.prose)),
        Section("How it learnt", _how_it_learnt(lines, train.checkpoint.best), _curves(lines, project)),
        Section("How long it took", "", _stage_table(stages)),
    ]  # fmt: skip
    kinds = {"text_loss": "text", "image_loss": "pictures"}
    tiles = "".join(
        tile(f"{value:.2f}", f"loss on {kinds[loss]} of {html.escape(source)}", "held out, nats per token")
        for (_, source, loss), value in ((name.split("."), value) for name, value in losses.items())
    )
    what = "text and pictures" if project.image else "text"
    lead = (
        f"<p>One Transformer that reads and writes {what}, trained from scratch on "
        f"{html.escape(', '.join(source.name for source in project.prepare.sources))}.</p>"
        f"<div class='tiles'>{tiles}</div>"
    )
    footer = (
        "Written by <code>chameleon run</code>, which skips finished stages; after a change in a YAML file it repeats "
        "the stages that depend on it. <a href='data.html'>The rows it was trained on</a>. To ask the model for more: "
        f"<code>chameleon generate {html.escape(str(train.output))} …</code>"
    )
    write_text(path, page("A Chameleon of your own", lead, sections, footer))
    return losses


def _section(title: str, text: str, body: str) -> list[Section]:
    return [Section(title, text, body)] if body else []


def _figure(pictures: Sequence[tuple[str, Image]], text: str, caption: str) -> str:
    """Pictures of the same thing, which `text` describes; `caption` is HTML."""
    inside = "".join(f"<div>{img(image, f'{name}: {text}', 150)}{name}</div>" for name, image in pictures)
    return f"<figure><div class='pictures'>{inside}</div><figcaption>{caption}</figcaption></figure>"


def _gallery(figures: Sequence[str]) -> str:
    return f"<div class='gallery'>{''.join(figures)}</div>" if figures else ""


def _text(document: Sequence[Any]) -> str:
    return "".join(segment for segment in document if isinstance(segment, str)).strip()


def _square(model: Chameleon, image: Image) -> Image:
    """A picture as the image tokenizer is given it."""
    from chameleon_jax.tokens.image import to_square

    tokenizer = model.tokenizer.image
    return to_square(image, tokenizer.config.resolution, tokenizer.preprocessing)


def _drawings(samples: Sequence[Sample]) -> str:
    from chameleon_jax.tokens.image import resize_and_crop

    figures = []
    for sample in samples:
        drawn = next((segment for segment in sample.written if not isinstance(segment, str)), None)
        if drawn is not None:
            real = resize_and_crop(sample.truth[0], drawn.width)
            text = _text(sample.prompt)
            figures.append(_figure([("drawn", drawn), ("real", real)], text, html.escape(text)))
    return _gallery(figures)


def _captions(model: Chameleon, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    images = [_square(model, sample.prompt[-1]) for sample in samples]
    rebuilt = model.detokenize_images(model.tokenize_images(images))
    figures = []
    for sample, image, again in zip(samples, images, rebuilt, strict=True):
        text = _text(sample.truth)
        caption = f"<b>{html.escape(_text(sample.written))}</b><br>{html.escape(text)}"
        figures.append(_figure([("real", image), ("rebuilt", again)], text, caption))
    return _gallery(figures)


def _continuations(samples: Sequence[Sample]) -> str:
    return "".join(
        f"<div class='card prose'>{document(sample.prompt, 'given', 128)} "
        f"{document(sample.written, 'written', 128)}</div>"
        for sample in samples
    )


def _measured(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (line for line in lines if "held_out" in line)


def _best(lines: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The evaluation whose step the model is of: the one with the lowest loss of that name, or the last."""
    measured = list(_measured(lines))
    if not key:
        return measured[-1] if measured else None
    _, source, loss = key.split(".")
    measured = [line for line in measured if loss in line["held_out"].get(source, {})]
    return min(measured, key=lambda line: line["held_out"][source][loss], default=None)


def _losses(lines: Sequence[dict[str, Any]], best: str) -> dict[str, float]:
    """Losses of the model on the held-out sources, "held_out.NAME.text_loss" and so on."""
    line = _best(lines, best)
    return {
        f"held_out.{source}.{name}": value
        for source, losses in (line["held_out"] if line else {}).items()
        for name, value in losses.items()
        if name in ("text_loss", "image_loss")
    }


def _how_it_learnt(lines: Sequence[dict[str, Any]], best: str) -> str:
    line = _best(lines, best)
    if not best or line is None:
        return ""
    return f"The model is the checkpoint of step {line['step']:,}, where <code>{html.escape(best)}</code> was lowest."


def _curves(lines: Sequence[dict[str, Any]], project: Project) -> str:
    try:
        from chameleon_jax.pages import charts

        names = [source.name for source in project.prepare.held_out]
        held_out = [
            (name, loss, f"{name}, held-out {what}")
            for name in names
            for loss, what in (("text_loss", "text"), ("image_loss", "pictures"))
        ]
        curves = charts.loss_curves(lines, held_out)
        if project.image:
            curves += charts.tokenizer_curve(read_metrics(Path(project.image.output) / "metrics.jsonl"))
        return curves
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return "<p class='hint'>Charts need matplotlib: pip install 'chameleon-jax[demo]'</p>"


def _stage_table(stages: dict[str, Any]) -> str:
    rows = [(title, f"{stage['seconds']:.0f} s") for title, stage in stages.items() if stage["finished"]]
    return table(("stage", "time"), rows)
