"""Every key of every config changes what it says: no key is read and then forgotten.

`KEYS` has an entry for each of them. A function is called and fails if the key has no effect, which it looks for where
the value is used: a traced program, rows, a file, an error. A name is that of a test elsewhere whose subject is the
key. A new key needs an entry here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chameleon_jax.config as configs
from chameleon_jax.batch import Batch
from chameleon_jax.config import (
    BenchCommand,
    BenchTrainConfig,
    CompileOptions,
    DiscriminatorConfig,
    DistributedConfig,
    ExecutionConfig,
    GenerationConfig,
    ImageTokenizerConfig,
    ImageTokenizerExecutionConfig,
    ImageTokenizerTrainConfig,
    LoRAConfig,
    MeshConfig,
    OptimizerConfig,
    PerceptualConfig,
    StageConfig,
    TextTokenizerConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.config.reading import config
from chameleon_jax.config.tokenizers import ImageTokenizerOptimizerConfig
from data_pipeline import config as data_configs
from data_pipeline.augment import AugmentConfig
from data_pipeline.config import (
    DataCommand,
    ImageTokenizerCommand,
    PoolConfig,
    PrepareCommand,
    TextTokenizerCommand,
)
from data_pipeline.datasets import digit_documents, openmoji_documents, python_documents
from data_pipeline.filters import FilterConfig
from data_pipeline.forms import FormConfig, Template
from data_pipeline.near_duplicates import NearDuplicatesConfig
from data_pipeline.sources import (
    ConversationsSource,
    DocumentsSource,
    FolderSource,
    ParquetSource,
    SourceConfig,
    TableSource,
    TextSource,
    TfdsSource,
    WebDatasetSource,
)
from data_pipeline.sources import source as source_module

TESTS = Path(__file__).parents[1]
Check = Callable[[Path], None]


def differs(measure: Callable[[Any], Any], base: Any, /, **changes: Any) -> Check:
    """Checks that the measure of `base` is another one with these changes."""

    def check(folder: Path) -> None:
        before, after = measure(base), measure(dataclasses.replace(base, **changes))
        assert before != after, f"{changes} changes nothing"

    return check


# ----------------------------------------------------------------------------------------------------------------------
# Traced programs
# ----------------------------------------------------------------------------------------------------------------------

MODEL = TransformerConfig(vocab_size=16, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=12)


def _memo(measure: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Configs hold mappings and cannot be hashed; their text can."""
    known: dict[str, Any] = {}

    @functools.wraps(measure)
    def look_up(config: Any) -> Any:
        key = repr(config)
        if key not in known:
            known[key] = measure(config)
        return known[key]

    return look_up


def _transformer(run: TrainConfig) -> Any:
    from chameleon_jax.models.transformer import Transformer

    return Transformer(run.model, run.execution, run.lora)


@_memo
def model_program(run: TrainConfig) -> str:
    """How parameters are drawn, which goes through all of the model."""
    return str(jax.make_jaxpr(_transformer(run).init)(jax.random.key(0), jnp.zeros((2, 4), jnp.int32)))


@_memo
def gradient_program(run: TrainConfig) -> str:
    """The gradient of what a model makes of some rows."""
    from chameleon_jax.models.transformer import abstract_params

    def loss(params):
        return jnp.sum(_transformer(run).apply({"params": params}, jnp.zeros((2, 4), jnp.int32)))

    return str(jax.make_jaxpr(jax.grad(loss))(nn.unbox(abstract_params(run.model))))


def task_of(config: configs.RunConfig) -> Any:
    from chameleon_jax.training.image_tokenizer import ImageTokenizerTask
    from chameleon_jax.training.transformer import TransformerTask

    if isinstance(config, ImageTokenizerTrainConfig):
        return ImageTokenizerTask(config)
    return TransformerTask(config, np.arange(16) >= 8)


def placement(config: configs.RunConfig) -> str:
    """Where the state and the rows lie."""
    from chameleon_jax.sharding import batch_sharding, make_mesh
    from chameleon_jax.training.state import abstract_state

    mesh = make_mesh(config.mesh)
    return f"{mesh.shape} {batch_sharding(mesh).spec} {abstract_state(task_of(config), mesh)}"


@_memo
def train_program(config: TrainConfig) -> str:
    """The train step as it is traced."""
    from chameleon_jax.sharding import batch_sharding, make_mesh
    from chameleon_jax.training.state import abstract_state
    from chameleon_jax.training.step import make_train_step

    mesh = make_mesh(config.mesh)
    state = abstract_state(task_of(config), mesh)
    types = {"inputs": jnp.int32, "targets": jnp.int32, "loss_weights": jnp.float32}
    batch = Batch(
        *(
            jax.ShapeDtypeStruct((config.batch_size, 8), types.get(name, jnp.int32), sharding=batch_sharding(mesh))
            for name in Batch._fields
        )
    )
    with jax.set_mesh(mesh):
        return str(make_train_step(task_of(config), mesh).trace(state, batch).jaxpr)


