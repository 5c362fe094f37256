"""Everything configurable: frozen dataclasses, read strictly from YAML, overridable from the command line.

A key that does not exist, a value of the wrong type and a combination that cannot work are each one `ConfigError`
line that names the place, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message is one line meant for a person."""


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises `ConfigError` "key = value: allowed" unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} = {value!r}: {allowed}")


# ----------------------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The unified Transformer (paper section 2.3, table 1)."""

    vocab_size: int = 65536
    """Rows of the embedding: text pieces, image codes and special tokens of one vocabulary."""
    d_model: int = 4096
    """Width of the residual stream."""
    num_layers: int = 32
    num_heads: int = 32
    """Query heads."""
    num_kv_heads: int = 32
    """Key/value heads; fewer than `num_heads` is grouped-query attention."""
    head_dim: int = 128
    mlp_dim: int = 11008
    """Hidden width of the SwiGLU feed-forward."""
    qk_norm: bool = True
    """LayerNorm on queries and keys (section 2.3: without it the 7B model diverges)."""
    qk_norm_groups: int = 1
    """Heads of a group share one scale and bias. Released: 1 for 7B, 4 for 34B (one per model-parallel shard)."""
    norm_order: Literal["pre", "swin"] = "pre"
    """'pre': h + F(norm(h)), as in Llama and the 7B. 'swin': h + norm(F(h)), as in the 34B."""
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    dropout: float = 0.0
    """Dropped share of each branch just before it is added to the residual stream, in training."""
    init_std: float = 0.02
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"
    """Precision of the matrix products; norms, softmax, RoPE, logits and losses are float32 throughout."""
    remat: Literal["none", "full"] = "none"
    """'full' recomputes each layer in the backward pass: less memory, about a third more work."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"must divide num_heads = {self.num_heads}",
        )
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "must be even, RoPE rotates pairs of channels")
        require(
            self.qk_norm_groups > 0
            and self.num_heads % self.qk_norm_groups == 0
            and self.num_kv_heads % self.qk_norm_groups == 0,
            "qk_norm_groups",
            self.qk_norm_groups,
            f"must divide num_heads = {self.num_heads} and num_kv_heads = {self.num_kv_heads}",
        )
        require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "must be in [0, 1)")
        require(self.init_std > 0.0, "init_std", self.init_std, "must be positive")


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
    """The VQGAN that turns a picture into codes and back. The defaults are the released tokenizer."""

    resolution: int = 512
    """Height and width of a picture in pixels."""
    space_to_depth: int = 1
    """Side of the pixel squares folded into channels before the first convolution. Released: 1. A larger one keeps a
    small tokenizer fast on a CPU, where convolutions at full resolution are slow."""
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level as a multiple of `channels`; the picture is halved between levels."""
    num_res_blocks: int = 2
    """Residual blocks per encoder level; the decoder has one more."""
    latent_channels: int = 256
    """Channels of the encoder output (`z_channels`)."""
    code_dim: int = 256
    num_codes: int = 8192
    norm_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Pixels per code along each side."""
        return self.space_to_depth * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along each side of a picture."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    def __post_init__(self):
        for name in ("resolution", "space_to_depth", "channels", "num_res_blocks", "latent_channels", "code_dim"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(self.num_codes > 1, "num_codes", self.num_codes, "must be at least 2")
        require(
            len(self.channel_multipliers) > 0 and min(self.channel_multipliers) > 0,
            "channel_multipliers",
            list(self.channel_multipliers),
            "must be a list of positive whole numbers",
        )
        require(
            self.resolution % self.downsampling == 0,
            "resolution",
            self.resolution,
            f"must be a multiple of space_to_depth x 2^(levels - 1) = {self.downsampling}",
        )
        require(
            self.norm_groups > 0 and self.channels % self.norm_groups == 0,
            "norm_groups",
            self.norm_groups,
            f"must divide channels = {self.channels}",
        )


# ----------------------------------------------------------------------------------------------------------------------
# Data
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of Documents."""

    kind: Literal[
        "digit_captions",
        "digit_questions",
        "digit_sums",
        "digit_counting",
        "python_reference",
        "python_stdlib",
        "documents",
    ]
    """The digit kinds make documents about real handwritten digits; python_reference is prose and python_stdlib code;
    'documents' reads your own JSON lines."""
    name: str = ""
    """What the mixture calls it. Default: the kind."""
    split: str = "train"
    """Split of an embedded data set, or a slice of one: train, test, train[:90%]."""
    count: int = 0
    """Documents to make. Digit kinds draw this many; other kinds stop after as many. 0: each item once."""
    augment: bool = False
    """Shift, turn and scale each picture a little. For training only."""
    path: str = ""
    """File of JSON lines, for kind 'documents'."""
    seed: int = 0

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        require(self.count >= 0, "count", self.count, "must be 0 or more")
        require(
            self.name.replace("_", "").replace("-", "").isalnum(),
            "name",
            self.name,
            "must consist of letters, digits, - and _ (it becomes part of file names)",
        )
        require((self.kind == "documents") == bool(self.path), "path", self.path, "goes with kind 'documents' only")


