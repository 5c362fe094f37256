"""The engines of one model: one for each size of batch and context that was asked for, over the same weights."""

from __future__ import annotations

import collections
import threading
import weakref
from typing import Any

import jax

from chameleon_jax.config import ConfigError, DType, EngineConfig, ExecutionConfig, TransformerConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.programs import Weights, make_weights
from chameleon_jax.tokens.vocabulary import Vocabulary

SLOTS = (256, 1024)
"""Lengths of lanes below that of the whole context."""
MOST_ROWS = 64
CPU_CACHE = 1 << 30
"""Bytes of lanes of a batch on a CPU."""
KEPT = 4
"""Engines that are kept; each holds its lanes."""


class Engines:
    """Makes engines as they are needed, and keeps the last few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made_of: list[weakref.ref] = []
        self._made_as: tuple | None = None
        self._weights: Weights | None = None
        self._engines: collections.OrderedDict[tuple, Engine] = collections.OrderedDict()

    @property
    def weights(self) -> Weights | None:
        """What the last engine decodes with."""
        return self._weights

    def find(
        self,
        config: TransformerConfig,
        params: Any | None,
        vocabulary: Vocabulary,
        codes_per_image: int,
        *,
        requests: int,
        tokens: int,
        context_length: int,
        execution: ExecutionConfig,
        settings: EngineConfig,
    ) -> Engine:
        """An engine for as many requests as may come at once, each of at most `tokens` tokens.

        Args:
          params: None: the weights as they are.

        Raises:
          ConfigError: if `params` is None and the weights are of another type, or for another tokenizer.
        """
        slots = next((size for size in SLOTS if tokens <= size < context_length), context_length)
        with self._lock:
            weights = self._weights_of(config, params, vocabulary, codes_per_image, execution, settings)
            rows = min(1 << max(requests - 1, 0).bit_length(), most_rows(config, weights, slots, execution))
            key = rows, slots, settings
            if key not in self._engines or self._engines[key].closed:
                self._engines.pop(key, None)  # its memory is free before the new one takes its own
                self._engines[key] = Engine(
                    config, weights, vocabulary, codes_per_image, context_length=slots, rows=rows, settings=settings,
                    dtype=computation_dtype(execution, settings),
                )  # fmt: skip
            self._engines.move_to_end(key)
            while len(self._engines) > KEPT:
                self._engines.popitem(last=False)
            return self._engines[key]

    def _weights_of(self, config, params, vocabulary, codes_per_image, execution, settings) -> Weights:
        """The weights, made anew if any parameter is another array than last time."""
        leaves = jax.tree.leaves(params)
        made_as = config, execution.compute_dtype, settings.weights, id(vocabulary), codes_per_image
        known = [reference() for reference in self._made_of]
        same = len(known) == len(leaves) and all(one is other for one, other in zip(known, leaves, strict=True))
        if params is None:
            if made_as != self._made_as:
                raise ConfigError(
                    "the parameters were dropped, and the weights that are left are of another type or tokenizer: "
                    "load the model anew to change engine_config.weights, execution.compute_dtype or the tokenizer"
                )
        elif not same or made_as != self._made_as:
            self._engines.clear()
            self._weights = None  # before the new ones take their place
            dtype = computation_dtype(execution, settings)
            quantization = "int8" if settings.weights == "int8" else None
            columns = Columns.build(vocabulary, codes_per_image)
            self._weights = make_weights(params, config, columns, dtype=dtype, quantization=quantization)
            self._made_of, self._made_as = [weakref.ref(leaf) for leaf in leaves], made_as
        return self._weights


def computation_dtype(execution: ExecutionConfig, settings: EngineConfig) -> DType:
    """The type of the products of an engine."""
    return "bfloat16" if settings.weights == "bfloat16" else execution.compute_dtype


def most_rows(config: TransformerConfig, weights: Weights, slots: int, execution: ExecutionConfig) -> int:
    """The largest power of two of rows whose lanes fit the memory, up to `MOST_ROWS`."""
    size = 2 if execution.compute_dtype == "bfloat16" else 4
    lane = 2 * config.num_layers * slots * config.num_kv_heads * config.head_dim * size
    device = next(iter(weights.layers.norm.devices()))
    memory = device.memory_stats() if device.platform != "cpu" else None
    budget = CPU_CACHE if not memory else (memory["bytes_limit"] - memory["bytes_in_use"]) // 2
    rows = max(1, min(MOST_ROWS, budget // (3 * lane)))  # each row may have three
    return 1 << (rows.bit_length() - 1)