def options_for_xla(config: configs.RunConfig) -> Any:
    """What `jax.jit` is handed for the step."""
    from chameleon_jax.sharding import make_mesh
    from chameleon_jax.training import step

    given, mesh, jit = [], make_mesh(config.mesh), jax.jit

    def recording(function, **options):
        given.append(options.get("compiler_options"))
        return jit(function, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", recording)
        step.make_train_step(task_of(config), mesh)
    return given[-1]


@_memo
def optimizer_program(config: OptimizerConfig) -> str:
    from chameleon_jax.training.optimizer import make_optimizer

    params = {
        "embed": jnp.zeros((4, 2)),
        "layers": {"mlp": {"up": jnp.zeros((1, 2, 3))}},
        "norm": {"scale": jnp.zeros(2)},
    }
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(params)
    return str(jax.make_jaxpr(optimizer.update)(params, state, params))


@_memo
def image_model_program(config: ImageTokenizerConfig) -> str:
    from chameleon_jax.models.vq import VQModel

    pixels = jnp.zeros((1, config.resolution, config.resolution, 3))
    return str(jax.make_jaxpr(VQModel(config).init)(jax.random.key(0), pixels))


@_memo
def image_gradient_program(execution: ImageTokenizerExecutionConfig) -> str:
    from chameleon_jax.models.vq import VQModel, abstract_params

    def loss(params, pixels):
        return jnp.sum(VQModel(IMAGE_MODEL, execution).apply({"params": params}, pixels, method="latents"))

    return str(jax.make_jaxpr(jax.grad(loss))(abstract_params(IMAGE_MODEL), jnp.zeros((1, 16, 16, 3))))


@_memo
def image_train_program(config: ImageTokenizerTrainConfig) -> str:
    from chameleon_jax.batch import Pictures
    from chameleon_jax.sharding import make_mesh
    from chameleon_jax.training.state import abstract_state
    from chameleon_jax.training.step import make_train_step

    mesh, task, side = make_mesh(config.mesh), task_of(config), config.model.resolution
    sharding = task.batch_shardings(mesh)
    batch = Pictures(
        jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=sharding),
        jax.ShapeDtypeStruct((config.batch_size,), jnp.float32, sharding=sharding),
    )
    with jax.set_mesh(mesh):
        return str(make_train_step(task, mesh).trace(abstract_state(task, mesh), batch).jaxpr)


TRAIN = TrainConfig(
    data="", output="", model=MODEL, steps=8, batch_size=8, stages=(StageConfig(1.0, {"a": 1.0}),),
    optimizer=OptimizerConfig(warmup_steps=2),
)  # fmt: skip
IMAGE_MODEL = ImageTokenizerConfig(
    resolution=16, channels=8, channel_multipliers=(1,), num_res_blocks=1, latent_channels=4, code_dim=4,
    num_codes=16, norm_groups=4,
)  # fmt: skip
IMAGE_TRAIN = ImageTokenizerTrainConfig(model=IMAGE_MODEL, steps=100, batch_size=8)
IBQ = dataclasses.replace(IMAGE_TRAIN, codebook="ibq")
ADVERSARIAL = DiscriminatorConfig(weight=0.8, channels=4, stages=1)


# ----------------------------------------------------------------------------------------------------------------------
# Documents, tokenizers and rows
# ----------------------------------------------------------------------------------------------------------------------

WORDS = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyzÄéß"), (80, 5))
LINES = [" ".join("".join(WORDS[(number * step) % 80]) for step in range(1, 7)) for number in range(300)]
TEXT = TextTokenizerConfig(vocab_size=380)


def text_pieces(config: TextTokenizerConfig) -> bytes:
    from chameleon_jax.tokens.text import train_text_tokenizer

    return train_text_tokenizer(config, LINES).model


def jsonl(path: Path, text: str) -> SourceConfig:
    path.write_text("".join(json.dumps([f"{text} {line}"]) + "\n" for line in LINES), encoding="utf-8")
    return DocumentsSource(name=path.stem, path=str(path))


def _text_command(folder: Path) -> None:
    """Another output, other sources, another tokenizer: another file, other bytes."""
    from chameleon_jax.console.commands import train_text_tokenizer

    command = TextTokenizerCommand(str(folder / "a.model"), TEXT, (jsonl(folder / "one.jsonl", "one"),))
    train_text_tokenizer(command)
    first = (folder / "a.model").read_bytes()
    changes = {
        "sources": (jsonl(folder / "two.jsonl", "zwei drei"),),
        "tokenizer": dataclasses.replace(TEXT, vocab_size=400),
    }
    for number, (key, value) in enumerate(changes.items()):
        train_text_tokenizer(dataclasses.replace(command, **{key: value, "output": str(folder / f"{number}.model")}))
        assert (folder / f"{number}.model").read_bytes() != first


def asks_in(run: Callable[[Any], Any], command: Any) -> Check:
    """Checks that embedded data sets are looked for in the folder that `datasets` names."""

    class Asked(Exception):
        pass

    @config
    class AskingSource(SourceConfig):
        kind: str = "asking"

        def shards(self, datasets=""):
            raise Asked(datasets)

    def check(folder: Path) -> None:
        with pytest.raises(Asked, match="elsewhere"):
            run(dataclasses.replace(command, sources=(AskingSource(),), datasets="elsewhere", output=f"{folder}/out"))

    return check


def _prepare(command: PrepareCommand) -> None:
    from tiny_models import scrambled_tokenizer

    from data_pipeline.prepare import prepare

    prepare(command, scrambled_tokenizer())


def _command(name: str) -> Callable[[Any], Any]:
    from chameleon_jax.console import commands

    return getattr(commands, name)


DIGITS = digit_documents.DigitCaptionsSource()
TEXT_COMMAND = TextTokenizerCommand("", TEXT, (DIGITS,))
IMAGE_COMMAND = ImageTokenizerCommand("", IMAGE_TRAIN, (DIGITS,))
PREPARE = PrepareCommand("", 64, (DIGITS,), text_tokenizer="a", image_tokenizer="b")


