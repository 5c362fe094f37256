"""`chameleon chat`: a conversation with a model in the terminal."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chameleon_jax.chameleon import load
from chameleon_jax.config import GenerationConfig
from chameleon_jax.console.generate import Printer
from chameleon_jax.document import Document, open_image
from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.progress import console

HELP = (
    "/image FILE adds a picture to what you say next, and so does the path of a picture inside the text. /new begins "
    "again. Ctrl-C stops an answer, Ctrl-D ends."
)
_PATH = re.compile(
    r"""'([^']+)'|"([^"]+)"|((?:\\.|[^\s'"\\])+)""",
)
_PICTURE = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")
"""How the names of files of `document.FORMATS` end."""


def chat(config: GenerationConfig, *, model: str, output: str, adapters: str, template: str) -> dict[str, Any]:
    """Answers line by line until the end of standard input."""
    printer = Printer(output)
    opened = load(model, adapters=adapters or None)
    opened.drop_params()
    begin = functools.partial(opened.chat, config, template=template or None)
    conversation, pictures = begin(), []
    if sys.stdin.isatty():
        console.print(HELP)
    for line in _lines():
        command, _, argument = line.strip().partition(" ")
        try:
            match command:
                case "/image":
                    pictures.append(open_image(_unquoted(argument.strip())))
                case "/new":
                    conversation, pictures = begin(), []
                case "/help":
                    console.print(HELP)
                case "" if not pictures:
                    pass
                case _:
                    stream = conversation.stream([*pictures, *parse_line(line)])
                    with ctrl_c_calls(stream.cancel):
                        printer.follow(stream)
                    pictures = []
        except ChameleonError as error:
            print(f"chameleon chat: {error}", file=sys.stderr)
    return {}


def _lines() -> Iterator[str]:
    """What is typed. Ctrl-C takes back a line."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return


def parse_line(line: str) -> Document:
    """Text in which the paths of pictures are replaced by the pictures; they may be quoted as in a shell.

    Raises:
      DocumentError: if a path with a folder in it names no picture.
    """
    document: Document = []
    start = 0
    for match in _PATH.finditer(line):
        path = _unquoted(match[0])
        if path.lower().endswith(_PICTURE) and ("/" in path or Path(path).is_file()):
            document += [line[start : match.start()], open_image(path)]
            start = match.end()
    return [segment for segment in [*document, line[start:]] if segment != ""]


def _unquoted(path: str) -> str:
    """A path as it was meant: quotes and backslashes are a shell's, ~ is the home of the user."""
    if path[:1] in ("'", '"') and path[-1:] == path[:1] and len(path) > 1:
        path = path[1:-1]
    else:
        path = re.sub(r"\\(.)", r"\1", path)
    return str(Path(path).expanduser())


@contextlib.contextmanager
def ctrl_c_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Makes Ctrl-C call `stop`, once; a second time it interrupts as always."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_ctrl_c(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
