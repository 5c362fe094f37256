"""Reads a page as strictly as no browser does."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}
ADDRESSES = {"src", "srcset", "href", "xlink:href", "action", "poster", "data", "cite"}


class Page(HTMLParser):
    """A page, whose elements are all closed in order.

    Attributes:
      elements: tag and attributes of each, in order.
      texts: tag and text of each text that is not blank, in order.
    """

    def __init__(self, source: str):
        super().__init__()
        self.source, self.elements, self.texts, self._open = source, [], [], []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {self.get_starttag_text()[:200]}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self._open, f"<{tag}/> outside a drawing"
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        """The attributes of all elements with one of these tags."""
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text_of(self, tag: str) -> list[str]:
        return [text for own, text in self.texts if own == tag]


def check_page(source: str, links: tuple[str, ...] = (), scripts: int = 0) -> Page:
    """A page that needs no other file and no network, and that can be read aloud; with links to `links` alone, and so
    many scripts inside."""
    page = Page(source)
    assert source.startswith("<!doctype html>")
    assert [each.get("lang") for each in page.all("html")] == ["en"]
    assert {"viewport"} <= {each.get("name") for each in page.all("meta")}
    assert page.text_of("title") == page.text_of("h1")

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels

    for image in page.all("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert image["alt"]
        assert int(image["width"]) > 0 < int(image["height"])
    assert all(each.get("role") == "img" and each.get("aria-label") for each in page.all("svg"))

    (style,) = page.text_of("style")
    assert not page.all("link", "iframe", "base")
    assert page.all("script") == [{}] * scripts
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids)), "an id twice"
    addresses = [each[name] for _, each in page.elements for name in ADDRESSES & each.keys()]
    addresses += re.findall(r"url\(\s*[\"']?([^\"')]+)", source)
    inside = {f"#{each}" for each in ids}
    assert {each for each in addresses if not each.startswith("data:")} <= inside | set(links)
    assert "@import" not in style

    classes = {name for tag, each in page.elements for name in (each.get("class") or "").split()}
    assert classes <= set(re.findall(r"\.([a-z][\w-]*)", style)), "classes without a rule"
    assert set(re.findall(r"var\((--[\w-]+)\)", source)) <= set(re.findall(r"(--[\w-]+):", style))
    return page
