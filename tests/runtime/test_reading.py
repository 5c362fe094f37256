"""Small files are read within limits, and JSON as strictly as the standard has it."""

from __future__ import annotations

import json
import os

import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.files import read_json
from chameleon_jax.runtime.reading import DEEPEST, parse_json, read_bytes


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, True, "ü𝄞"]}, [], "text", 10**39, -(10**39), 5e-324, 1.7976931348623157e308, {"a": {}}],
)
def test_what_json_can_say_comes_back(value):
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "key 'a' is written twice"),
        (b"[" * DEEPEST + b"[]" + b"]" * DEEPEST, "nested more than 32 deep"),
        (b"[" * 10**6, "nested more than 32 deep"),
        (b'{"a":' * 10**5, "nested more than 32 deep"),
        (b"9" * 5000, "a whole number of 5,000 digits"),
        (b"1" + b"0" * 40, "a whole number of 41 digits"),
        (b"0." + b"1" * 5000, "a number of 5,002 characters"),
        (b'{"rate": NaN}', "rate = 'nan': must be a number"),
        (b'{"rate": -Infinity}', "rate = '-inf': must be a number"),
        (b'{"rate": 1e999}', "rate = 'inf': must be a number"),
        (b'{"name": "\\ud800"}', "surrogates not allowed"),
        (b"\xff", "invalid start byte"),
        (b"{", "Expecting property name"),
    ],
)
def test_everything_else_is_a_value_error_of_one_short_line(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_pairs_of_surrogates_are_text():
    assert parse_json(b'"\\ud834\\udd1e"') == "\N{MUSICAL SYMBOL G CLEF}"


def test_bytes_up_to_the_limit_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_bytes(tmp_path / "file", 100) == b"x" * 100
    with pytest.raises(FileError, match="file: has more than 99 bytes"):
        read_bytes(tmp_path / "file", 99)


def test_sparse_giant_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)
    with pytest.raises(FileError, match=r"config\.json: has more than 16,777,216 bytes"):
        read_json(tmp_path / "config.json")


def test_pipe_and_device_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(FileError, match=f"{path}: cannot be read: is a pipe, a socket or a device"):
            read_bytes(path, 100)
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, 100)
    with pytest.raises(FileError, match="no such file"):
        read_bytes(tmp_path / "nothing", 100)
    with pytest.raises(FileError, match="cannot be read: "):
        read_bytes(f"{tmp_path}/a\0b", 100)
