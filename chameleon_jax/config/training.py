"""Training of the Transformer: optimizer, mesh, checkpoints, the whole run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from chameleon_jax.config.generation import GenerationConfig
from chameleon_jax.config.models import (
    MOVED_KEYS,
    DType,
    ExecutionConfig,
    LoRAConfig,
    TransformerConfig,
)
from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.resuming import Adjustable, ChangesRounding


@config
class OptimizerConfig:
    """Optimizer and learning-rate schedule. The defaults are the paper's pre-training recipe (section 2.3)."""

    name: Literal["adamw", "muon"] = "adamw"
    """'muon' orthogonalises the updates of the matrices inside the layers; all other parameters use AdamW."""
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
    """Gradients are clipped to this global norm."""
    muon_momentum: float = 0.95
    moment_dtype: ChangesRounding[DType] = "float32"
    """Type in which both moments of AdamW and the momentum of Muon are stored between steps; they are computed in
    float32. 'bfloat16' saves 4 bytes per parameter (AdamW) and rounds the moments at each step."""

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


@config
class MeshConfig:
    """The device mesh. One size may be -1, which takes the remaining devices."""

    data: int = -1
    """Data parallelism: copies of the model, each with its own share of the batch."""
    fsdp: int = 1
    """Fully sharded data parallelism: parameters and optimizer state in this many shards, gathered when needed."""
    tensor: int = 1
    """Tensor parallelism: heads, feed-forward and vocabulary in this many shards."""
    sequence: int = 1
    """Sequence parallelism: rows sharded along their length, for contexts that are too long for one device."""

    def __post_init__(self):
        sizes = {"data": self.data, "fsdp": self.fsdp, "sequence": self.sequence, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size == -1 or size > 0, name, size, "must be at least 1, or -1 for the devices that are left")
        require(list(sizes.values()).count(-1) <= 1, "data", self.data, f"only one size may be -1, here: {sizes}")


@config
class StageConfig:
    """A stage of training with its own mixture of data."""

    share: float
    """Share of all steps."""
    weights: dict[str, float]
    """Weight of each prepared pool of rows: its tokens, relative to those of the others. Pools that are not named are
    not read."""

    def __post_init__(self):
        require(0 < self.share <= 1, "share", self.share, "must be in (0, 1]")
        require(
            len(self.weights) > 0 and min(self.weights.values()) >= 0 and sum(self.weights.values()) > 0,
            "weights",
            self.weights,
            "must name at least one pool, with weights of 0 or more and one above 0",
        )


def stage_ends(stages: Sequence[StageConfig], rows: int) -> list[int]:
    """Number of rows that have been read at the end of each stage."""
    ends = [round(rows * sum(stage.share for stage in stages[: number + 1])) for number in range(len(stages))]
    return [*ends[:-1], rows]


