"""`chameleon generate`: what a model writes after a prompt, as it comes."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_jax.chameleon import load
from chameleon_jax.config import GenerateOptions, GenerationConfig, require
from chameleon_jax.console.terminal import can_show_images, half_blocks, steers_nothing, write_picture
from chameleon_jax.document import DocumentError, open_image, parse_prompt
from chameleon_jax.generation.events import Finished, PictureDone, PictureProgress, TextPiece
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.folders import check_writable
from chameleon_jax.runtime.progress import Bar, progress_bar
from chameleon_jax.runtime.reading import read_bytes
from chameleon_jax.tokens.text import LONGEST_TEXT

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.generating import Stream
    from chameleon_jax.generation.answer import Answer

LARGEST_PROMPT = 4 * LONGEST_TEXT
"""Bytes of a prompt in a file or from standard input; a character has up to 4."""


def generate(
    config: GenerationConfig,
    options: GenerateOptions,
    *,
    model: str,
    prompt: str,
    image: Sequence[str],
    output: str,
    adapters: str,
) -> dict[str, Any]:
    """Continues a prompt: prints text as it comes, writes pictures as PNG files into `output` and shows them if it
    can."""
    document = parse_prompt(_prompt(prompt, options.prompt_file), [open_image(file) for file in image])
    printer = Printer(output, quiet=options.json)
    # The model and its parameters are freed at once: streams have the weights that decode.
    streams = load(model, adapters=adapters or None).streams(document, config, n=options.n)
    answers = []
    for number, stream in enumerate(streams, start=1):
        if options.n > 1 and not options.json:
            print(f"[{number} of {options.n}]")
        answers.append(printer.follow(stream))
    if options.json:
        print(json.dumps({"answers": answers}, ensure_ascii=False, indent=2))
    return {}


def _prompt(prompt: str, file: str) -> str:
    """The prompt itself, or what a file or standard input ('-') says, without the line break at its end."""
    require(not (prompt and file), "prompt_file", file, "goes without a PROMPT")
    if prompt != "-" and not file:
        return prompt
    if prompt == "-" or file == "-":
        content = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
        if len(content) > LARGEST_PROMPT:
            raise DocumentError(f"standard input: a prompt of more than {LARGEST_PROMPT:,} bytes")
    else:
        content = read_bytes(file, LARGEST_PROMPT)
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{file or 'standard input'}: is no UTF-8 text at byte {error.start}") from None


class Printer:
    """Prints answers while they are written. Text goes to standard output, bars of pictures to standard error."""

    def __init__(self, output: str, *, quiet: bool = False):
        """Args:
        output: folder for pictures.
        quiet: whether nothing goes to standard output.

        Raises:
          FileError: if nothing can be written there.
        """
        self._folder, self._quiet = as_path(output), quiet
        self._line_is_open = False
        check_writable(self._folder)

    def follow(self, stream: Stream) -> dict[str, Any]:
        """Prints an answer to its end. Returns what is known of it, with the files of its pictures."""
        segments: list[dict[str, str]] = []
        answer: Answer | None = None
        with contextlib.ExitStack() as bars:
            bar: Bar | None = None
            for event in stream:
                match event:
                    case TextPiece(text):
                        if not segments or "text" not in segments[-1]:
                            segments.append({"text": ""})
                        segments[-1]["text"] += text
                        self._write(text)
                    case PictureProgress(number, written, of):
                        self._end_line()
                        bar = bar or bars.enter_context(progress_bar(f"picture {number}", of))
                        bar.update(written)
                    case PictureDone(_, picture):
                        bars.close()
                        bar = None
                        segments.append({"picture": str(self._picture(picture))})
                    case Finished(answer):
                        pass
        self._end_line()
        if not segments and not self._quiet:
            print("[the model ended the document at once]")
        figures = {name: getattr(answer, name) for name in ("reason", "text_tokens", "seconds_to_first", "seconds")}
        return {"segments": segments, "prompt_tokens": len(answer.prompt_ids), **figures}

    def _write(self, text: str) -> None:
        if self._quiet:
            return
        print(steers_nothing(text) if sys.stdout.isatty() else text, end="", flush=True)
        self._line_is_open = True

    def _end_line(self) -> None:
        if self._line_is_open:
            print(flush=True)
        self._line_is_open = False

    def _picture(self, picture: Image) -> Path:
        """Writes and shows a picture; returns where it is."""
        path = next(path for n in itertools.count(1) if not (path := self._folder / f"{n:04d}.png").exists())
        write_picture(picture, path)
        if not self._quiet:
            self._end_line()
            if can_show_images():
                print(half_blocks(picture))
            print(f"[picture: {path}]", flush=True)
        return path
