"""What a resumed run may change: every key of a run says so, and older versions said the same."""

from __future__ import annotations

from chameleon_jax.config import TrainConfig, TransformerConfig, to_dict
from chameleon_jax.config.resuming import OnResume, keys_where

RUN = TrainConfig(data="", output="", model=TransformerConfig(), steps=5000, batch_size=8)

MAY_CHANGE = {
    "output", "data", "max_epochs", "mesh", "distributed", "checkpoint", "bad_steps", "profile", "samples", "trackers",
    "log_every", "evaluate_every", "evaluation_batches", "sequence_length", "initial", "initial_adapters", "steps",
}  # fmt: skip
CHANGES_ROUNDING = {
    "accumulation", "loss_chunk", "execution.attention", "execution.remat", "execution.unroll", "execution.param_dtype",
    "execution.compute_dtype", "optimizer.moment_dtype", "compiler_options",
}  # fmt: skip


def dotted(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_every_key_means_one_thing_on_resumption():
    by_meaning = [keys_where(RUN, meaning) for meaning in OnResume]
    expected = dotted(to_dict(RUN)) | {"max_epochs": {}}  # an empty mapping has no dotted keys
    assert sum(map(len, by_meaning)) == len(expected)
    assert dict(item for found in by_meaning for item in found.items()) == expected


def test_what_may_change_is_what_older_versions_allowed():
    may_change = set(keys_where(RUN, OnResume.SAME_NUMBERS))
    assert {key for key in may_change if key.startswith("model.")} == {"model.context_length"}
    assert {key.split(".")[0] for key in may_change} - {"model"} == MAY_CHANGE
    assert keys_where(RUN, OnResume.OTHER_ROUNDING).keys() == CHANGES_ROUNDING