@dataclasses.dataclass(frozen=True)
class TextTokenizerCommand:
    """`chameleon train-text-tokenizer`: learn text pieces from the text of some sources."""

    output: str
    """File for the SentencePiece model."""
    tokenizer: TextTokenizerConfig
    sources: tuple[SourceConfig, ...]
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""


@dataclasses.dataclass(frozen=True)
class ImageTokenizerCommand:
    """`chameleon train-image-tokenizer`: learn image codes from the pictures of some sources."""

    output: str
    """Folder for the tokenizer and its metrics."""
    tokenizer: ImageTokenizerTrainConfig
    sources: tuple[SourceConfig, ...]
    """All pictures of their documents are learnt from."""
    held_out: tuple[SourceConfig, ...] = ()
    """Pictures that PSNR and codebook use are measured on."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""
    log_every: int = 20


@dataclasses.dataclass(frozen=True)
class PrepareCommand:
    """`chameleon prepare`: Documents to packed rows of tokens, ahead of training."""

    text_tokenizer: str
    """File that `chameleon train-text-tokenizer` wrote."""
    image_tokenizer: str
    """Folder that `chameleon train-image-tokenizer` wrote."""
    output: str
    """Folder for the rows, the joined tokenizer and dataset.json."""
    sequence_length: int
    """Tokens a row."""
    sources: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...] = ()
    """Sources that training measures its loss on and never learns from."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""

    def __post_init__(self):
        require(self.sequence_length > 1, "sequence_length", self.sequence_length, "must be at least 2")
        for field in ("sources", "held_out"):
            names = [source.name for source in getattr(self, field)]
            require(len(set(names)) == len(names), field, names, "names must differ; set `name` where a kind is repeated")
        require(len(self.sources) > 0, "sources", [], "must list at least one source")


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TextTokenizerConfig:
    """A SentencePiece byte-pair encoding."""

    vocab_size: int
    """Text pieces, the 256 bytes among them."""
    character_coverage: float = 0.9999
    """Share of all characters that get a piece of their own; the rest is written in bytes."""
    max_lines: int = 1_000_000
    """Lines to learn from, drawn at random if there are more."""
    seed: int = 0

    def __post_init__(self):
        require(self.vocab_size > 300, "vocab_size", self.vocab_size, "must be above 300: 256 bytes and some characters")
        require(0 < self.character_coverage <= 1, "character_coverage", self.character_coverage, "must be in (0, 1]")


