"""Programs that one command compiles, the next one reads; and no cache can break a command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tiny_models import released_model

from chameleon_jax.runtime import compilation_cache

PROGRAM = """
import collections, json, sys
import jax
from chameleon_jax.console.cli import main

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **more: counts.update([name.rsplit("/")[-1]]))
words = ["generate", sys.argv[1], "Once", "--mode", "text", "--max-new-tokens", "2"]
assert main([*words, *sys.argv[2:]]) == 0
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_a_second_process_compiles_only_what_is_damaged(tmp_path):
    released_model().save(tmp_path / "model")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMP", "XLA_FLAGS"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "caches"), "JAX_PLATFORMS": "cpu"}

    def generate() -> tuple[str, dict[str, int]]:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), "--output", str(tmp_path / "out")],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        *answer, counts = result.stdout.splitlines()
        return answer, json.loads(counts)

    answer, counts = generate()
    assert counts["cache_misses"] == counts["compile_requests_use_cache"] > 5
    damaged = sorted((tmp_path / "caches").rglob("*-cache"))[0]
    damaged.write_bytes(damaged.read_bytes()[:50])
    again, then = generate()
    assert again == answer
    assert then["cache_hits"] == counts["compile_requests_use_cache"] - 1
    assert then["compile_requests_use_cache"] == counts["compile_requests_use_cache"]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What is set in a JAX without a cache, where the user's caches are in tmp_path."""
    found = {}
    config = types.SimpleNamespace(jax_compilation_cache_dir=None, update=found.__setitem__)
    monkeypatch.setattr(compilation_cache, "jax", types.SimpleNamespace(config=config))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return found


def test_programs_are_kept_by_kind_of_processor_for_this_user_alone(settings, tmp_path):
    compilation_cache.keep_programs()
    place = Path(settings["jax_compilation_cache_dir"])
    assert place.parent == tmp_path / "caches" / "chameleon_jax" / "compiled"
    assert platform.machine() in place.name
    assert place.stat().st_mode & 0o077 == 0
    compilation_cache.keep_programs(str(tmp_path / "mine"))
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "mine" / place.name)


def test_who_asks_for_another_cache_or_none_gets_it(settings, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # JAX itself takes this for none
    compilation_cache.keep_programs()
    assert settings == {}
    compilation_cache.keep_programs("none")
    assert settings == {"jax_enable_compilation_cache": False}


def test_a_home_that_cannot_be_written_to_is_no_error(settings, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/caches")
    compilation_cache.keep_programs()
    assert settings == {}


def test_what_was_not_used_for_longest_goes_first(settings, monkeypatch, tmp_path):
    folder = tmp_path / "caches" / "chameleon_jax" / "compiled" / "another machine"
    folder.mkdir(parents=True)
    for age in range(4):
        (folder / f"{age}").write_bytes(bytes(100))
        os.utime(folder / f"{age}", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compilation_cache, "LARGEST", 250)
    compilation_cache.keep_programs()
    assert {path.name for path in folder.iterdir()} == {"0", "1"}
