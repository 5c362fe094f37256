"""The demos and their evaluations."""

from __future__ import annotations

from chameleon_jax.config.generation import GenerationConfig
from chameleon_jax.config.reading import config, require, require_seed


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
class PicturesEvaluationConfig:
    """Evaluation of the model of `chameleon demo pictures` on OpenMoji's pictures."""

    split: str = "test"
    """Split of new combinations to evaluate on. Tune on a slice of train, never on test."""
    train_split: str = "train"
    """Split with the other tones of these, from which pictures to edit are taken."""
    novel_split: str = "novel"
    """Split of pictures of things that the model has never seen."""
    trained_drawings: int = 300
    """Names of the split `train_split` to draw."""
    drawing: GenerationConfig = GenerationConfig(mode="image")
    """Options of drawing."""
    editing: GenerationConfig = GenerationConfig(mode="image")
    """Options of drawing a given picture with something changed."""
    seed: int = 0

    def __post_init__(self):
        require(self.trained_drawings > 0, "trained_drawings", self.trained_drawings, "must be at least 1")
        for name in ("drawing", "editing"):
            require(getattr(self, name).mode == "image", f"{name}.mode", getattr(self, name).mode, "must be image")
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


@config
class PicturesDemoCommand(DemoCommand):
    """`chameleon demo pictures`: the same with pictures in colour and names in fourteen languages."""

    output: str = "out/showcase"
    """Folder for everything that the demo makes. Must be empty, or of an earlier one."""
    recipes: str = ""
    """Folder with text_tokenizer.yaml, image_tokenizer.yaml, prepare.yaml, train.yaml and evaluation.yaml. Default:
    configs/showcase."""