@dataclasses.dataclass(frozen=True)
class ImageTokenizerTrainConfig:
    """Training of the image tokenizer: model, losses, codebook upkeep, schedule."""

    model: ImageTokenizerConfig
    steps: int
    batch_size: int
    """Pictures a step."""
    learning_rate: float = 1e-3
    final_fraction: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 50
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0
    reconstruction: Literal["l1", "l2"] = "l2"
    commitment: float = 0.25
    """Weight of mean |sg(code) - z|^2, which keeps the encoder near its codes."""
    codebook_decay: float = 0.99
    restart_below: float = 0.05
    """A code used less than this share of the mean use moves to a latent of the current batch."""
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(self.warmup_steps < self.steps, "warmup_steps", self.warmup_steps, f"must be below steps = {self.steps}")
        require(0 < self.codebook_decay < 1, "codebook_decay", self.codebook_decay, "must be in (0, 1)")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule. The defaults are the paper's pre-training recipe (section 2.3)."""

    name: Literal["adamw", "muon"] = "adamw"
    """'muon' orthogonalises the updates of the matrices inside the layers; the rest stays with AdamW."""
    learning_rate: float = 1e-4
    schedule: Literal["cosine", "exponential", "linear", "constant"] = "exponential"
    warmup_steps: int = 4000
    final_fraction: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    """Applied to matrices and embeddings, not to norms and biases."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    muon_momentum: float = 0.95

    def __post_init__(self):
        for name in ("learning_rate", "clip_norm", "eps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must be 0 or more")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be 0 or more")
        for name in ("b1", "b2", "muon_momentum"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "must be in [0, 1]")
        require(
            self.schedule != "exponential" or self.final_fraction > 0,
            "final_fraction",
            self.final_fraction,
            "must be above 0 for an exponential decay",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. One size may be -1 and takes the devices that are left."""

    data: int = -1
    """Copies of the model, each on its own share of the batch."""
    fsdp: int = 1
    """Parameters and optimizer state cut into this many parts, gathered as they are needed."""
    tensor: int = 1
    """Heads, feed-forward and vocabulary cut into this many parts."""

    def __post_init__(self):
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size == -1 or size > 0, name, size, "must be at least 1, or -1 for the devices that are left")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one size may be -1")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stretch of training with its own mixture of data."""

    share: float
    """Share of all steps."""
    weights: dict[str, float]
    """Sampling weight of each prepared source; a source that is not named is not read."""

    def __post_init__(self):
        require(0 < self.share <= 1, "share", self.share, "must be in (0, 1]")
        require(
            len(self.weights) > 0 and min(self.weights.values()) >= 0 and sum(self.weights.values()) > 0,
            "weights",
            self.weights,
            "must name at least one source, with weights of 0 or more and one above 0",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 3
    """Newest checkpoints to keep."""

    def __post_init__(self):
        require(self.every > 0, "every", self.every, "must be at least 1")
        require(self.keep > 0, "keep", self.keep, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`chameleon train`: a Transformer on prepared data."""

    data: str
    """Folder that `chameleon prepare` wrote."""
    output: str
    """Folder for checkpoints, metrics.jsonl and, at the end, the model."""
    model: TransformerConfig
    steps: int
    batch_size: int
    """Rows a step, over all devices."""
    stages: tuple[StageConfig, ...]
    """Mixtures of data, one after another."""
    optimizer: OptimizerConfig = OptimizerConfig()
    z_loss: float = 1e-5
    """Weight of (log Z)^2, which keeps the logits from drifting."""
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int = 0
    """Steps between losses on the held-out rows; 0: at the end only."""
    evaluation_batches: int = 8
    """Batches of each held-out source that such an evaluation reads; 0: all."""
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        for name in ("z_loss", "evaluate_every", "evaluation_batches"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(
            self.checkpoint.every % self.log_every == 0,
            "checkpoint.every",
            self.checkpoint.every,
            f"must be a multiple of log_every = {self.log_every}, so that a resumed run logs the same lines",
        )
        total = sum(stage.share for stage in self.stages)
        require(abs(total - 1) < 1e-6, "stages", [stage.share for stage in self.stages], "shares must add up to 1")
        require(
            self.optimizer.warmup_steps <= self.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"must be at most steps = {self.steps}",
        )


# ----------------------------------------------------------------------------------------------------------------------
# Generation
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How one token is drawn."""

    temperature: float = 0.7
    """0 takes the most likely token."""
    top_p: float = 0.9
    """Draw from the most likely tokens that together have this probability; 1 draws from all."""

    def __post_init__(self):
        require(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """What is written after a prompt. Defaults are those of the released code, with pictures switched on."""

    mode: Literal["interleaved", "text", "image"] = "interleaved"
    """'interleaved': text and pictures as the model likes. 'text': no pictures. 'image': exactly one picture."""
    max_new_tokens: int = 256
    """Most tokens to write; a picture counts its codes and two marks, and is begun only if it still fits."""
    text: SamplingConfig = SamplingConfig()
    image: SamplingConfig = SamplingConfig()
    text_guidance: float = 3.0
    """How strongly a picture follows the text before it; 1 is off."""
    image_guidance: float = 1.2
    """How strongly a picture follows the pictures before it; 1 is off and a third cheaper."""
    seed: int = 0

    def __post_init__(self):
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "must be at least 1")


# ----------------------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------------------


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return f"a mapping from names to {_type_name(typing.get_args(hint)[1])}"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint) or "a mapping"


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Returns `value`, as read from YAML, as an instance of the type `hint`."""

    def wrong() -> ConfigError:
        return ConfigError(f"{key} = {value!r}: must be {_type_name(hint)}")

    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, key)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise wrong()
        return value
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _convert(next(option for option in typing.get_args(hint) if option is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong()
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, each, f"{key}.{index}") for index, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong()
        return {str(name): _convert(typing.get_args(hint)[1], each, f"{key}.{name}") for name, each in value.items()}
    if hint is float:
        # YAML reads 3e-4 (no dot) as text; people write it all the time.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise wrong() from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong()
        return float(value)
    if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise wrong()
    if not isinstance(value, hint):
        raise wrong()
    return value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Builds the dataclass `cls` from plain data, as strictly as the types say.

    Args:
      cls: a dataclass whose fields are int, float, bool, str, Literal, X | None, tuple[X, ...], dict[str, X] or
        other dataclasses.
      values: a mapping, as `yaml.safe_load` gives it.
      where: dotted path of `values`, for messages.

    Raises:
      ConfigError: an unknown key, a missing key, a wrong type or a value the dataclass refuses.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__} = {values!r}: must be a mapping of the keys of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "known keys: " + ", ".join(fields)
            raise ConfigError(f"{prefix}{name}: there is no such key; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing; must be {_type_name(hints[name])}")
    converted = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise error if not where else ConfigError(f"{where}.{error}") from None


def to_dict(config: Any) -> Any:
    """The plain data (mappings, lists, numbers, text) that `from_dict` reads back to an equal config."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {name: to_dict(item) for name, item in config.items()}
    return config


def _override(values: Any, path: list[str], value: Any, flag: str) -> None:
    """Sets `values[path[0]][path[1]]… = value` in nested mappings and lists, in place."""
    for depth, name in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(values, list):
            if not name.isdigit() or int(name) >= len(values):
                raise ConfigError(f"{flag}: {name!r} is not a position in a list of {len(values)}")
            name = int(name)
        elif not isinstance(values, dict):
            raise ConfigError(f"{flag}: {'.'.join(path[:depth])} has no keys of its own")
        if last:
            values[name] = value
        elif isinstance(values, list):
            values = values[name]
        else:
            values = values.setdefault(name, {})


def _parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """Splits `--a.b-c 3 --d=x` into [("--a.b-c", 3), ("--d", "x")]; values are YAML."""
    pairs = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise ConfigError(f"{flag!r}: expected an option such as --key value (keys are those of the YAML file)")
        flag, separator, text = flag.partition("=")
        if not separator:
            if not rest:
                raise ConfigError(f"{flag}: a value must follow")
            text = rest.pop(0)
        try:
            pairs.append((flag, yaml.safe_load(text)))
        except yaml.YAMLError:
            raise ConfigError(f"{flag} = {text!r}: cannot be read; quote text that holds YAML's own signs") from None
    return pairs


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file; a missing or malformed one is a `ConfigError` naming the file and line."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f", line {line + 1}" if line is not None else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', error)}") from None


def load(cls: type[T], path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """Reads the config `cls` from a YAML file and applies command-line overrides.

    Args:
      cls: the dataclass to build.
      path: a YAML file; None starts from the defaults of `cls`.
      overrides: arguments such as `["--optimizer.learning-rate", "3e-4"]`; `-` and `_` are the same, a number selects
        from a list (`--sources.0.split test`).

    Raises:
      ConfigError: naming the file or option, the key, the value and what is allowed.
    """
    values = read_yaml(path) if path is not None else {}
    if values is None:
        values = {}
    pairs = _parse_overrides(list(overrides))
    if isinstance(values, dict):
        for flag, value in pairs:
            _override(values, flag.removeprefix("--").replace("-", "_").split("."), value, flag)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        raise error if path is None else ConfigError(f"{path}: {error}") from None
