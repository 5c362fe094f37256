"""Chameleon in JAX: one Transformer that reads and writes documents of text and pictures in any order.

    import chameleon_jax

    model = chameleon_jax.load("out/demo")  # or a folder in Hugging Face's or Meta's format
    model.generate([chameleon_jax.open_image("digit.png"), " Which digit is this?"])

Names are imported when they are first used, so that importing the package is quick and the model itself runs where
only jax, flax, optax and numpy are installed.
"""

from chameleon_jax.runtime.lazy_names import lazy_names

HOMES = {
    "chameleon_jax.batch": ("Batch",),
    "chameleon_jax.chameleon": ("CannotDraw", "Chameleon", "load"),
    "chameleon_jax.config": (
        "BadStepsConfig", "CheckpointConfig", "EngineConfig", "ExecutionConfig", "GenerationConfig",
        "ImageTokenizerConfig", "LoRAConfig", "MeshConfig", "OptimizerConfig", "PreprocessingConfig", "SamplesConfig",
        "SamplingConfig", "StageConfig", "TrainConfig", "TransformerConfig", "read_config",
    ),
    "chameleon_jax.chat": ("Chat",),
    "chameleon_jax.document": ("Document", "DocumentError", "open_image", "parse_prompt"),
    "chameleon_jax.errors": ("ChameleonError", "ConfigError", "FileError", "TrainingError"),
    "chameleon_jax.generation.answer": ("Answer",),
    "chameleon_jax.generation.engine": ("Engine",),
    "chameleon_jax.generation.events": (
        "Finished", "PictureDone", "PictureProgress", "PictureStarted", "TextPiece",
    ),
    "chameleon_jax.generation.handle": ("EngineError",),
    "chameleon_jax.generation.memory": ("OutOfMemory",),
    "chameleon_jax.generation.options": ("PromptError",),
    "chameleon_jax.generation.stream": ("Stream",),
    "chameleon_jax.models.transformer": ("KVCache", "Transformer"),
    "chameleon_jax.models.vq": ("VQModel",),
    "chameleon_jax.sharding": ("make_mesh",),
    "chameleon_jax.tokens.chat": ("Turn",),
    "chameleon_jax.tokens.documents": ("DocumentTokenizer",),
    "chameleon_jax.tokens.image": ("ImageTokenizer", "NoImageDecoder"),
    "chameleon_jax.tokens.vocabulary": ("Vocabulary",),
    "chameleon_jax.training.loop": ("train",),
    "chameleon_jax.weights.checkpoint": ("ConversionError",),
    "chameleon_jax.weights.formats": ("open_checkpoint", "write_checkpoint"),
    "chameleon_jax.weights.image_tokenizer": ("read_image_tokenizer", "write_image_tokenizer"),
}  # fmt: skip
"""Where the public names are defined; `__init__.pyi` says the same to type checkers."""

__all__, __getattr__, __dir__ = lazy_names(__name__, HOMES)
__version__ = "0.1.0"
