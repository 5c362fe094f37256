"""Files beside docs/ as pages of the site, and links to files that are no pages.

Links in Markdown are those that work in the repository. A link to a file outside docs/ becomes one to the page that is
made of it; where there is none, one into the repository if `repo_url` is set, or else plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, file in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return rewritten(markdown, page.file.src_uri, config.repo_url)


def rewritten(markdown: str, page: str, repo_url: str | None = None) -> str:
    """The text of a page with links to where their targets are in the site.

    Args:
      page: its path in docs/, or that which it would have there.
    """
    here = _source(page).parent

    def link(found: re.Match) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        target = PurePosixPath(os.path.normpath(here / path))
        if not (ROOT / target).exists():
            return found[0]  # of a page that is made; MkDocs checks it
        if target.parts[0] == "configs" and target.suffix == ".yaml":
            target, anchor = PurePosixPath("docs/reference/recipes.md"), f"#{recipe_anchor(target)}"
        elif made := _page(target):
            target = PurePosixPath("docs") / made
        if target.parts[0] == "docs":
            return f"[{text}]({os.path.relpath(target, PurePosixPath('docs', page).parent)}{anchor})"
        return f"[{text}]({repo_url.rstrip('/')}/blob/main/{target})" if repo_url else text

    return LINK.sub(link, markdown)


def recipe_anchor(path: PurePath) -> str:
    """The anchor of a YAML file on the page of recipes; `path` begins with configs/."""
    return "-".join(path.with_suffix("").parts[1:]).replace("_", "-")


def _source(page: str) -> PurePosixPath:
    """The file that a page is made of, from the root of the repository."""
    if page in INCLUDED:
        return PurePosixPath(INCLUDED[page])
    notebook = PurePosixPath("notebooks", PurePosixPath(page).stem + ".ipynb")
    return notebook if page.startswith("notebooks/") and (ROOT / notebook).exists() else PurePosixPath("docs", page)


def _page(file: PurePosixPath) -> str | None:
    if file.suffix == ".ipynb":
        return f"notebooks/{file.stem}.md"
    return {"README.md": "index.md"}.get(str(file)) or next(
        (page for page, each in INCLUDED.items() if each == str(file)), None
    )
