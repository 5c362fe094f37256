"""What all our own errors have in common."""

from __future__ import annotations

LONGEST_MESSAGE = 2000
"""Characters of an error's message; what is between its beginning and its end is left out beyond."""


def printable(text: object, limit: int = 200) -> str:
    """Text from strangers (a file's name, a key, a tensor's name) as one short line that steers no terminal.

    Control characters, line breaks, marks that reverse the direction of writing and lone surrogates are spelled out as
    in Python (`\\x1b`); of more than `limit` characters the middle is left out.
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} … {text[-limit // 3 :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class ChameleonError(Exception):
    """Something a person can put right. The message says what was wrong, where, and what to try; the command line
    prints it without a traceback.

    A message is one line and `printable`, whatever the names and values in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), LONGEST_MESSAGE)


class ConfigError(ChameleonError, ValueError):
    """A configuration that cannot be used. The message is one line."""


class FileError(ChameleonError):
    """A file or folder that cannot be read or written."""


class DamagedFile(FileError):
    """A file that can be read but does not hold what was written."""


class TrainingError(ChameleonError):
    """Training cannot go on."""


class Stopped(ChameleonError):
    """Training was asked to stop, and saved what it had.

    Attributes:
      status: exit status of the command: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status