def _image_command(folder: Path) -> None:
    """What the learning is handed, and what is measured afterwards: of sources, and of pictures that are prepared."""
    from PIL import Image
    from tiny_models import image_tokenizer

    from chameleon_jax.console import commands

    def source(name: str, grey: int) -> SourceConfig:
        Image.new("RGB", (16, 16), (grey,) * 3).save(folder / f"{name}.png")
        (folder / f"{name}.jsonl").write_text(json.dumps([{"image": f"{name}.png"}]) + "\n")
        return DocumentsSource(name=name, path=str(folder / f"{name}.jsonl"))

    def learn(config: ImageTokenizerTrainConfig, batches: Any, *, data_fingerprint: str, held_out: Any, **_) -> Any:
        first = np.arange(1)
        read = [batches(0, first), *(batches_of(first) for batches_of in held_out.values())]
        greys = [set(next(iter(each)).pixels.ravel().tolist()) for each in read]
        calls.append((config, data_fingerprint, list(held_out), greys))
        return image_tokenizer()

    def measure(tokenizers: Any, squares: Any) -> Any:
        return types.SimpleNamespace(figures=[{"mean": float(np.mean([square.pixels for square in squares]))}])

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "learn_image_tokenizer", learn)
        patch.setattr(commands, "save_image_tokenizer", lambda tokenizer, folder: None)
        patch.setattr(commands, "evaluate_image_tokenizers", measure)
        command = ImageTokenizerCommand(
            str(folder / "out"), IMAGE_TRAIN, (source("seen", 255),), (source("unseen", 7),)
        )
        for _ in range(2):  # the second time the pictures are there
            assert commands.train_image_tokenizer(command) == {"mean": 7.0}
        without = dataclasses.replace(command, held_out=(), output=f"{folder}/2")
        assert commands.train_image_tokenizer(without) == {"pictures": 1}
        prepared = ImageTokenizerCommand(f"{folder}/3", IMAGE_TRAIN, data=f"{folder}/out/pictures")
        assert commands.train_image_tokenizer(prepared) == {"mean": 7.0}
    config, fingerprint, *found = calls[0]
    assert config == dataclasses.replace(IMAGE_TRAIN, output=str(folder / "out"))
    assert found == [["unseen"], [{255}, {7}]]
    assert calls[1] == calls[0]
    assert calls[2][2:] == ([], [{255}])
    assert calls[3][1:] == (fingerprint, *found)
    assert (folder / "out").is_dir()


def mixed_rows(config: TrainConfig) -> list[tuple[int, int]]:
    from data_pipeline.mixture import Mixture

    rows = config.steps * config.batch_size
    mixture = Mixture({name: {"rows": 50, "tokens": 50} for name in ("a", "b")}, config.stages, rows, config.seed)
    return np.stack(mixture.rows(np.arange(rows))).T.tolist()


TWO_STAGES = (StageConfig(0.5, {"a": 1.0, "b": 1.0}), StageConfig(0.5, {"b": 1.0}))
STAGED = dataclasses.replace(TRAIN, stages=TWO_STAGES)


# ----------------------------------------------------------------------------------------------------------------------
# Other places
# ----------------------------------------------------------------------------------------------------------------------


def meant_by(config: DistributedConfig) -> Any:
    """What JAX is asked for, or the reason why it is not."""
    from chameleon_jax.runtime import distributed

    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
        distributed.start(config)
    return asked


PROCESSES = DistributedConfig("localhost:1", processes=2, process=1)
BENCH = BenchTrainConfig(model=MODEL, batch_size=2, length=16)


def bench_rows(config: BenchTrainConfig) -> str:
    from chameleon_jax.bench.train import random_batch

    return repr([array.tolist() for array in random_batch(config)])


def bench_run(config: BenchTrainConfig) -> str:
    from chameleon_jax.bench.train import train_config

    return repr(train_config(config))


def _bench_weights(folder: Path) -> None:
    from chameleon_jax.bench import weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_load_elsewhere", lambda folder, dtype: str(folder))
        command = BenchCommand(model=MODEL, repeats=2, folder=str(folder / "scratch"))
        figures = weights.bench_weights(command)
    assert len(figures["convert"]["meta"]["all_seconds"]) == 2
    assert figures["load"]["float32"].startswith(str(folder / "scratch"))
    assert figures["config"]["model"]["d_model"] == MODEL.d_model


def compile_options(key: str) -> Check:
    def check(folder: Path) -> None:
        from chameleon_jax.compilation import run

        found: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "describe_topology", lambda name, slices: found.update(topology=name, slices=slices))
            patch.setattr(run, "compile_train_step", lambda config, devices: (None, {}))
            patch.setattr(run, "save", lambda compiled, path: found.update(save=path))
            patch.setattr(run, "lines", lambda report: found.update(json="lines") or [])
            expected = CompileOptions(topology="v5e:4x4", slices=2, save="there")
            run.compile_command(TRAIN, expected)
        assert found[key] == ("lines" if key == "json" else getattr(expected, key))

    return check


ADAPTED = dataclasses.replace(TRAIN, lora=LoRAConfig(rank=2))
OPTIMIZER = OptimizerConfig(warmup_steps=4)


def sources_in(module: Any) -> list[type]:
    return [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__
            and issubclass(cls, SourceConfig)]  # fmt: skip


