"""A page of pictures beside what image tokenizers make of them, with the figures over all of them."""

from __future__ import annotations

import html
from collections.abc import Sequence

from chameleon_jax.evaluation.image_tokenizer import Example, Measured
from chameleon_jax.pages import charts
from chameleon_jax.pages.parts import Section, img, page, table

SIDE = 256
"""CSS pixels of a picture on a wide window."""
_SAID = {
    "reconstruction_psnr_db": ("PSNR, dB", "higher is better"),
    "ssim": ("SSIM", "higher is better, up to 1"),
    "lpips": ("LPIPS", "lower is better"),
    "rfid": ("rFID", "lower is better, for the same pictures"),
    "codebook_used": ("share of codes used", "1 if none is dead"),
    "codebook_perplexity": ("perplexity of the codes", "higher is better, up to the number of codes"),
    "dead_codes": ("codes never used", ""),
}
_FIGURES = (
    "Of pictures in 8 bits. PSNR, SSIM (Wang et al. 2004, in windows of 11 × 11, each colour on its own) and LPIPS are "
    "means over the pictures; rFID is the Fréchet distance between the Inception features of pictures and "
    "reconstructions, resized as pytorch-fid does."
)


def reconstructions_page(measured: Measured, names: Sequence[str], data: str) -> str:
    """The page as HTML.

    Args:
      names: of the tokenizers. Of paths, the page shows as many of the last parts as tell them apart.
      data: where the pictures are from.
    """
    labels = _labels(names)
    rows = [(*_SAID[key], *(f"{figures[key]:.4g}" for figures in measured.figures)) for key in measured.figures[0]]
    use = "".join(
        f"<h3>{html.escape(name)}</h3>" * (len(names) > 1) + charts.code_use(counts, name)
        for name, counts in zip(labels, measured.counts, strict=True)
    )
    order = " | ".join(("original", *map(html.escape, labels)))
    sections = [
        Section("Figures", _FIGURES, table(("figure", "", *labels), rows)),
        Section(
            "The worst", f"The lowest PSNR of {html.escape(labels[0])}: {order}.", _gallery(measured.worst, labels)
        ),
        Section("At random", f"{order}.", _gallery(measured.random, labels)),
        Section("How the codes are used", "Over all pictures.", use),
    ]
    what = " and ".join(f"<code>{html.escape(name)}</code>" for name in names)
    what += " makes" if len(names) == 1 else " make"
    lead = f"<p>What {what} of {measured.pictures:,} pictures from <code>{html.escape(data)}</code>.</p>"
    footer = "Written by <code>chameleon evaluate-image-tokenizer</code>."
    return page("Pictures and their reconstructions", lead, sections, footer)


def _labels(names: Sequence[str]) -> list[str]:
    """Short enough for a column in a narrow window."""
    paths = [name.rstrip("/").split("/") for name in names]
    for count in range(1, max(map(len, paths))):
        labels = ["/".join(path[-count:]) for path in paths]
        if len(set(labels)) == len(names):
            return labels
    return list(names)


def _gallery(examples: Sequence[Example], names: Sequence[str]) -> str:
    return f"<div class='gallery of-digits'>{''.join(_example(each, names) for each in examples)}</div>"


def _example(example: Example, names: Sequence[str]) -> str:
    from PIL import Image

    def version(pixels, alt: str, said: str) -> str:
        return f"<div>{img(Image.fromarray(pixels), alt, SIDE)}<small>{html.escape(said)}</small></div>"

    versions = version(example.original, f"original: {example.name}", "original")
    for name, pixels, decibels in zip(names, example.reconstructions, example.psnr_db, strict=True):
        versions += version(pixels, f"reconstruction by {name}, {decibels:.1f} dB", f"{decibels:.1f} dB")
    caption = f"<figcaption>{html.escape(example.name)}</figcaption>"
    return f"<figure><div class='versions'>{versions}</div>{caption}</figure>"
