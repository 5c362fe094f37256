"""Notebooks as pages: their text, their code, and the outputs that are stored in them. Nothing is run."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        pictures: list[bytes] = []
        text = "\n\n".join(_cell(cell, f"{path.stem}_", pictures) for cell in cells)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for number, picture in enumerate(pictures):
            files.append(File.generated(config, f"notebooks/{path.stem}_{number}.png", content=picture))
    return files


def _cell(cell: dict, prefix: str, pictures: list[bytes]) -> str:
    source = _text(cell["source"])
    if cell["cell_type"] != "code":
        return source
    shown = [f"```python\n{source}\n```"] if source.strip() else []
    outputs = [_output(output, prefix, pictures) for output in cell["outputs"]]
    if outputs:
        shown.append('<div class="output">\n{}\n</div>'.format("\n".join(outputs)))
    return "\n\n".join(shown)


def _output(output: dict, prefix: str, pictures: list[bytes]) -> str:
    """An output as HTML without blank lines, at which Markdown would end it."""
    if output["output_type"] == "stream":
        return _plain(_text(output["text"]))
    data = output["data"]
    if "image/png" in data:
        pictures.append(base64.b64decode(_text(data["image/png"])))
        return f'<img src="{prefix}{len(pictures) - 1}.png" alt="what the code above draws">'
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", _text(data["text/html"]))
    return _plain(_text(data["text/plain"]))


def _plain(text: str) -> str:
    return '<pre class="text">{}</pre>'.format(html.escape(text.rstrip()).replace("\n", "&#10;"))


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
