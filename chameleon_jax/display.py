"""Documents as pages of a notebook: text as it was written, pictures inside, small ones enlarged."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document

SMALL = 192
"""Pictures whose longer side has fewer pixels are enlarged by a whole number, to about this many."""


def to_html(document: Document) -> str:
    """A document as HTML that needs nothing else: text escaped, pictures as data URLs."""
    parts = [_text(segment) if isinstance(segment, str) else picture_html(segment) for segment in document]
    return f"<div>{''.join(parts)}</div>"


def _text(text: str) -> str:
    return f'<span style="white-space: pre-wrap">{html.escape(text)}</span>'


def picture_html(image: Image) -> str:
    """A picture as an `img` element; the pixels of small ones stay sharp squares."""
    times = max(1, SMALL // max(image.size))
    sharp = "; image-rendering: pixelated" if times > 1 else ""
    style = f"display: inline-block; vertical-align: middle; margin: 2px; max-width: 100%; height: auto{sharp}"
    return (
        f'<img alt="picture" src="{data_url(image)}" width="{image.width * times}" height="{image.height * times}" '
        f'style="{style}">'
    )


def data_url(image: Image) -> str:
    """A picture as PNG inside a URL."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
