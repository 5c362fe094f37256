"""What drawing a token costs beside the step of the model that gives its logits.

A model of 8 layers × 512 with a vocabulary of 65,536, of which 57,000 columns are text and 8,192 image codes. A step of
text reads one token a row and computes the text columns; a step in a picture reads it in two contexts and computes the
image columns. Drawing is what generation does with these logits: what is allowed in text, guidance in a picture, then
temperature .7 and top-p .9. Both take their turns in one process. Prints JSON. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from chameleon_jax.bench.environment import environment  # noqa: E402
from chameleon_jax.config import TransformerConfig  # noqa: E402
from chameleon_jax.generation.guidance import guide  # noqa: E402
from chameleon_jax.generation.modality import Columns, allowed_text  # noqa: E402
from chameleon_jax.generation.sampling import Sampling, draw  # noqa: E402
from chameleon_jax.models.decoding import Cache, decode_weights, extend, head, readout  # noqa: E402
from chameleon_jax.models.transformer import abstract_params  # noqa: E402
from chameleon_jax.tokens.vocabulary import Vocabulary  # noqa: E402

MODEL = TransformerConfig(
    vocab_size=65_536, d_model=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, mlp_dim=1_408
)
VOCABULARY = Vocabulary.in_released_order(num_pieces=57_000, num_codes=8_192)
COLUMNS = Columns.build(VOCABULARY, codes_per_image=1_024)
SLOTS = 256


def sides(kind: str, rows: int, dtype: str, spread: float) -> dict[str, Callable[[], Any]]:
    """The model's step, and drawing from logits with a standard deviation of `spread`."""
    in_text = kind == "text"
    ids, contexts = (COLUMNS.text_ids, 1) if in_text else (COLUMNS.image_ids, 2)
    params = model_params()
    weights = decode_weights(params, MODEL, dtype=dtype)
    columns = head(params["output"], ids, dtype=dtype)
    lanes = rows * contexts
    tokens, start = jnp.full((lanes, 1), 7, jnp.int32), jnp.full(lanes, SLOTS // 2, jnp.int32)

    @functools.partial(jax.jit, donate_argnums=3)
    def step(weights, columns, tokens, caches):
        hidden, caches = extend(weights, MODEL, tokens, start, caches)
        return readout(columns, hidden[:, -1]), caches

    scales = jnp.broadcast_to(jnp.asarray([3.0, 1.2]), (rows, 2))
    setting = Sampling(*(jnp.full(rows, value) for value in (0.7, 0.9, 0.0)), jnp.zeros(rows, jnp.int32))

    @jax.jit
    def drawing(keys, logits, setting):
        if in_text:
            allowed = allowed_text(COLUMNS, jnp.zeros(rows, bool), jnp.zeros(rows, bool))
            logits = jnp.where(allowed, logits, -jnp.inf)
        else:
            logits = guide(logits[:rows], logits[rows:], None, scales, jnp.ones(rows, jnp.int32))
        return draw(keys, logits, setting)

    caches = (Cache.empty(MODEL, lanes, SLOTS, dtype),)
    logits = spread * jax.random.normal(jax.random.key(1), (lanes, len(ids)))
    keys = jax.random.split(jax.random.key(2), rows)

    def once() -> Any:
        nonlocal caches
        result, caches = step(weights, columns, tokens, caches)
        return result

    return {"step": once, "drawing": lambda: drawing(keys, logits, setting)}


@functools.cache
def model_params() -> Any:
    from flax import linen as nn

    shapes, where = nn.unbox(abstract_params(MODEL)), iter(range(10**6))
    return jax.tree.map(lambda x: 0.02 * jax.random.normal(jax.random.key(next(where)), x.shape, x.dtype), shapes)


def seconds(call: Callable[[], Any], times: int) -> tuple[float, float]:
    """Seconds a call, and seconds of all cores together."""
    began, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / times, (time.process_time() - processor) / times


def measure(kind: str, rows: int, options: argparse.Namespace, spread: float) -> dict[str, Any]:
    both = sides(kind, rows, options.dtype, spread)
    for call in both.values():
        jax.block_until_ready(call())
    turns = [{name: seconds(call, options.calls) for name, call in both.items()} for _ in range(options.turns)]
    clock, processor = (
        {name: statistics.median(turn[name][which] for turn in turns) for name in both} for which in (0, 1)
    )
    return {
        "columns": kind, "rows": rows, "standard_deviation_of_logits": spread,
        "milliseconds": {name: round(1e3 * value, 3) for name, value in clock.items()},
        "processor_milliseconds": {name: round(1e3 * value, 3) for name, value in processor.items()},
        "drawing_to_step": round(statistics.median(t["drawing"][0] / t["step"][0] for t in turns), 4),
        "drawing_to_step_of_processor": round(processor["drawing"] / processor["step"], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--spreads", type=float, nargs="+", default=[1.0, 4.0], help="standard deviations of the logits"
    )
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--calls", type=int, default=3, help="calls of a turn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    cases = [(kind, rows, spread) for kind in ("text", "image") for rows in options.rows for spread in options.spreads]
    measured = [measure(kind, rows, options, spread) for kind, rows, spread in cases]
    print(json.dumps({"benchmark": "drawing", "dtype": options.dtype, "cases": measured, **environment()}, indent=2))


if __name__ == "__main__":
    main()
