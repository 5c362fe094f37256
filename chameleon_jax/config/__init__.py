"""Everything configurable: frozen dataclasses, read strictly from YAML, overridable from the command line."""

from chameleon_jax.config.data import ImageTokenizerCommand, PrepareCommand, SourceConfig, TextTokenizerCommand
from chameleon_jax.config.demo import DemoCommand, EvaluationConfig
from chameleon_jax.config.generation import GenerationConfig, SamplingConfig
from chameleon_jax.config.models import DType, ImageTokenizerConfig, PreprocessingConfig, TransformerConfig
from chameleon_jax.config.reading import (
    ConfigError,
    find_configs,
    from_dict,
    read_config,
    read_yaml,
    require,
    to_dict,
)
from chameleon_jax.config.training import (
    CheckpointConfig,
    CompileOptions,
    ImageTokenizerTrainConfig,
    MeshConfig,
    OptimizerConfig,
    StageConfig,
    TextTokenizerConfig,
    TrainConfig,
)
from chameleon_jax.config.weights import BenchCommand, ConvertCommand, InspectCommand

__all__ = [
    "BenchCommand",
    "CheckpointConfig",
    "CompileOptions",
    "ConfigError",
    "ConvertCommand",
    "DType",
    "DemoCommand",
    "EvaluationConfig",
    "GenerationConfig",
    "ImageTokenizerCommand",
    "ImageTokenizerConfig",
    "ImageTokenizerTrainConfig",
    "InspectCommand",
    "MeshConfig",
    "OptimizerConfig",
    "PrepareCommand",
    "PreprocessingConfig",
    "SamplingConfig",
    "SourceConfig",
    "StageConfig",
    "TextTokenizerCommand",
    "TextTokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "find_configs",
    "from_dict",
    "read_config",
    "read_yaml",
    "require",
    "to_dict",
]
