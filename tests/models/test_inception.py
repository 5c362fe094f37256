"""Pictures are resized for the Inception network as torch resizes them; `tests/evaluation` compares its features."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from chameleon_jax.models.inception import resize

DATA = Path(__file__).parent.parent / "data"


def test_pictures_are_made_smaller_as_torch_does_it():
    with np.load(DATA / "lpips.npz") as given, np.load(DATA / "inception.npz") as answers:
        pictures = jnp.asarray(np.concatenate([given["target"], given["output"]]) / 255, jnp.float32)
        np.testing.assert_allclose(resize(pictures, 17), answers["smaller"], rtol=0, atol=1e-6)
