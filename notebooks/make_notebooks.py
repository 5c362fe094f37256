"""Makes the notebooks from their sources, executed: `make notebooks`, or `make notebooks ARGS="02 04"`.

A notebook NAME.ipynb is made from NAME.py, in jupytext's percent format, by a fresh kernel in an empty folder with
the models and pictures that the repository ships. Only sources are edited; tests/notebooks holds the pairs together.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))


def read_source(path: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs. The same source always gives the same notebook."""
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return notebook


def execute(path: Path, folder: Path, **environment: str) -> nbformat.NotebookNode:
    """Runs a source in a fresh kernel whose current folder is `folder`, and returns it with its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    for name in ("models", "pictures"):
        (folder / name).symlink_to(HERE / name)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    kernel = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)} | environment
    notebook = read_source(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute(env=kernel)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # of any version
    return notebook


def main() -> None:
    wanted = re.compile("|".join(sys.argv[1:]))
    for path in SOURCES:
        if wanted.match(path.name):
            print(path.stem, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(execute(path, Path(folder)), path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
