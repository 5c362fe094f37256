"""The site stands alone: it has the colours of our other pages, and loads nothing from elsewhere.

A build whose pages would fetch a script, a font or a picture from the network fails.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {"href": ("link",), "src": (), "srcset": (), "poster": (), "data": ("object",)}
"""Attributes whose address a browser fetches by itself, and on which tags; on all if none are named."""


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev", "alternate"):
            return
        self.found += [
            values[name] or "" for name, tags in FETCHED.items() if name in values and (not tags or tag in tags)
        ]


def fetched_from_elsewhere(site: Path) -> list[str]:
    """Addresses on the network that the pages and style sheets of a site would fetch, as "file: address"."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            parser = _Addresses()
            parser.feed(path.read_text(encoding="utf-8"))
            addresses = parser.found
        elif path.suffix == ".css":
            addresses = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", path.read_text(encoding="utf-8"))
        else:
            continue
        found += [f"{path.relative_to(site)}: {each}" for each in addresses if re.match(r"(?:https?:)?//", each)]
    return found


def on_post_build(config: MkDocsConfig) -> None:
    site = Path(config.site_dir)
    colours = (ROOT / "chameleon_jax/pages/style.css").read_text(encoding="utf-8").split("\n\n")[0]
    style = site / "site.css"
    style.write_text(f"{colours}\n{style.read_text(encoding='utf-8')}", encoding="utf-8")
    if found := fetched_from_elsewhere(site):
        raise PluginError("\n".join(["the site must load nothing from elsewhere:", *found]))