@config
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints. The last step is always saved, and so is the one at which the run is asked to stop
    (Ctrl-C, or SIGTERM, which schedulers send before they preempt a machine)."""
    keep: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are never deleted; 0: none."""
    best: str = ""
    """A held-out loss: held_out.NAME.loss, or text_loss or image_loss in the last place. The checkpoint with the lowest
    value is kept besides the newest ones, and the final model is that of its step."""
    patience: int = 0
    """Evaluations without improvement of `best` after which the run ends early; 0: never."""

    def __post_init__(self):
        for name in ("every", "keep"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(
            not self.best or re.fullmatch(r"held_out\.[\w-]+\.(loss|text_loss|image_loss)", self.best) is not None,
            "best",
            self.best,
            "must be held_out.NAME.loss with the name of a held-out source, or text_loss or image_loss instead of loss",
        )
        require(self.patience >= 0, "patience", self.patience, "must be 0 or more")
        require(not self.patience or bool(self.best), "patience", self.patience, "needs checkpoint.best to wait for")
        require(
            self.keep_every % self.every == 0,
            "keep_every",
            self.keep_every,
            f"must be a multiple of every = {self.every}, or 0",
        )


@config
class BadStepsConfig:
    """What to do at a step whose loss or gradient is not finite or too large. Its update is never applied, and the rows
    of its batch are listed in bad_steps.jsonl."""

    action: Literal["stop", "skip"] = "stop"
    """'stop' ends the run, which keeps its last checkpoint; 'skip' continues with the next batch."""
    gradient_norm: float = 0.0
    """Gradients above this global norm (before clipping) are too large; 0: no limit."""
    limit: int = 10
    """Number of consecutive bad steps that ends a run with action 'skip'."""

    def __post_init__(self):
        require(self.gradient_norm >= 0, "gradient_norm", self.gradient_norm, "must be 0 or more")
        require(self.limit > 0, "limit", self.limit, "must be at least 1")


@config
class ProfileConfig:
    """A trace of some steps, for TensorBoard's profile page, xprof or Perfetto."""

    steps: int = 0
    """Steps to trace; 0: none."""
    start: int = 10
    """Steps of this process to skip before the trace, so that it does not include compilation; 0 includes it."""

    def __post_init__(self):
        for name in ("steps", "start"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")


@config
class SamplePrompt:
    """A prompt for the model in training to continue."""

    text: str = ""
    """⟨image⟩ or <image> marks the place of each picture."""
    images: tuple[str, ...] = ()
    """Picture files."""
    mode: Literal["auto", "interleaved", "text", "image"] = "auto"
    """What to generate; see `mode` of `chameleon generate`."""

    def __post_init__(self):
        require(bool(self.text or self.images), "text", self.text, "must be given, or images")


@config
class SamplesConfig:
    """Samples of text and pictures from the model in training, in <output>/samples and the trackers."""

    every: int = 0
    """Steps between samples, which are also drawn after the last step; 0: never."""
    prompts: tuple[SamplePrompt, ...] = ()
    generation: GenerationConfig = GenerationConfig()
    """Options of sampling, except `mode`, which is that of each prompt."""

    def __post_init__(self):
        require(self.every >= 0, "every", self.every, "must be 0 or more")
        require(
            (self.every > 0) == bool(self.prompts),
            "prompts",
            [prompt.text for prompt in self.prompts],
            f"must list at least one prompt where every = {self.every} is above 0, and none where it is 0",
        )
        require(self.generation.mode == "auto", "generation.mode", self.generation.mode, "goes with each prompt")


@config
class DistributedConfig:
    """How the processes of one run find each other. Cloud TPU, GKE, Slurm and Open MPI 4 are detected; these keys are
    for other launchers, and take precedence. Only `process` differs between processes."""

    coordinator: str = ""
    """host:port of process 0, reachable from all. Also read from CHAMELEON_COORDINATOR."""
    processes: int = 0
    """Number of processes; 1 needs no other key. Also read from CHAMELEON_PROCESSES."""
    process: int = -1
    """Index of this process, from 0. Also read from CHAMELEON_PROCESS."""
    heartbeat_seconds: int = 30
    """A process that has sent no heartbeat for this long is considered dead, and the others end."""

    def __post_init__(self):
        require(self.processes >= 0, "processes", self.processes, "must be 0 or more")
        require(self.heartbeat_seconds >= 5, "heartbeat_seconds", self.heartbeat_seconds, "must be at least 5")


@config
class RunConfig:
    """What the runs of all training tasks have in common."""

    _: dataclasses.KW_ONLY
    output: Adjustable[str]
    """Folder for checkpoints, metrics.jsonl and, at the end, the model."""
    steps: Adjustable[int]
    """Total number of updates. It may be raised when a run is resumed; a decaying learning rate then jumps to the new
    schedule, with a message."""
    batch_size: int
    """Rows per step, over all devices."""
    optimizer: OptimizerConfig = OptimizerConfig()
    accumulation: ChangesRounding[int] = 1
    """Gradient accumulation: parts of a batch that are computed one after another, so that the activations of only one
    are in memory. Up to rounding, the step is the same; with dropout each part has its own mask. Evaluation uses the
    same parts."""
    ema: float = 0.0
    """Decay of an exponential moving average of the trained parameters, such as 0.999; 0: none. The average, in
    float32, is evaluated, sampled from and written as the model. At step n the decay is at most n / (n + 10)."""
    mesh: Adjustable[MeshConfig] = MeshConfig()
    distributed: Adjustable[DistributedConfig] = DistributedConfig()
    compiler_options: ChangesRounding[Literal["auto", "none"]] = "auto"
    """Compiler options of XLA for the steps: 'auto' takes those of `chameleon_jax/runtime/compiler_options.py` for the
    devices at hand, 'none' the defaults and XLA_FLAGS."""
    checkpoint: Adjustable[CheckpointConfig] = CheckpointConfig()
    bad_steps: Adjustable[BadStepsConfig] = BadStepsConfig()
    profile: Adjustable[ProfileConfig] = ProfileConfig()
    trackers: Adjustable[tuple[Literal["tensorboard", "wandb"], ...]] = ()
    """Where metrics go besides metrics.jsonl. Each needs the extra of its name."""
    log_every: Adjustable[int] = 10
    """Steps between lines of metrics.jsonl."""
    evaluate_every: Adjustable[int] = 0
    """Steps between evaluations on what is held out, which get a line of metrics.jsonl; 0: only at the end."""
    evaluation_batches: Adjustable[int] = 8
    """Batches of each held-out source per evaluation; 0: all."""
    seed: int = 0
    """Of the weights, the order of the rows, dropout and noise."""

    @property
    def depends_on_mesh(self) -> str:
        """The key by which the numbers of this run depend on the mesh beyond rounding, for messages."""
        return ""

    @property
    def rows_of_first_stage(self) -> int:
        """Rows after which those that are read depend on `steps`."""
        return self.steps * self.batch_size

    def __post_init__(self):
        require_seed(self.seed)
        for name in ("steps", "batch_size", "log_every", "accumulation"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        for name in ("evaluate_every", "evaluation_batches"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(0 <= self.ema < 1, "ema", self.ema, "must be in [0, 1)")
        require(
            not self.checkpoint.best or self.evaluate_every > 0,
            "evaluate_every",
            self.evaluate_every,
            "must be above 0 with checkpoint.best, which is chosen among the evaluations",
        )
        require(
            self.checkpoint.every % self.log_every == 0,
            "checkpoint.every",
            self.checkpoint.every,
            f"must be a multiple of log_every = {self.log_every}, so that a resumed run logs the same lines",
        )
        require(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            self.accumulation,
            f"must divide batch_size = {self.batch_size}",
        )
        require(
            self.optimizer.warmup_steps <= self.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"must be at most steps = {self.steps}",
        )


@config
class TrainConfig(RunConfig):
    """Training of a Transformer: a whole run, as `chameleon train` and `train` take it."""

    _: dataclasses.KW_ONLY
    model: TransformerConfig
    data: Adjustable[str] = ""
    """Folder that `chameleon prepare` wrote. Not needed if `train` is called with Batches."""
    stages: tuple[StageConfig, ...] = ()
    """Stages with their mixtures of the pools in `data`, in order. Not needed if `train` is called with Batches."""
    max_epochs: Adjustable[dict[str, float]] = dataclasses.field(default_factory=dict)
    """How often the rows of a pool may be read over the whole run; a run that would read more does not start. Pools
    that are not named may be read any number of times."""
    execution: ChangesRounding[ExecutionConfig] = ExecutionConfig()
    lora: LoRAConfig = LoRAConfig()
    """Low-rank adapters to train instead of the parameters of the model."""
    dropout: float = 0.0
    """Dropout rate on the output of each branch, before it is added to the residual stream."""
    image_code_noise: float = 0.0
    """Largest share of the image codes of a document that are read as random ones, in training alone; the share is
    drawn anew for each document, uniformly from 0 to this. Targets stay, and so do codes without a weight in the loss,
    which are only read. Small data invites a model to recognise a picture by its first codes and to ignore the text
    before it; with noise, it needs the text throughout (word dropout of Bowman et al., 2016, section 3.1)."""
    tie_embeddings: bool = False
    """Train the embedding and the output layer as one matrix (Press & Wolf, 2017), which suits small models: what is
    learnt of an image code by writing it is known in reading it. Both are kept, equal, as in the released form."""
    initial: Adjustable[str] = ""
    """Model to start from, in any format: a folder, or hf://org/name on the Hugging Face Hub. Default: random
    initialisation."""
    initial_adapters: Adjustable[str] = ""
    """Folder of low-rank adapters to merge into `initial` first, such as `adapters` of a run."""
    trainable: Literal["all", "image_head"] = "all"
    """'image_head': train only the output layer's columns of image codes, which lets the released weights draw again.
    With `lora.rank`, only the adapters are trained."""
    fresh_image_head: bool = False
    """Reinitialise these columns before the first step."""
    sequence_length: Adjustable[int | None] = None
    """Tokens per row. Must be that of the prepared data; null takes it from there. `chameleon compile`, which has no
    data, needs it."""
    loss_chunk: ChangesRounding[int] = 0
    """Positions of each row whose logits are computed at a time, and recomputed in the backward pass; 0: all at once.
    The logits of a whole batch over 65,536 ids are often the largest array of a step."""
    image_loss_weight: float = 1.0
    """Weight of the predictions of image codes in the loss, next to 1 of those of text; reported losses are means with
    these weights. A picture has many more tokens than its caption, so less than 1 lets captions be learnt sooner."""
    z_loss: float = 1e-5
    """Weight of (log Z)^2 in the loss, which keeps the logits from drifting."""
    dropout_bits: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Random number generator of dropout and noise. 'threefry2x32' gives the same masks on all devices and meshes, but
    is slow on TPUs; 'rbg' is their own generator, whose masks depend on the mesh and the kind of device."""
    samples: Adjustable[SamplesConfig] = SamplesConfig()

    moved_keys: ClassVar[dict[str, str]] = MOVED_KEYS

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A file that leaves out `model.vocab_size` or `model.context_length` asks for what the data needs."""
        model = values.get("model")
        if not isinstance(model, dict):
            return values
        return {**values, "model": {"vocab_size": None, "context_length": None, **model}}

    @property
    def depends_on_mesh(self) -> str:
        random = self.dropout or self.image_code_noise
        return "dropout_bits = 'rbg'" if random and self.dropout_bits == "rbg" else ""

    @property
    def rows_of_first_stage(self) -> int:
        rows = self.steps * self.batch_size
        return stage_ends(self.stages, rows)[0] if len(self.stages) > 1 else rows

    def __post_init__(self):
        super().__post_init__()
        require(
            self.sequence_length is None or self.sequence_length > 0,
            "sequence_length",
            self.sequence_length,
            "must be at least 1, or null for that of the prepared data",
        )
        for name in ("z_loss", "loss_chunk"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        for name, epochs in self.max_epochs.items():
            require(epochs > 0, f"max_epochs.{name}", epochs, "must be above 0")
        require(
            self.image_loss_weight > 0,
            "image_loss_weight",
            self.image_loss_weight,
            "must be above 0; to train on text alone, give the sources loss: text",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be in [0, 1)")
        noise = self.image_code_noise
        require(0 <= noise <= 1, "image_code_noise", noise, "must be from 0 to 1")
        others = self.initial or self.lora.rank or self.trainable != "all" or self.fresh_image_head
        require(
            not (self.tie_embeddings and others),
            "tie_embeddings",
            self.tie_embeddings,
            "must be false with initial, lora.rank, trainable: image_head or fresh_image_head: it makes one matrix of "
            "two from the first step on; a model that was trained with it goes on without it",
        )
        require(
            not (self.lora.rank and self.trainable != "all"),
            "trainable",
            self.trainable,
            "must be 'all' with lora.rank: the adapters are what is trained",
        )
        require(
            not self.initial_adapters or (bool(self.initial) and not self.lora.rank),
            "initial_adapters",
            self.initial_adapters,
            "goes with initial, the model that they belong to, and not with lora.rank: new adapters begin with a "
            "finished model, such as chameleon_jax.load(…, adapters=…).save(folder) writes",
        )
        require(
            not (self.lora.rank and self.fresh_image_head),
            "fresh_image_head",
            self.fresh_image_head,
            "must be false with lora.rank: the output layer is frozen, and would draw noise for ever; train it "
            "first (trainable: image_head), then the adapters from that model",
        )
        shares = [stage.share for stage in self.stages]
        require(not shares or abs(sum(shares) - 1) < 1e-6, "stages", shares, "shares must add up to 1")


@config
class CompileOptions:
    """What `chameleon compile`, `compile generate` and `compile image-tokenizer` compile for."""

    topology: str | None = None
    """TPUs to compile for, such as "v5p:4x4x8", which need not be present; null takes the devices at hand."""
    slices: int = 1
    """Slices of that topology, connected by the data centre's network."""
    json: bool = False
    """One JSON object instead of lines for people."""
    save: str | None = None
    """File for the executable."""

    def __post_init__(self):
        require(self.slices > 0, "slices", self.slices, "must be at least 1")
        require(
            self.slices == 1 or self.topology is not None, "slices", self.slices, "needs --topology, such as v5e:16x16"
        )