SOURCE: dict[str, Check | str] = {
    "kind": "test_sums_are_right",
    "name": "test_source_is_called_by_its_kind_unless_named",
    "count": "test_text_sources_stop_after_their_count",
    "loss": "test_documents_can_be_learnt_from_for_one_modality",
    "filter": "test_rule_names_itself_its_limit_and_what_it_found",
    "form": "test_record_that_a_template_does_not_fit_is_rejected",
    "augment": "test_augmentation_is_light_and_only_on_demand",
    "part": "test_parts_divide_the_records_and_none_changes_sides",
    "held_out": "test_parts_divide_the_records_and_none_changes_sides",
}
FILE: dict[str, Check | str] = {
    "path": "test_own_documents",
    "exif": "test_pictures_are_turned_as_their_exif_data_says_unless_told_not_to",
}
CAPTIONED: dict[str, Check | str] = {
    "path": "test_texts_and_pictures_are_the_same_in_every_layout",
    "exif": "test_pictures_are_turned_unless_told_not_to",
    "uncaptioned": "test_pictures_without_caption_are_rejected_or_kept",
}
TURNS: dict[str, Check | str] = {
    "prompt_loss": "test_every_answer_is_predicted_once_and_after_its_own_prompt_only",
    "answer_end": "test_every_answer_is_predicted_once_and_after_its_own_prompt_only",
    "prompt_fit": "test_prompts_keep_the_whole_picture_and_answers_its_centre",
    "answer_fit": "test_prompts_keep_the_whole_picture_and_answers_its_centre",
}
PICTURES: dict[str, Check | str] = {"picture_folder": "test_pictures_may_be_in_a_folder_of_their_own"}
SPLIT: dict[str, Check | str] = {"split": "test_slices_of_a_split"}
EMOJI: dict[str, Check | str] = {
    "split": "test_held_out_pictures_are_in_no_document",
    "resolution": "test_documents_at_another_resolution",
    "seed": "test_document_depends_on_its_number_and_the_seed",
}

