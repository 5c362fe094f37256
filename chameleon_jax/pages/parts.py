"""What our pages of HTML are made of. A page is one file that needs no other."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from chameleon_jax.display import data_url

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document


def img(image: Image, alt: str, side: int = 64, kind: str = "") -> str:
    """An <img> with the picture inside it, its longer side about `side` CSS pixels: small ones times a whole number."""
    longer = max(image.size)
    times = side // longer or side / longer
    width, height = (max(1, round(times * length)) for length in image.size)
    classes = f"{kind} enlarged" if times > 1 else kind
    label = html.escape(alt, quote=True)
    return (
        f'<img class="{classes.strip()}" alt="{label}" title="{label}" width="{width}" height="{height}" '
        f'src="{data_url(image)}">'
    )


def tile(value: str, name: str, note: str = "") -> str:
    """A figure in large letters; all arguments are HTML."""
    return f"<div class='tile'><b>{value}</b><span>{name}</span><small>{note}</small></div>"


def document(segments: Document, kind: str, side: int = 64) -> str:
    """A document in one line, as in running text; `kind` is "given" or "written"."""
    parts = [
        f"<span>{html.escape(segment)}</span>" if isinstance(segment, str) else img(segment, f"picture, {kind}", side)
        for segment in segments
    ]
    return f"<span class='{kind}'>{''.join(parts)}</span>"


def table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of text, figures to the right. It scrolls where the window is narrow, and shows that it does."""
    rows = [[str(cell) for cell in row] for row in rows]
    kinds = [
        " class='number'" if rows and all(row[column][:1] in "0123456789-" for row in rows) else ""
        for column in range(len(head))
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        inside = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    body = line("th", head) + "".join(line("td", row) for row in rows)
    return f"<div class='scroll' tabindex='0'><table>{body}</table></div>"


class Section(NamedTuple):
    title: str
    text: str
    """A sentence or two, in HTML."""
    body: str
    """HTML."""


@functools.cache
def style_sheet() -> str:
    return (resources.files("chameleon_jax.pages") / "style.css").read_text(encoding="utf-8")


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """A page.

    Args:
      title: text.
      lead: HTML below the title.
      sections: in their order.
      footer: HTML.
    """
    body = "".join(
        f"<section><h2>{html.escape(title)}</h2>{f'<p>{text}</p>' if text else ''}{content}</section>\n"
        for title, text, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style_sheet()}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>{lead}</header>\n<main>\n{body}</main>\n"
        f"<footer>{footer}</footer>\n</body>\n</html>\n"
    )
