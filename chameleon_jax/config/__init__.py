"""Everything configurable: frozen dataclasses, read strictly from YAML, overridable from the command line."""

from chameleon_jax.config.bench import BenchGenerateConfig, BenchOptions, BenchTrainConfig
from chameleon_jax.config.demo import DemoCommand, EvaluationConfig, PicturesDemoCommand, PicturesEvaluationConfig
from chameleon_jax.config.evaluation import CompareOptions, CompareReportCommand, EvaluateImageTokenizerCommand
from chameleon_jax.config.generation import EngineConfig, GenerateOptions, GenerationConfig, SamplingConfig
from chameleon_jax.config.models import (
    DType,
    ExecutionConfig,
    ImageTokenizerConfig,
    ImageTokenizerExecutionConfig,
    LoRAConfig,
    PreprocessingConfig,
    TransformerConfig,
)
from chameleon_jax.config.project import InitCommand, RunCommand
from chameleon_jax.config.reading import (
    find_configs,
    from_dict,
    read_config,
    read_yaml,
    require,
    to_dict,
)
from chameleon_jax.config.serving import LimitsConfig, ServeConfig
from chameleon_jax.config.tokenizers import (
    DiscriminatorConfig,
    ImageTokenizerTrainConfig,
    PerceptualConfig,
    ReconstructionsConfig,
    TextTokenizerConfig,
)
from chameleon_jax.config.training import (
    BadStepsConfig,
    CheckpointConfig,
    CompileOptions,
    DistributedConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SamplePrompt,
    SamplesConfig,
    StageConfig,
    TrainConfig,
    stage_ends,
)
from chameleon_jax.config.weights import BenchCommand, ConvertCommand, InspectCommand, PushCommand
from chameleon_jax.errors import ConfigError

__all__ = [
    "BadStepsConfig",
    "BenchCommand",
    "BenchGenerateConfig",
    "BenchOptions",
    "BenchTrainConfig",
    "CheckpointConfig",
    "CompareOptions",
    "CompareReportCommand",
    "CompileOptions",
    "ConfigError",
    "ConvertCommand",
    "DType",
    "DemoCommand",
    "DiscriminatorConfig",
    "DistributedConfig",
    "EngineConfig",
    "EvaluateImageTokenizerCommand",
    "EvaluationConfig",
    "ExecutionConfig",
    "GenerateOptions",
    "GenerationConfig",
    "ImageTokenizerConfig",
    "ImageTokenizerExecutionConfig",
    "ImageTokenizerTrainConfig",
    "InitCommand",
    "InspectCommand",
    "LimitsConfig",
    "LoRAConfig",
    "MeshConfig",
    "OptimizerConfig",
    "PerceptualConfig",
    "PicturesDemoCommand",
    "PicturesEvaluationConfig",
    "PreprocessingConfig",
    "ProfileConfig",
    "PushCommand",
    "ReconstructionsConfig",
    "RunCommand",
    "RunConfig",
    "SamplePrompt",
    "SamplesConfig",
    "SamplingConfig",
    "ServeConfig",
    "StageConfig",
    "TextTokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "find_configs",
    "from_dict",
    "read_config",
    "read_yaml",
    "require",
    "stage_ends",
    "to_dict",
]
