"""The base classes of all errors of this library."""

from __future__ import annotations

LONGEST_MESSAGE = 2000
"""Most characters of an error message; the middle of longer ones is omitted."""


def printable(text: object, limit: int = 200) -> str:
    """Untrusted text (the name of a file, key or tensor) as one short line without control characters.

    Control characters, line breaks, bidirectional marks and lone surrogates are escaped as in Python (`\\x1b`). The
    middle of more than `limit` characters is omitted.
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} … {text[-limit // 3 :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class ChameleonError(Exception):
    """An error that users can fix. The message says what was wrong, where, and what to try; the command line prints it
    without a traceback.

    The message is one line and `printable`, whatever the names and values in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), LONGEST_MESSAGE)


class ConfigError(ChameleonError, ValueError):
    """An invalid configuration."""


class FileError(ChameleonError):
    """A file or folder that cannot be read or written."""


class DamagedFile(FileError):
    """A file that can be read but whose content is not what was written."""


class TrainingError(ChameleonError):
    """Training cannot continue."""


class Stopped(ChameleonError):
    """Training was stopped by a signal, after saving.

    Attributes:
      status: exit status of the command: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status
