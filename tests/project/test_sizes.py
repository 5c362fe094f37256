"""Sizes that `chameleon init` chooses: by how much there is to learn from, and so that they fit into the memory."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.batch import Batch
from chameleon_jax.config import MeshConfig, TrainConfig, from_dict
from chameleon_jax.config.yaml_files import parse_yaml
from chameleon_jax.project.look import Found
from chameleon_jax.project.recipes import recipes
from chameleon_jax.project.sizes import (
    LARGE,
    MEDIUM,
    SHARE,
    SMALL,
    ModelSizes,
    Sizes,
    bytes_to_train,
    choose,
)
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training.state import abstract_state
from chameleon_jax.training.task import Part
from chameleon_jax.training.transformer import TransformerTask

GIB = 1 << 30


def found(records: int) -> Found:
    """Pictures of 512 pixels, with captions."""
    source = {"kind": "folder", "name": "photos", "path": "photos"}
    return Found(source, "", records, False, (), 1.0, 80.0, 512, True, False, frozenset(), (), ())


def recipe(sizes: Sizes) -> TrainConfig:
    """What train.yaml says."""
    text = recipes([found(1000)], {"photos": 0.1}, sizes, Path("mine"))["train"]
    return from_dict(TrainConfig, parse_yaml(text))


def size(tree) -> int:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize(
    ("model", "vocab_size", "length", "attention"), [(SMALL, 4096, 512, "xla"), (MEDIUM, 40960, 2048, "blockwise")]
)
def test_memory_is_what_jax_keeps_for_the_backward_pass(model, vocab_size, length, attention):
    sizes, rows = choose([found(1000)], False)._replace(**model._asdict()), 2
    config = recipe(sizes)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=vocab_size),
        execution=dataclasses.replace(config.execution, attention=attention),
    )
    task = TransformerTask(config, np.arange(vocab_size) >= vocab_size // 2)
    params = abstract_state(task, make_mesh(MeshConfig(), jax.devices()[:1])).params
    tokens = {name: jax.ShapeDtypeStruct((rows, length), "int32") for name in Batch._fields}
    batch = Batch(**{**tokens, "loss_weights": jax.ShapeDtypeStruct((rows, length), "float32")})

    def kept(params, batch):
        key = jax.random.key(0, impl=config.dropout_bits)
        return jax.vjp(lambda params: task.loss(params, batch, key, Part(0, 1, None))[0], params)[1]

    of_tokens_and_copies = size(jax.eval_shape(kept, params, batch))
    gradient_of_logits = 4 * rows * length * vocab_size
    expected = 5 * size(params) + of_tokens_and_copies + gradient_of_logits
    assert bytes_to_train(model, vocab_size, length, rows) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("records", [1000, 100_000, 10_000_000])
@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_chosen_fits_into_the_memory(records, devices):
    unlimited, before = choose([found(records)], False, devices), None
    for memory in (80 * GIB, 24 * GIB, 15 * GIB, 8 * GIB, 3 * GIB):
        sizes = choose([found(records)], False, devices, memory)
        model = ModelSizes(*(getattr(sizes, name) for name in ModelSizes._fields))
        rows, left = divmod(sizes.batch_size // devices, sizes.accumulation)
        assert left == 0
        needed = bytes_to_train(model, sizes.vocab_size + sizes.num_codes, sizes.sequence_length, rows)
        assert needed <= SHARE * memory
        assert recipe(sizes).accumulation == sizes.accumulation
        assert model <= (before or LARGE)
        before = model
    assert unlimited.accumulation == 1
    assert choose([found(records)], False, devices, 1e15) == unlimited
