"""Chameleon in JAX: one Transformer that reads and writes documents of text and pictures in any order.

    import chameleon_jax

    model = chameleon_jax.load("out/demo")  # or a folder in Hugging Face's or Meta's format
    model.generate([chameleon_jax.open_image("digit.png"), " Which digit is this?"])

Names are imported when they are first used, so that importing the package is quick and the model itself runs where
only jax, flax, optax and numpy are installed.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "chameleon_jax.chameleon": ("CannotDraw", "Chameleon", "load"),
    "chameleon_jax.config": (
        "GenerationConfig", "ImageTokenizerConfig", "MeshConfig", "PreprocessingConfig",
        "SamplingConfig", "TrainConfig", "TransformerConfig", "read_config",
    ),
    "chameleon_jax.document": ("Document", "DocumentError", "open_image", "parse_prompt"),
    "chameleon_jax.errors": ("ChameleonError", "ConfigError", "FileError"),
    "chameleon_jax.models.transformer": ("KVCache", "Transformer"),
    "chameleon_jax.models.vq": ("VQModel",),
    "chameleon_jax.sharding": ("make_mesh",),
    "chameleon_jax.tokens.image": ("NoImageDecoder",),
    "chameleon_jax.tokens.vocabulary": ("Vocabulary",),
    "chameleon_jax.weights.checkpoint": ("ConversionError",),
    "chameleon_jax.weights.formats": ("open_checkpoint", "write_checkpoint"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'chameleon_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
