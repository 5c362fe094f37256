"""What a model shows of itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_models import TRANSFORMER, released_model, transformer_params

import chameleon_jax
from chameleon_jax import Chameleon, MeshConfig
from chameleon_jax.summary import summarize


def test_sizes_parameters_and_tokenizers_are_named():
    model = released_model(image_head_trained=True)
    text = repr(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert text.startswith("Chameleon\n")
    for part in (
        "2 layers of width 32, 8 heads (4 key/value) of 4, feed-forward 40",
        f"parameters:      {count:,} in float32, 0.2 MiB; computes in float32",
        "devices:         1 x cpu",
        f"JSONTokenizer, {model.tokenizer.text.num_pieces} pieces",
        "8 x 8 pixels to 16 codes of 16",
        "can write:       text and pictures",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("image_head_trained", "said"),
    [(False, "no pictures: its output layer was never trained"), (None, "pictures if its output layer was trained")],
)
def test_what_it_can_draw_is_said_without_computing(image_head_trained, said):
    model = released_model(image_head_trained)
    model.params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16"), model.params)
    lines = summarize(model)
    assert said in lines["can write"]
    assert " in bfloat16, " in lines["parameters"]
    assert lines["devices"] == "none: the parameters are in host memory"
    del model.tokenizer.image.params["decoder"]
    assert summarize(model)["can write"] == "text; no pictures: it has no image decoder"


def test_devices_of_a_mesh_are_counted():
    mesh = chameleon_jax.make_mesh(MeshConfig(fsdp=2, tensor=2, data=1), jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = Chameleon(TRANSFORMER, jax.device_put({"norm": np.ones(4)}, sharding))
    assert summarize(model)["devices"] == "4 x cpu (fsdp 2, tensor 2)"


def test_html_escapes_what_files_say():
    missing = {part: "no <b>bold</b> & 'quoted' file" for part in ("text", "image", "vocabulary")}
    model = Chameleon(TRANSFORMER, transformer_params(TRANSFORMER), missing=missing)
    shown = model._repr_html_()
    assert "none: no &lt;b&gt;bold&lt;/b&gt; &amp; &#x27;quoted&#x27; file" in shown
    assert "<b>" not in shown
    assert "ids only: it has no text tokenizer" in shown
    assert "none: no <b>bold</b> & 'quoted' file" in repr(model)
