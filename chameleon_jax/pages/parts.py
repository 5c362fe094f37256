"""What our pages of HTML are made of. A page is one file that refers to no other."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document

CSS = """
:root { --ink: #22302b; --soft: #5d6b64; --paper: #fbfcfa; --card: #ffffff; --line: #e3e8e4; --leaf: #1f7a5c;
  --leaf-soft: #e2f2ea; --amber: #c2571a; --amber-soft: #fbe9dd; --red: #c23b3b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, "Segoe UI", Helvetica, Arial,
  sans-serif; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 56px; }
h1 { font-size: 40px; line-height: 1.15; margin: 0 0 12px; letter-spacing: -0.02em; }
header > p { font-size: 19px; color: var(--soft); max-width: 760px; margin: 0 0 28px; }
h2 { font-size: 24px; margin: 0 0 6px; letter-spacing: -0.01em; }
section { margin: 56px 0; }
section > p { color: var(--soft); max-width: 760px; margin: 0 0 16px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  display: flex; flex-direction: column; }
.tile b { font-size: 28px; line-height: 1.2; color: var(--leaf); letter-spacing: -0.02em; }
.tile span { font-weight: 600; font-size: 14px; }
.tile small { color: var(--soft); font-size: 12.5px; }
img { image-rendering: auto; border-radius: 4px; background: #fff; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; margin: 10px 0;
  font-size: 18px; }
.card img.inline { width: 56px; height: 56px; vertical-align: middle; margin: 3px 6px; border: 1px solid var(--line); }
.card.prose { font: 13.5px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; white-space: pre-wrap; }
.given { color: var(--soft); }
.written { background: var(--leaf-soft); border-radius: 5px; padding: 2px 3px; color: var(--ink);
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 12px; }
.strip i { font: 12.5px/1.3 ui-monospace, Menlo, Consolas, monospace; font-style: normal; padding: 4px 6px;
  border-radius: 5px; }
.strip .text { background: var(--leaf-soft); color: var(--leaf); }
.strip .image { background: var(--amber-soft); color: var(--amber); }
.strip .special { background: #eceeec; color: var(--soft); }
.count { font-size: 14px; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; }
.answers figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px;
  text-align: center; }
.answers img { width: 46px; height: 46px; margin: 0 2px; }
.answers figcaption { font-size: 12.5px; line-height: 1.3; color: var(--soft); }
.answers .wrong { border-color: var(--red); background: #fdf3f3; }
.answers .wrong figcaption { color: var(--red); }
.drawings { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; }
.drawings .row { display: flex; align-items: center; gap: 3px; min-width: 960px; }
.drawings .row span { width: 56px; font-size: 13px; color: var(--soft); }
.drawings img { width: 42px; height: 42px; border: 2px solid transparent; }
.drawings img.bad { border-color: var(--red); }
.pairs { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; margin-bottom: 18px; }
.pairs div { display: flex; gap: 4px; min-width: 980px; margin: 6px 0; }
.pairs img { width: 46px; height: 46px; }
svg { width: 100%; height: auto; display: block; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 18px 0; }
th { text-align: left; font-weight: 600; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
footer { color: var(--soft); font-size: 13.5px; padding-bottom: 48px; }
.hint { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
.wide td, .wide th { white-space: nowrap; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 12px; }
.gallery figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px; }
.gallery .pictures { display: flex; gap: 6px; }
.gallery .pictures div { flex: 1; font-size: 12px; color: var(--soft); }
.gallery .pictures img { width: 100%; display: block; border: 1px solid var(--line); }
.gallery figcaption { font-size: 13.5px; line-height: 1.4; margin-top: 8px; overflow-wrap: anywhere; }
@media (max-width: 760px) { .tiles { grid-template-columns: repeat(2, 1fr); } h1 { font-size: 30px; } }
"""


def img(image: Image, kind: str = "", title: str = "") -> str:
    """An <img> with the picture inside it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    label = html.escape(title, quote=True)
    return f'<img class="{kind}" alt="{label}" title="{label}" src="data:image/png;base64,{data}">'


def tile(value: str, name: str, note: str = "") -> str:
    """A figure in large letters; all arguments are HTML."""
    return f"<div class='tile'><b>{value}</b><span>{name}</span><small>{note}</small></div>"


def document(segments: Document, kind: str) -> str:
    """A document in one line, as in running text."""
    parts = [
        f"<span>{html.escape(segment)}</span>" if isinstance(segment, str) else img(segment, "inline")
        for segment in segments
    ]
    return f"<span class='{kind}'>{''.join(parts)}</span>"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of text."""
    heading = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{heading}</tr>{body}</table>"


class Section(NamedTuple):
    title: str
    text: str
    """A sentence or two, in HTML."""
    body: str
    """HTML."""


def page(title: str, lead: str, sections: Sequence[Section], footer: str, style: str = "") -> str:
    """A page.

    Args:
      title: text.
      lead: HTML below the title.
      sections: in their order.
      footer: HTML.
      style: CSS of this page alone.
    """
    body = "".join(
        f"<section><h2>{html.escape(each.title)}</h2><p>{each.text}</p>{each.body}</section>\n" for each in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>{lead}</header>\n<main>\n{body}</main>\n"
        f"<footer>{footer}</footer>\n</body>\n</html>\n"
    )
