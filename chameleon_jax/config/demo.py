"""The demo and its evaluation."""

from __future__ import annotations

from chameleon_jax.config.generation import GenerationConfig
from chameleon_jax.config.reading import config, require_seed


@config
class EvaluationConfig:
    """Evaluation of the demo's model on held-out pictures and text."""

    split: str = "test"
    """Split of the handwritten digits to evaluate on. Tune on a slice of train, never on test."""
    train_split: str = "train"
    """Split that the judge of drawings is trained on."""
    drawings_per_digit: int = 20
    sums: int = 200
    """Pairs of pictures to add up."""
    drawing: GenerationConfig = GenerationConfig(mode="image")
    """Options of drawing."""
    seed: int = 0
    """Of the pairs to add up, and of the judge. What the model writes has that of `drawing`."""

    def __post_init__(self):
        require_seed(self.seed)


@config
class DemoCommand:
    """`chameleon demo`: every stage of the paper in small, then a report."""

    output: str = "out/demo"
    """Folder for everything that the demo makes. Must be empty, or of an earlier demo."""
    recipes: str = ""
    """Folder with text_tokenizer.yaml, image_tokenizer.yaml, prepare.yaml, train.yaml and evaluation.yaml. Default:
    configs/demo."""
    fresh: bool = False
    """Redo everything instead of reusing finished stages."""
