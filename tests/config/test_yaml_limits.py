"""YAML that stands for more than its text, or takes longer than its length, is refused in one line."""

from __future__ import annotations

import pytest
import yaml

from chameleon_jax.config import ConfigError, TrainConfig, read_config, read_yaml, require
from chameleon_jax.config.reading import shortened

LAUGHS = "x0: &x0 [lol]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 20))
MERGES = "x0: &x0 {a: 1}\n" + "".join(
    f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 6: not valid YAML: its aliases stand for more than a config can hold"),
        (MERGES, "its aliases stand for more than a config can hold"),
        ("a: &a [*a]", "nested too deep, or in itself"),
        ("[" * 5000, "nested too deep"),
        ("a: " + "[" * 50 + "]" * 50, "nested too deep"),
        ("steps: " + "9" * 5000, "line 1: not valid YAML: a whole number of 5,000 characters"),
        ("steps: 0x" + "f" * 5000, "a whole number of 5,002 characters"),
        ("steps: 1" + ":59" * 5000, "a whole number of 15,001 characters"),
        ("rate: 1" + ":59" * 5000 + ".5", "too large"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: *" + "x" * 5000, "found undefined alias"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: not valid YAML: key 'c' is written twice"),
        ("#" * (1 << 18) + "\n", "has more than 262,144 bytes"),
    ],
)
def test_hostile_yaml_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_aliases_and_merge_keys_within_limits_work(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("base: &base {a: 1, b: [2]}\nmore: {<<: *base, c: 3}\nsame: *base\n")
    assert read_yaml(path) == {
        "base": {"a": 1, "b": [2]}, "more": {"a": 1, "b": [2], "c": 3}, "same": {"a": 1, "b": [2]}
    }  # fmt: skip


def test_many_keys_are_looked_at_once(tmp_path, monkeypatch):
    """Each comparison of keys would be a comparison of all before it, in time quadratic in the file."""
    from chameleon_jax.config import yaml_files

    class Set(set):
        looked = 0

        def __contains__(self, item):
            Set.looked += 1
            return super().__contains__(item)

    monkeypatch.setattr(yaml_files, "set", Set, raising=False)
    path = tmp_path / "some.yaml"
    path.write_text("\n".join(f"k{i}: 1" for i in range(1000)))
    assert len(read_yaml(path)) == 1000
    assert Set.looked == 1000


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("steps", 2**31, "must be below 2\\^31"),
        ("steps", 10**30, "must be below 2\\^31"),
        ("keep", 10**300, "must be below 2\\^31"),
        ("seed", 2**63, "must be from 0 to 2\\^63 - 1"),
        ("seed", -(10**30), "must be from 0 to"),
    ],
)
def test_numbers_beyond_a_device_are_refused_with_their_key(tmp_path, key, value, allowed):
    stages = [{"share": 1, "weights": {"a": 1}}]
    top = {"data": "x", "output": "y", "model": {}, "steps": 5000, "batch_size": 1, "stages": stages, "checkpoint": {}}
    (top["checkpoint"] if key == "keep" else top)[key] = value
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(top))
    with pytest.raises(ConfigError, match=rf"train\.yaml: .*{key} = .*{allowed}"):
        read_config(TrainConfig, path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        ("x", "'x'"),
        ([1, "a", (2,)], "[1, 'a', (2,)]"),
        ({"a": [None]}, "{'a': [None]}"),
        ((), "()"),
        (True, "True"),
    ],
)
def test_values_are_shown_as_python_writes_them(value, expected):
    assert shortened(value) == repr(value) == expected
    assert shortened(10**5000) == "a whole number of 16610 bits"  # which Python refuses to write


def test_values_that_stand_for_terabytes_are_shown_in_a_line():
    bomb = "lol"
    for _ in range(60):
        bomb = [bomb] * 9
    wide = {index: "x" * 1000 for index in range(10**5)}
    for value in (bomb, wide, "x" * 10**7, b"x" * 10**7, [[]] * 10**6):
        assert len(shortened(value)) < 3000
        with pytest.raises(ConfigError):
            require(False, "key", value, "must be something else")