KEYS: dict[type, dict[str, Check | str]] = {
    TransformerConfig: {
        key: differs(model_program, TRAIN, model=dataclasses.replace(MODEL, **{key: value}))
        for key, value in {
            "vocab_size": 24, "d_model": 16, "num_layers": 3, "num_heads": 2, "num_kv_heads": 4, "head_dim": 4,
            "mlp_dim": 16, "qk_norm": False, "qk_norm_groups": 2, "norm_order": "swin", "norm_eps": 1e-3,
            "rope_theta": 99.0, "init_std": 0.1,
        }.items()
    } | {
        "context_length": "test_more_than_the_model_was_trained_on_is_refused",
    },
    ExecutionConfig: {
        key: differs(model_program, TRAIN, execution=ExecutionConfig(**{key: value}))
        for key, value in {
            "param_dtype": "bfloat16", "compute_dtype": "bfloat16", "unroll": 2,
        }.items()
    } | {
        key: differs(gradient_program, TRAIN, execution=ExecutionConfig(**{key: value}))
        for key, value in {"attention": "blockwise", "remat": "full"}.items()
    },
    LoRAConfig: {
        "rank": differs(model_program, ADAPTED, lora=LoRAConfig(rank=3)),
        "alpha": differs(model_program, ADAPTED, lora=LoRAConfig(rank=2, alpha=3.0)),
        "targets": differs(model_program, ADAPTED, lora=LoRAConfig(rank=2, targets=("q",))),
    },
    OptimizerConfig: {
        **{
            key: differs(optimizer_program, OPTIMIZER, **{key: value})
            for key, value in {
                "name": "muon", "learning_rate": 1.0, "schedule": "linear", "warmup_steps": 5, "final_fraction": 0.5,
                "b1": 0.5, "b2": 0.5, "eps": 0.5, "weight_decay": 0.5, "clip_norm": 0.5, "moment_dtype": "bfloat16",
            }.items()
        },
        "muon_momentum": differs(optimizer_program, OptimizerConfig(name="muon"), muon_momentum=0.5),
    },
    MeshConfig: {
        "data": differs(placement, TRAIN, mesh=MeshConfig(data=4, fsdp=-1)),
        **{key: differs(placement, TRAIN, mesh=MeshConfig(**{key: 2})) for key in ("fsdp", "tensor", "sequence")},
    },
    TrainConfig: {
        **{
            key: differs(train_program, TRAIN, **{key: value})
            for key, value in {
                "trainable": "image_head", "dropout": 0.5, "image_code_noise": 0.5, "tie_embeddings": True,
                "image_loss_weight": 0.5, "lora": LoRAConfig(rank=2),
                "execution": ExecutionConfig(compute_dtype="bfloat16"), "steps": 9,
                "accumulation": 2, "loss_chunk": 4, "z_loss": 0.5, "ema": 0.5,
                "bad_steps": configs.BadStepsConfig(gradient_norm=2.0), "optimizer": OptimizerConfig(warmup_steps=3),
            }.items()
        },
        "model": differs(placement, TRAIN, model=dataclasses.replace(MODEL, d_model=16)),
        "compiler_options": differs(
            options_for_xla, dataclasses.replace(TRAIN, execution=ExecutionConfig(remat="full", unroll=2)),
            compiler_options="none",
        ),
        "dropout_bits": "test_dropout_follows_from_the_seed_and_the_step_alone",
        "mesh": differs(placement, TRAIN, mesh=MeshConfig(fsdp=2)),
        "batch_size": differs(mixed_rows, TRAIN, batch_size=16),
        "seed": differs(mixed_rows, TRAIN, seed=1),
        "data": "test_folder_without_rows_says_what_to_run",
        "output": "test_metrics_have_a_line_for_each_logged_step",
        "stages": differs(mixed_rows, STAGED, stages=TWO_STAGES[::-1]),
        "max_epochs": "test_more_epochs_than_allowed_are_refused_with_the_figures",
        "initial": "test_image_head_learns_to_draw_what_it_saw",
        "initial_adapters": "test_they_come_back_as_they_were_and_add_up_to_the_merged_model",
        "fresh_image_head": "test_a_run_draws_the_fresh_head_itself_and_resumes_without_drawing_again",
        "sequence_length": "test_rows_of_another_length_than_the_config_says_are_refused",
        "distributed": "test_options_win_over_variables",
        "checkpoint": "test_only_the_newest_are_kept",
        "profile": "test_steps_can_be_traced",
        "samples": "test_the_loop_samples_at_its_steps_and_after_the_last",
        "trackers": "test_metrics_go_to_tensorboard_as_well",
        "log_every": "test_a_line_holds_the_means_over_its_steps",
        "evaluate_every": "test_ctrl_c_during_an_evaluation_saves_that_step_and_the_run_goes_on_bit_for_bit",
        "evaluation_batches": "test_held_out_rows_come_once_and_padding_does_not_count",
    },
    StageConfig: {
        "share": differs(
            mixed_rows, STAGED, stages=(StageConfig(0.25, {"a": 1.0, "b": 1.0}), StageConfig(0.75, {"b": 1.0}))
        ),
        "weights": differs(mixed_rows, STAGED, stages=(StageConfig(0.5, {"a": 3.0, "b": 1.0}), TWO_STAGES[1])),
    },
    configs.CheckpointConfig: {
        "every": "test_an_interrupted_run_goes_on_as_if_nothing_had_happened",
        "keep": "test_only_the_newest_are_kept",
        "keep_every": "test_some_are_kept_for_ever",
        "best": "test_a_run_keeps_its_best_checkpoint_stops_early_and_does_so_again_after_a_break",
        "patience": "test_the_lowest_loss_is_the_best_and_patience_counts_evaluations_since",
    },
    configs.BadStepsConfig: {
        "action": "test_a_bad_step_stops_the_run_names_its_rows_and_keeps_the_last_good_checkpoint",
        "gradient_norm": differs(train_program, TRAIN, bad_steps=configs.BadStepsConfig(gradient_norm=2.0)),
        "limit": "test_gradients_above_a_limit_are_bad_steps_and_too_many_in_a_row_end_the_run",
    },
    configs.ProfileConfig: dict.fromkeys(
        ("steps", "start"), "test_a_trace_begins_where_it_is_asked_for_and_is_always_closed"
    ),
    configs.SamplesConfig: {
        "every": "test_the_loop_samples_at_its_steps_and_after_the_last",
        "prompts": "test_samples_are_what_the_finished_model_would_write",
        "generation": "test_samples_are_what_the_finished_model_would_write",
    },
    configs.ReconstructionsConfig: {
        "every": "test_reconstructions_change_nothing_and_are_the_same_in_a_resumed_run",
        "pictures": "test_held_out_pictures_are_shown_above_their_reconstructions",
    },
    configs.SamplePrompt: dict.fromkeys(
        ("text", "images", "mode"), "test_samples_are_what_the_finished_model_would_write"
    ),
    DistributedConfig: {
        "coordinator": differs(meant_by, PROCESSES, coordinator="localhost:2"),
        "processes": differs(meant_by, PROCESSES, processes=3),
        "process": differs(meant_by, PROCESSES, process=0),
        "heartbeat_seconds": differs(meant_by, PROCESSES, heartbeat_seconds=99),
    },
    CompileOptions: {key: compile_options(key) for key in ("topology", "slices", "json", "save")},
    ImageTokenizerExecutionConfig: {
        key: differs(image_gradient_program, ImageTokenizerExecutionConfig(), **{key: value})
        for key, value in {"compute_dtype": "bfloat16", "precision": "default", "remat": "blocks"}.items()
    },
    ImageTokenizerConfig: {
        key: differs(image_model_program, IMAGE_MODEL, **{key: value})
        for key, value in {
            "resolution": 32, "space_to_depth": 2, "channels": 16, "channel_multipliers": (2,), "num_res_blocks": 2,
            "latent_channels": 8, "code_dim": 8, "num_codes": 32, "norm_groups": 2, "attn_resolutions": (16,),
            "attn_type": "none", "independent_patches": True,
        }.items()
    },
    ImageTokenizerTrainConfig: {
        **{
            key: differs(image_train_program, IMAGE_TRAIN, **{key: value})
            for key, value in {
                "model": dataclasses.replace(IMAGE_MODEL, channels=16), "reconstruction": "l1", "commitment": 0.5,
                "seed": 1, "batch_size": 16, "steps": 101, "accumulation": 2, "ema": 0.5, "codebook_decay": 0.5,
                "restart_below": 0.5, "bad_steps": configs.BadStepsConfig(gradient_norm=2.0),
                "optimizer": {"learning_rate": 0.5}, "codebook": "ibq", "entropy": 0.1,
                "perceptual": PerceptualConfig(weight=1.0, vgg="a", heads="b"), "discriminator": ADVERSARIAL,
                "execution": ImageTokenizerExecutionConfig(compute_dtype="bfloat16"),
            }.items()
        },
        "legacy_beta": differs(image_train_program, IBQ, legacy_beta=True),
        "temperature": differs(image_train_program, IBQ, temperature=2.0),
        "initial": "test_decoder_only_tuning_keeps_the_codes_of_every_picture",
        "trainable": "test_decoder_only_tuning_keeps_the_codes_of_every_picture",
        "mesh": differs(placement, IMAGE_TRAIN, mesh=MeshConfig(fsdp=2)),
        "output": "test_training_lowers_the_loss_keeps_many_codes_and_a_resumed_run_repeats_it",
        "samples": "test_held_out_pictures_are_shown_above_their_reconstructions",
        # What the engine does for any task.
        "compiler_options": "test_options_go_by_the_device",
        "distributed": "test_options_win_over_variables",
        "checkpoint": "test_only_the_newest_are_kept",
        "profile": "test_steps_can_be_traced",
        "trackers": "test_metrics_go_to_tensorboard_as_well",
        "log_every": "test_a_line_holds_the_means_over_its_steps",
        "evaluate_every": "test_training_lowers_the_loss_keeps_many_codes_and_a_resumed_run_repeats_it",
        "evaluation_batches": "test_held_out_rows_come_once_and_padding_does_not_count",
    },
    PerceptualConfig: {
        "weight": "test_the_perceptual_distance_is_a_part_of_the_loss",
        **dict.fromkeys(("vgg", "heads"), "test_the_command_reads_lpips_before_it_prepares_pictures"),
        "dtype": differs(
            lambda perceptual: image_train_program(dataclasses.replace(IMAGE_TRAIN, perceptual=perceptual)),
            PerceptualConfig(weight=1.0, vgg="a", heads="b"), dtype="bfloat16",
        ),
    },
    DiscriminatorConfig: {
        key: differs(
            lambda changed: image_train_program(dataclasses.replace(IMAGE_TRAIN, discriminator=changed)),
            ADVERSARIAL, **{key: value},
        )
        for key, value in {
            "weight": 0.4, "adaptive": False, "start_step": 3, "loss": "vanilla", "channels": 8, "stages": 2,
            "norm": "batch", "r1": 1.0, "lecam": 1.0, "lecam_decay": 0.5, "dtype": "bfloat16",
            "optimizer": ImageTokenizerOptimizerConfig(learning_rate=0.5),
        }.items()
    },
    TextTokenizerConfig: {
        "vocab_size": differs(text_pieces, TEXT, vocab_size=400),
        "character_coverage": differs(text_pieces, TEXT, character_coverage=0.98),
        "max_lines": differs(text_pieces, TEXT, max_lines=110),
        "seed": differs(text_pieces, dataclasses.replace(TEXT, max_lines=110), seed=1),
    },
    TextTokenizerCommand: {
        **dict.fromkeys(("output", "tokenizer", "sources"), _text_command),
        "datasets": asks_in(lambda command: _command("train_text_tokenizer")(command), TEXT_COMMAND),
    },
    ImageTokenizerCommand: {
        **dict.fromkeys(("output", "tokenizer", "sources", "held_out", "data"), _image_command),
        "datasets": asks_in(lambda command: _command("train_image_tokenizer")(command), IMAGE_COMMAND),
    },
    PrepareCommand: {
        "output": "test_header_counts_what_is_in_the_rows",
        "sequence_length": "test_row_that_cannot_hold_a_picture_is_refused_at_once",
        "sources": "test_fingerprint_differs_with_the_documents",
        "keep": "test_damaged_pictures_are_reported_and_all_others_kept",
        "resolution": "test_large_pictures_are_shrunk_to_twice_the_resolution",
        "text_tokenizer": "test_missing_things_are_one_line_and_status_1",
        "image_tokenizer": "test_fingerprint_differs_with_the_image_tokenizer",
        "tokenizer": "test_model_of_any_format_keeps_its_ids",
        "held_out": "test_held_out_rows_come_once_and_padding_does_not_count",
        "pools": "test_sources_that_no_pool_names_are_pools_of_their_own",
        "datasets": asks_in(_prepare, PREPARE),
        "seed": "test_units_are_named_by_what_changes_them",
        "processes": "test_rows_are_the_same_by_one_process_and_by_two",
        "max_rejected": "test_too_many_rejected_records_fail_the_job_and_what_is_done_stays_done",
        "too_long": "test_documents_longer_than_a_row_are_rejected_if_asked_to",
        "duplicates": "test_duplicates_are_dropped_and_none_of_what_is_held_out_is_trained_on",
        "near_duplicates": "test_records_that_are_nearly_the_same_leave_with_all_their_copies",
    },
    PoolConfig: {
        **dict.fromkeys(("name", "sources"), "test_sources_that_no_pool_names_are_pools_of_their_own"),
        "epochs": "test_source_with_more_epochs_is_used_again_until_another_runs_out",
    },
    TextSource: SOURCE | {"path": "test_files_of_text_are_documents"},
    DocumentsSource: SOURCE | FILE | PICTURES,
    ConversationsSource: SOURCE | FILE | PICTURES | TURNS,
    FolderSource: SOURCE | CAPTIONED | {
        "captions": "test_captions_in_names",
        "caption_key": "test_captions_in_json_files",
        "lines": "test_one_line_of_several_is_chosen_by_the_name",
    },
    TableSource: SOURCE | CAPTIONED | {
        **dict.fromkeys(("image_column", "text_column", "columns"), "test_columns_by_name"),
        "delimiter": "test_tsv_and_other_delimiters",
        "quote": "test_bad_rows_do_not_take_others_with_them",
        "encoding": "test_encoding_that_a_config_names",
    },
    WebDatasetSource: SOURCE | CAPTIONED | TURNS | {"caption_key": "test_names_with_folders_and_dots"},
    ParquetSource: SOURCE | CAPTIONED | TURNS | {
        "split": "test_data_set_folder_as_on_the_hub",
        "image_column": "test_wrong_column_is_named_with_those_that_exist",
        "text_column": "test_labels_are_captions_by_their_names",
    },
    TfdsSource: SOURCE | {
        **dict.fromkeys(("dataset", "split", "segments"), "test_texts_from_features"),
        "data_dir": "test_features_of_every_kind",
        "exif": "test_picture_of_an_example_is_turned_unless_told_not_to",
    },
    **dict.fromkeys(sources_in(python_documents), SOURCE | SPLIT),
    **dict.fromkeys(
        sources_in(digit_documents),
        SOURCE | SPLIT | {"seed": "test_seed_changes_the_documents"},
    ),
    **dict.fromkeys(sources_in(openmoji_documents), SOURCE | EMOJI),
    openmoji_documents.EmojiNamesSource: SOURCE | EMOJI | dict.fromkeys(
        ("english", "image_first"), "test_shares_of_english_and_of_pictures_first_can_be_set"
    ) | {
        "languages": "test_a_picture_can_be_named_in_several_languages",
        "families": "test_pictures_of_families_can_be_left_out",
    },
    openmoji_documents.EmojiStoriesSource: SOURCE | EMOJI | {"pictures": "test_stories_show_what_they_name"},
    FormConfig: {
        "order": "test_order_is_that_of_pictures_and_texts_among_themselves",
        "image_first_share": "test_share_of_pictures_first_can_be_set",
        "templates": "test_every_template_gets_its_share",
        "separator": "test_separator_stands_beside_text_only",
        "max_pictures": "test_pictures_above_the_limit_leave_and_the_text_stays",
        "too_many_pictures": "test_document_is_split_at_the_picture_that_is_too_many",
        **dict.fromkeys(("drop_text", "drop_all"), "test_text_is_dropped_as_often_as_asked"),
        "copies": "test_copies_have_ids_and_choices_of_their_own",
    },
    Template: {
        "document": "test_template_takes_pictures_text_and_columns_by_name",
        **dict.fromkeys(("prompt", "answer"), "test_template_of_prompt_and_answer_makes_a_turn"),
    },
    FilterConfig: {
        **{
            field.name: "test_rule_names_itself_its_limit_and_what_it_found"
            for field in dataclasses.fields(FilterConfig)
        },
        "max_repeated_ngrams": "test_repeated_ngrams_by_hand",
        **dict.fromkeys(("min_pictures", "max_pictures"), "test_number_of_pictures_is_counted_without_opening_any"),
        **dict.fromkeys(("min_side", "max_aspect_ratio"), "test_picture_must_be_large_and_compact_enough"),
    },
    AugmentConfig: {
        **{
            field.name: "test_each_setting_changes_pictures_the_same_way_each_time"
            for field in dataclasses.fields(AugmentConfig)
        },
        "flip": "test_flip_mirrors_half_of_the_pictures",
        "border": "test_nothing_from_outside_shows_unless_white_is_asked_for",
    },
    NearDuplicatesConfig: {
        "text": "test_limit_of_similarity_is_that_of_the_words",
        "pictures": "test_hashes_within_the_bits_are_found_and_others_are_not",
    },
    configs.InitCommand: {"output": "test_sixty_photos_become_four_files"},
    configs.RunCommand: dict.fromkeys(("fresh", "samples"), "test_the_walk_of_the_guide"),
    DataCommand: {
        **dict.fromkeys(("page", "samples"), "test_the_page_shows_rows_of_every_source"),
        "source": "test_rows_are_printed_with_what_is_learnt_from",
        "output": "test_pictures_are_marked_or_drawn",
    },
    configs.PreprocessingConfig: {
        "style": "test_styles_blend_transparency_up_to_one_grey_level",
        "fit": "test_padding_keeps_the_whole_picture_in_the_middle",
        "pad_colour": "test_borders_are_white_unless_asked_otherwise",
    },
    configs.SamplingConfig: {
        "temperature": "test_frequencies_follow_the_distribution",
        **dict.fromkeys(("top_p", "top_k", "min_p"), "test_what_filters_keep"),
    },
    GenerationConfig: {
        "mode": "test_image_mode_writes_one_picture",
        "form": "test_chat_puts_an_end_of_turn_after_the_prompt",
        "max_new_tokens": "test_greedy_answer_is_what_the_logits_say",
        "max_images": "test_answers_hold_text_and_whole_pictures_within_their_limits",
        "context_length": "test_longer_context_can_be_asked_for",
        "stop": "test_stop_text_ends_an_answer_before_it",
        "stop_ids": "test_answer_ends_at_any_of_its_stop_ids",
        **dict.fromkeys(
            ("text", "image", "repetition_penalty", "text_guidance", "image_guidance"),
            "test_requests_of_every_kind_in_one_batch_equal_the_plain_loop",
        ),
        "seed": "test_answer_depends_on_the_seed",
    },
    configs.GenerateOptions: {
        "prompt_file": "test_prompt_comes_from_arguments_a_file_or_standard_input",
        "n": "test_answers_are_printed_as_json",
        "json": "test_answers_are_printed_as_json",
    },
    configs.EngineConfig: {
        "rows": "test_rows_are_busy_while_requests_wait",
        "queue": "test_full_queue_is_said_and_closing_ends_what_waits",
        "window": "test_requests_of_every_kind_in_one_batch_equal_the_plain_loop",
        **dict.fromkeys(("steps", "weights", "cache"), "test_value_that_cannot_be_used"),
    },
    configs.ServeConfig: {
        "host": "test_other_machines_are_not_served_without_keys_unless_that_is_said",
        "port": "test_mistakes_of_the_command_are_one_line",
        "name": "test_command_serves_until_sigterm_and_exits_with_0",
        "keys": "test_keys_come_from_a_file_and_the_environment",
        "open": "test_other_machines_are_not_served_without_keys_unless_that_is_said",
        "image_hosts": "test_pictures_are_fetched_from_listed_hosts_alone",
        "origins": "test_pages_that_are_allowed_may_use_the_server",
        "proxies": "test_client_behind_a_proxy_is_known_if_the_proxy_is",
        "pictures_in": "test_server_may_be_told_how_to_answer",
        "system": "test_server_may_be_told_how_to_answer",
        "examples": "test_models_say_what_the_page_needs",
        "edits": "test_edits_need_a_model_that_was_trained_to",
        "log": "test_logs_hold_no_prompt_unless_asked",
        "drain_seconds": "test_sigterm_says_why_it_ends_answers_that_take_too_long",
        "generation": "test_answer_is_that_of_the_library_with_its_pictures_in_order",
        "engine": "test_full_queue_and_full_server_say_when_to_try_again",
        "limits": "test_answer_that_takes_too_long_ends",
    },
    configs.LimitsConfig: {
        "body_bytes": "test_bodies_above_the_limit_are_refused_by_their_length_or_as_they_come",
        "bodies_bytes": "test_bodies_of_all_are_limited_together",
        "body_seconds": "test_body_that_does_not_arrive_holds_nothing",
        **dict.fromkeys(("pictures", "characters", "samples"), "test_what_cannot_be_asked_is_one_line_with_its_place"),
        "pixels": "test_picture_of_many_pixels_is_refused_by_its_header",
        "new_tokens": "test_tokens_of_an_answer_are_limited",
        "seconds": "test_answer_that_takes_too_long_ends",
        "per_client": "test_client_may_have_so_many_answers_under_way",
        "requests": "test_full_queue_and_full_server_say_when_to_try_again",
    },
    configs.EvaluationConfig: dict.fromkeys(
        ("split", "train_split", "drawings_per_digit", "sums", "drawing", "seed"),
        "test_every_promised_figure_is_there_and_a_number",
    ),
    configs.PicturesEvaluationConfig: dict.fromkeys(
        ("split", "train_split", "novel_split", "trained_drawings", "drawing", "seed"),
        "test_every_figure_of_the_page_is_there",
    ) | {"editing": "test_edits_have_options_of_their_own"},
    configs.PicturesDemoCommand: dict.fromkeys(
        ("output", "recipes", "fresh"), "test_every_figure_of_the_page_is_there"
    ),
    configs.EvaluateImageTokenizerCommand: {
        **dict.fromkeys(
            ("compare", "count", "json", "output", "samples"), "test_figures_are_those_of_their_definitions"
        ),
        **dict.fromkeys(("lpips", "inception"), "test_mistakes_are_explained_in_a_line"),
    },
    configs.CompareOptions: {"prompts": "test_prompts_that_cannot_be_used_are_named"},
    configs.CompareReportCommand: {"json": "test_report_of_two_people"},
    configs.DemoCommand: {
        "output": "test_demo_folder_opens_as_a_model",
        "recipes": "test_changed_recipe_redoes_its_stage_and_those_after_it",
        "fresh": "test_second_run_reuses_every_stage_and_says_so",
    },
    configs.ConvertCommand: {
        "format": "test_converted_folder_is_the_saved_one",
        "dtype": "test_dtype_is_that_of_the_transformer_alone",
        "shards": "test_more_shards_hold_the_same_model",
        "image_tokenizer": "test_decoder_comes_from_another_folder",
    },
    configs.PushCommand: {
        "private": "test_repository_is_private_if_asked_and_never_public_then",
        "dry_run": "test_what_is_sent_is_the_model_and_nothing_else",
    },
    configs.InspectCommand: {"json": "test_inspect_gives_json", "verify": "test_what_is_damaged_is_named"},
    BenchCommand: dict.fromkeys(("model", "repeats", "folder"), _bench_weights),
    configs.BenchOptions: dict.fromkeys(
        ("warmup", "steps", "repeats"), "test_prints_figures_of_the_recipes_step_as_json"
    ),
    configs.BenchGenerateConfig: {
        **dict.fromkeys(("model", "execution", "engine", "prompt"), "test_bytes_of_a_step_by_hand"),
        **dict.fromkeys(
            ("rows", "new_tokens", "codes_per_image", "text_guidance", "repeats"),
            "test_prints_figures_of_everything_that_was_asked_for",
        ),
        "seed": "test_weights_depend_on_the_seed",
    },
    BenchTrainConfig: {
        **{
            key: differs(bench_rows, BENCH, **{key: value})
            for key, value in {
                "batch_size": 3, "length": 20, "documents": 2, "padding": 0.5, "seed": 1,
                "model": dataclasses.replace(MODEL, vocab_size=32),
            }.items()
        },
        **{
            key: differs(bench_run, BENCH, **{key: value})
            for key, value in {
                "optimizer": OptimizerConfig(b1=0.5), "mesh": MeshConfig(fsdp=2), "accumulation": 2, "loss_chunk": 4,
                "execution": ExecutionConfig(remat="full"), "lora": LoRAConfig(rank=2), "dropout": 0.5,
                "compiler_options": "none", "warmup": 9000, "steps": 9000, "repeats": 9000,
            }.items()
        },
    },
}  # fmt: skip

