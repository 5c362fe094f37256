"""How our parameters map to the tensors of every released format, as data.

The parameter tree is that of `models/` (see `TRANSFORMER`). A stored tensor holds a piece of one leaf, for one layer:
its axes are transposed and partly merged, it covers a slice of one axis where Meta shards a model, and the channels of
each head are permuted where RoPE is interleaved. An `Entry` describes this for one stored tensor, and converts values
in both directions, of NumPy or of JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container
from typing import Literal, NamedTuple

import jax
import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, TransformerConfig
from chameleon_jax.models import vq
from chameleon_jax.models.transformer import parameter_shapes

Layout = Literal["meta", "H0", "H1", "H2"]
"""'meta': Meta's own files. 'H1': transformers since 4.43. 'H0': the earlier fork that Anole uses, with Meta's channel
order and a single row of QK-norm. 'H2': Lumina-mGPT; as H1, but with one row of QK-norm per shard."""


class _Rule(NamedTuple):
    leaf: str
    huggingface: str
    meta: str
    axes: tuple[int, ...]  # axes of the leaf (without layers) in stored order
    shard_axis: int | None  # axis of the leaf that Meta's shards split; None: every shard has a copy
    rotary: bool = False  # RoPE rotates the last axis: half-split pairs here, interleaved in Meta's files


TRANSFORMER = (
    _Rule("embed", "model.embed_tokens.weight", "tok_embeddings.weight", (0, 1), 1),
    _Rule("layers/attention/q", "self_attn.q_proj.weight", "attention.wq.weight", (1, 2, 0), 1, True),
    _Rule("layers/attention/k", "self_attn.k_proj.weight", "attention.wk.weight", (1, 2, 0), 1, True),
    _Rule("layers/attention/v", "self_attn.v_proj.weight", "attention.wv.weight", (1, 2, 0), 1),
    _Rule("layers/attention/o", "self_attn.o_proj.weight", "attention.wo.weight", (2, 0, 1), 0),
    *(
        _Rule(f"layers/attention/{norm}_norm/{ours}", f"self_attn.{norm}_norm.{theirs}",
              f"attention.{norm}_normalization.{theirs}", (0, 1), 0, True)
        for norm in "qk" for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ),
    _Rule("layers/mlp/gate", "mlp.gate_proj.weight", "feed_forward.w1.weight", (1, 0), 1),
    _Rule("layers/mlp/up", "mlp.up_proj.weight", "feed_forward.w3.weight", (1, 0), 1),
    _Rule("layers/mlp/down", "mlp.down_proj.weight", "feed_forward.w2.weight", (1, 0), 0),
    _Rule("layers/attention_norm/scale", "input_layernorm.weight", "attention_norm.weight", (0,), None),
    _Rule("layers/mlp_norm/scale", "post_attention_layernorm.weight", "ffn_norm.weight", (0,), None),
    _Rule("norm/scale", "model.norm.weight", "norm.weight", (0,), None),
    _Rule("output", "lm_head.weight", "output.weight", (1, 0), 1),
)  # fmt: skip

IGNORED = ("rope.freqs", "rotary_emb.inv_freq")
"""Suffixes of tensors that some files contain but that are not used: RoPE's frequencies follow from the config."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One stored tensor and the piece of the parameter tree that it holds.

    Attributes:
      key: its name in the file.
      shard: index of the shard whose file contains it; 0 without shards.
      leaf: path of the leaf, such as 'layers/attention/q'.
      layer: index into the layers of the leaf; None for leaves without layers.
      start: offset of the piece along each axis of the leaf (without layers).
      piece: shape of the piece, with its axes in the leaf's order.
      axes: axes of the piece in stored order.
      stored: shape of the stored tensor.
      rotary: whether the last axis of the piece is stored as interleaved RoPE pairs.
      repeat: number of copies of each row; more than 1 only for QK-norm in H1, which stores one per head.
    """

    key: str
    shard: int
    leaf: str
    layer: int | None
    start: tuple[int, ...]
    piece: tuple[int, ...]
    axes: tuple[int, ...]
    stored: tuple[int, ...]
    rotary: bool = False
    repeat: int = 1

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Stored values with merged axes split again and repeated rows dropped (a view)."""
        if self.repeat > 1:
            values = values[:: self.repeat]
        return values.reshape([self.piece[axis] for axis in self.axes])

    @property
    def rotary_axis(self) -> int | None:
        """The stored axis with interleaved RoPE pairs, if there is one."""
        return self.axes.index(len(self.axes) - 1) if self.rotary else None

    def unfold(self, spread: np.ndarray) -> np.ndarray:
        """The result of `spread`, or a part of it with whole rotary axes, in the leaf's order of axes and channels."""
        if self.rotary:
            spread = swap_pairs(spread, self.rotary_axis, pairs_last=True)
        return spread.transpose(np.argsort(self.axes))

    def fold(self, piece: np.ndarray) -> np.ndarray:
        """The inverse of `spread` and `unfold`: the piece as it is stored."""
        values = piece.transpose(self.axes)
        if self.rotary:
            values = swap_pairs(values, self.rotary_axis, pairs_last=False)
        if self.repeat > 1:
            values = values.repeat(self.repeat, 0)
        return values.reshape(self.stored)


