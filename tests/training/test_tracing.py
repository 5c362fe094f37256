"""Traces begin where they are asked for and are always closed."""

from __future__ import annotations

import jax
import pytest

from chameleon_jax.config import ProfileConfig
from chameleon_jax.training.tracing import StepTrace


@pytest.mark.parametrize(
    ("first", "steps", "done", "traced"),
    [
        (0, 2, 8, (0, 2)),
        (3, 2, 8, (3, 5)),
        (6, 5, 8, (6, 8)),  # the run ends inside
        (3, 4, 5, (3, 5)),  # it is stopped inside
        (8, 2, 8, None),
        (3, 0, 8, None),
    ],
)
def test_a_trace_begins_where_it_is_asked_for_and_is_always_closed(
    tiny, tmp_path, monkeypatch, first, steps, done, traced
):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(step))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(step))
    config = tiny.config(tmp_path, profile__start=first, profile__steps=steps)
    assert config.profile == ProfileConfig(steps=steps, start=first)
    step = 0

    def run() -> None:
        nonlocal step
        with StepTrace(config, 0) as profile:
            for step in range(1, done + 1):
                profile.after(step, ())
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert calls == list(traced or ())