CLASSES = [
    *(cls for name in configs.__all__ if dataclasses.is_dataclass(cls := getattr(configs, name))),
    *(cls for cls in vars(data_configs).values() if getattr(cls, "__module__", "") == data_configs.__name__),
    *source_module._KINDS.values(),
    *(FormConfig, Template, FilterConfig, AugmentConfig, NearDuplicatesConfig),
]
CLASSES = [cls for cls in CLASSES if dataclasses.is_dataclass(cls) and cls is not configs.RunConfig]  # only a base


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_key_has_an_entry(cls):
    assert {field.name for field in dataclasses.fields(cls)} == set(KEYS[cls])


def _checks() -> list[Any]:
    """Each function once, under the names of all keys that it checks."""
    names: dict[Check, list[str]] = {}
    for cls, keys in KEYS.items():
        for key, check in keys.items():
            if not isinstance(check, str):
                names.setdefault(check, []).append(f"{cls.__name__}.{key}")
    return [pytest.param(check, id=" ".join(keys)) for check, keys in names.items()]


@pytest.mark.parametrize("check", _checks())
def test_key_changes_what_it_says(check, tmp_path):
    check(tmp_path)


def test_the_tests_that_are_named_are_there():
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    there = {name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    named = {check: f"{cls.__name__}.{key}" for cls, keys in KEYS.items() for key, check in keys.items()}
    assert not {name: key for name, key in named.items() if isinstance(name, str) and name not in there}