def swap_pairs(values: np.ndarray, axis: int, pairs_last: bool) -> np.ndarray:
    """Permutes an axis from interleaved pairs (0 1)(2 3)… to half-split 0 2 … 1 3 …, or back if not `pairs_last`."""
    shape = values.shape
    pairs = (shape[axis] // 2, 2) if pairs_last else (2, shape[axis] // 2)
    values = values.reshape(*shape[:axis], *pairs, *shape[axis + 1 :])
    return values.swapaxes(axis, axis + 1).reshape(shape)


def leaf_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf of the Transformer, without the layer axis."""
    shapes = parameter_shapes(config).items()
    return {leaf: shape[1:] if leaf.startswith("layers/") else shape for leaf, shape in shapes}


def parameter_count(config: TransformerConfig) -> int:
    """Number of the Transformer's parameters."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())


def transformer_entries(config: TransformerConfig, layout: Layout, shards: int = 1) -> list[Entry]:
    """Every tensor of a Transformer in a layout, shard by shard, from the embedding to the output.

    Args:
      shards: model-parallel size; only Meta's layout has more than one.
    """
    shapes = leaf_shapes(config)
    top = [rule for rule in TRANSFORMER if "layers/" not in rule.leaf]
    per_layer = [rule for rule in TRANSFORMER if "layers/" in rule.leaf and rule.leaf in shapes]
    order = [(top[0], None), *((rule, layer) for layer in range(config.num_layers) for rule in per_layer)]
    order += [(rule, None) for rule in top[1:]]
    return [
        _entry(rule, config, shapes[rule.leaf], layout, layer, shard, shards)
        for shard in range(shards)
        for rule, layer in order
    ]


def _entry(
    rule: _Rule,
    config: TransformerConfig,
    shape: tuple[int, ...],
    layout: Layout,
    layer: int | None,
    shard: int,
    shards: int,
) -> Entry:
    key = rule.meta if layout == "meta" else rule.huggingface
    if layer is not None:
        key = f"layers.{layer}.{key}" if layout == "meta" else f"model.layers.{layer}.{key}"
    start, piece, repeat = [0] * len(shape), list(shape), 1
    is_qk_norm = "_norm/" in rule.leaf and "attention/" in rule.leaf
    if is_qk_norm and layout == "meta":  # one row per shard; several shards may share a row
        start[0], piece[0] = shard * shape[0] // shards, 1
    elif is_qk_norm and layout == "H1":  # one row per head
        heads = config.num_heads if "q_norm" in rule.leaf else config.num_kv_heads
        repeat = heads // shape[0]
    elif rule.shard_axis is not None:
        piece[rule.shard_axis] = shape[rule.shard_axis] // shards
        start[rule.shard_axis] = shard * piece[rule.shard_axis]
    stored = [piece[axis] for axis in rule.axes]
    if is_qk_norm:
        stored = [shape[1]] if layout in ("meta", "H0") else [shape[0] * repeat, shape[1]]
    elif len(piece) == 3:  # heads and channels are merged into the first axis (q, k, v) or the last (o)
        stored = [stored[0] * stored[1], stored[2]] if rule.shard_axis == 1 else [stored[0], stored[1] * stored[2]]
    rotary = rule.rotary and layout in ("meta", "H0")
    return Entry(key, shard, rule.leaf, layer, tuple(start), tuple(piece), rule.axes, tuple(stored), rotary, repeat)


@functools.lru_cache
def image_tokenizer_entries(config: ImageTokenizerConfig, prefix: str = "") -> tuple[Entry, ...]:
    """Every tensor of the image tokenizer, named as in the released VQGAN after `prefix`.

    Torch stores convolutions as (out, in, height, width), Flax as (height, width, in, out).
    """
    entries = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(vq.abstract_params(config)):
        name = "/".join(key.key for key in path)
        axes = (3, 2, 0, 1) if leaf.ndim == 4 else tuple(range(leaf.ndim))
        stored = tuple(leaf.shape[axis] for axis in axes)
        entries.append(Entry(prefix + _vq_key(name), 0, name, None, (0,) * leaf.ndim, leaf.shape, axes, stored))
    return tuple(entries)


def _vq_key(leaf: str) -> str:
    """For example 'encoder/down_0_block_1/norm1/scale' -> 'encoder.down.0.block.1.norm1.weight'."""
    if leaf == "codebook":
        return "quantize.embedding.weight"
    *modules, kind = leaf.split("/")
    parts: list[str] = []
    for module in modules:
        if module.startswith(("down_", "up_")):
            level, number, name, *block = module.split("_")
            parts += [level, number, f"{name}.conv" if name.endswith("sample") else name, *block]
        elif module.startswith("mid_"):
            parts += ["mid", module.removeprefix("mid_")]
        else:
            parts.append(module)
    return ".".join([*parts, "bias" if kind == "bias" else "weight"])


def is_decoder(entry: Entry) -> bool:
    """Whether an entry belongs to the image decoder, which Hugging Face's releases lack."""
    return entry.leaf.startswith("decoder/")


def has_decoder(config: ImageTokenizerConfig, weights: Container[str]) -> bool:
    """Whether weights, a container of the names of leaves, hold any part of the image decoder."""
    return any(is_decoder(entry) and entry.leaf in weights for entry in image_tokenizer_entries(config))
