"""Text of a random Chameleon by `generate` of transformers, as it comes, on a GPU: beside `chameleon bench generate`.

`python tests/benchmarks/text_by_transformers.py configs/bench/generate/7b.yaml` prints JSON. Not a test: pytest does
not collect it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from chameleon_jax.config import BenchGenerateConfig, read_config


def random_model(config: BenchGenerateConfig, device: str) -> Any:
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    sizes = config.model
    theirs = ChameleonConfig(
        vocab_size=sizes.vocab_size, hidden_size=sizes.d_model, intermediate_size=sizes.mlp_dim,
        num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads, max_position_embeddings=4096,
        vocabulary_map={"<image>": 4, **{f"IMGIMG{letter}Z": 8 + i for i, letter in enumerate("ABCD")}},
        vq_config={
            "embed_dim": 8, "num_embeddings": 4, "latent_channels": 8, "resolution": 32, "base_channels": 32,
            "channel_multiplier": [1], "num_res_blocks": 1,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return ChameleonForConditionalGeneration(theirs).eval()


def write(model: Any, config: BenchGenerateConfig, rows: int) -> dict[str, Any]:
    """Greedy text, twice; the second time counts."""
    import torch
    from transformers import __version__

    ids = torch.randint(16, config.model.vocab_size, (rows, config.prompt), device=model.device)
    for _ in range(2):
        began = time.perf_counter()
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=1,
                max_new_tokens=config.new_tokens, min_new_tokens=config.new_tokens,
            )  # fmt: skip
        tokens = written[:, config.prompt :].cpu()
        seconds = time.perf_counter() - began
    return {
        "rows": rows,
        "tokens_per_second": round(tokens.numel() / seconds, 1),
        "milliseconds_per_step": round(1000 * seconds / config.new_tokens, 3),
        "versions": {"torch": torch.__version__, "transformers": __version__},
    }


def main(path: str) -> None:
    import torch

    config = read_config(BenchGenerateConfig, path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(config, device)
    for rows in config.rows:
        print(
            json.dumps(
                {"device": torch.cuda.get_device_name() if device == "cuda" else device, **write(model, config, rows)}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
