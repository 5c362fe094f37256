"""A run on Google Cloud Storage, as an emulator serves it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("bucket")


class Interruption(Exception):
    pass


@pytest.mark.slow
def test_run_in_a_bucket_goes_on_where_it_was_and_ends_like_a_local_one(tiny, tmp_path):
    def interrupted(start, rows):
        for number, batch in enumerate(tiny.batches(start, rows), start):
            if number == 3:
                raise Interruption
            yield batch

    output, small = "gs://bucket/f/run", {"model__num_layers": 1, "steps": 4}
    with pytest.raises(Interruption):
        train(tiny.task(tiny.config(output, **small)), interrupted)
    state = train(tiny.task(tiny.config(output, **small)), tiny.batches)
    alone = train(tiny.task(tiny.config(tmp_path / "run", **small)), tiny.batches)
    for here, there in zip(jax.tree.leaves(alone), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(here, there)
    lines, expected = read_metrics(f"{output}/metrics.jsonl"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]
    assert len(read_metrics(f"{output}/sessions.jsonl")) == 2
