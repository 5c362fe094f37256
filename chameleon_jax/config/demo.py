"""The demo and its examination."""

from __future__ import annotations

from chameleon_jax.config.generation import GenerationConfig
from chameleon_jax.config.reading import config, require_seed


@config
class EvaluationConfig:
    """How the demo's model is judged, on pictures and text it never saw."""

    split: str = "test"
    """Split of the handwritten digits to judge on. Tune on a slice of train, never on test."""
    train_split: str = "train"
    """Split that the judge of drawings learns from."""
    drawings_per_digit: int = 20
    sums: int = 200
    """Pairs of pictures to add up."""
    drawing: GenerationConfig = GenerationConfig(mode="image")
    """How the judged digits are drawn."""
    seed: int = 0

    def __post_init__(self):
        require_seed(self.seed)


@config
class DemoCommand:
    """`chameleon demo`: every stage of the paper in small, then a report."""

    output: str = "out/demo"
    """Folder for everything the demo makes, empty or of an earlier demo."""
    recipes: str = ""
    """Folder with text_tokenizer.yaml, image_tokenizer.yaml, prepare.yaml, train.yaml and evaluation.yaml. Default:
    configs/demo."""
    fresh: bool = False
    """Make everything anew instead of reusing finished stages."""
