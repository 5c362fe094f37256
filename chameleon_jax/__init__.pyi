from chameleon_jax.batch import Batch
from chameleon_jax.chameleon import CannotDraw, Chameleon, load
from chameleon_jax.chat import Chat
from chameleon_jax.config import (
    BadStepsConfig,
    CheckpointConfig,
    EngineConfig,
    ExecutionConfig,
    GenerationConfig,
    ImageTokenizerConfig,
    LoRAConfig,
    MeshConfig,
    OptimizerConfig,
    PreprocessingConfig,
    SamplesConfig,
    SamplingConfig,
    StageConfig,
    TrainConfig,
    TransformerConfig,
    read_config,
)
from chameleon_jax.document import Document, DocumentError, open_image, parse_prompt
from chameleon_jax.errors import ChameleonError, ConfigError, FileError, TrainingError
from chameleon_jax.generation.answer import Answer
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.events import Finished, PictureDone, PictureProgress, PictureStarted, TextPiece
from chameleon_jax.generation.handle import EngineError
from chameleon_jax.generation.memory import OutOfMemory
from chameleon_jax.generation.options import PromptError
from chameleon_jax.generation.stream import Stream
from chameleon_jax.models.transformer import KVCache, Transformer
from chameleon_jax.models.vq import VQModel
from chameleon_jax.sharding import make_mesh
from chameleon_jax.tokens.chat import Turn
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer, NoImageDecoder
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.training.loop import train
from chameleon_jax.weights.checkpoint import ConversionError
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer, write_image_tokenizer

__version__: str

__all__ = [
    "Answer",
    "BadStepsConfig",
    "Batch",
    "CannotDraw",
    "Chameleon",
    "ChameleonError",
    "Chat",
    "CheckpointConfig",
    "ConfigError",
    "ConversionError",
    "Document",
    "DocumentError",
    "DocumentTokenizer",
    "Engine",
    "EngineConfig",
    "EngineError",
    "ExecutionConfig",
    "FileError",
    "Finished",
    "GenerationConfig",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "KVCache",
    "LoRAConfig",
    "MeshConfig",
    "NoImageDecoder",
    "OptimizerConfig",
    "OutOfMemory",
    "PictureDone",
    "PictureProgress",
    "PictureStarted",
    "PreprocessingConfig",
    "PromptError",
    "SamplesConfig",
    "SamplingConfig",
    "StageConfig",
    "Stream",
    "TextPiece",
    "TrainConfig",
    "TrainingError",
    "Transformer",
    "TransformerConfig",
    "Turn",
    "VQModel",
    "Vocabulary",
    "load",
    "make_mesh",
    "open_checkpoint",
    "open_image",
    "parse_prompt",
    "read_config",
    "read_image_tokenizer",
    "train",
    "write_checkpoint",
    "write_image_tokenizer",
]
