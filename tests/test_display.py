"""Documents in a notebook: text is shown as it is, pictures are in the page."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image
from tiny_models import random_picture

from chameleon_jax.generation.answer import Answer


class Page(HTMLParser):
    """Texts and pictures of a page in order, as a browser would show them."""

    def __init__(self, source: str):
        super().__init__()
        self.shown: list = []
        self.feed(source)

    def handle_data(self, data):
        self.shown.append(data)

    def handle_starttag(self, tag, attributes):
        assert tag in ("div", "span", "img")
        if tag == "img":
            found = dict(attributes)
            assert found["alt"]
            content = re.fullmatch("data:image/png;base64,(.*)", found["src"])[1]
            size = int(found["width"]), int(found["height"])
            self.shown.append((Image.open(io.BytesIO(base64.b64decode(content))), size, found["style"]))


def test_page_shows_text_as_it_is_and_small_pictures_enlarged():
    answer = Answer(["<script>alert(1)</script> & \n two", random_picture(1, (16, 12)), random_picture(2, (400, 300))])
    text, (small, size, style), (large, size_of_large, style_of_large) = Page(answer._repr_html_()).shown
    assert text == answer[0]
    assert (small.tobytes(), size) == (answer[1].tobytes(), (192, 144))
    assert "image-rendering: pixelated" in style
    assert (large.tobytes(), size_of_large) == (answer[2].tobytes(), (400, 300))
    assert "pixelated" not in style_of_large
    assert "max-width: 100%; height: auto" in style_of_large  # no wider than the page, and not squeezed


def test_answer_is_a_document():
    picture = random_picture(1)
    answer = Answer(["It is ", picture, "a fox"])
    assert answer == ["It is ", picture, "a fox"]
    assert (answer.text, answer.pictures) == ("It is a fox", [picture])
