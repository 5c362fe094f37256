"""Configs are read strictly, and every mistake is one line that names the key, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import chameleon_jax.config as config_module
from chameleon_jax.config import (
    BenchGenerateConfig,
    BenchTrainConfig,
    ConfigError,
    EngineConfig,
    EvaluationConfig,
    ExecutionConfig,
    GenerationConfig,
    ImageTokenizerConfig,
    ImageTokenizerTrainConfig,
    LoRAConfig,
    PerceptualConfig,
    PicturesEvaluationConfig,
    PreprocessingConfig,
    SamplingConfig,
    StageConfig,
    TextTokenizerConfig,
    TrainConfig,
    TransformerConfig,
    from_dict,
    read_config,
    to_dict,
)
from chameleon_jax.config.reading import config
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand
from data_pipeline.datasets.digit_documents import DigitSumsSource
from data_pipeline.sources import ConversationsSource, DocumentsSource, SourceConfig, register_source
from data_pipeline.sources import source as source_module

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = {
    "evaluation": EvaluationConfig,
    "image_tokenizer": ImageTokenizerCommand,
    "prepare": PrepareCommand,
    "pretrain": TrainConfig,
    "text_tokenizer": TextTokenizerCommand,
    "finetune": TrainConfig,
    "sft": TrainConfig,
    "train": TrainConfig,
    "bench/": BenchTrainConfig,
    "generate/": BenchGenerateConfig,
    "showcase/evaluation": PicturesEvaluationConfig,
    "showcase_gpu/evaluation": PicturesEvaluationConfig,
    "models/chameleon": TransformerConfig,
    "models/image_tokenizer": ImageTokenizerConfig,
}
STAGES = [{"share": 1.0, "weights": {"a": 1}}]
TRAIN = {"data": "rows", "output": "run", "model": {}, "steps": 5000, "batch_size": 8, "stages": STAGES}
PREPARE = {
    "text_tokenizer": "text.model",
    "image_tokenizer": "image",
    "output": "rows",
    "sequence_length": 64,
    "sources": [{"kind": "digit_sums"}],
}
CONFIG_CLASSES = {
    ConversationsSource,
    DigitSumsSource,
    *(value for value in vars(config_module).values() if isinstance(value, type) and dataclasses.is_dataclass(value)),
} - {config_module.RunConfig}  # only a base of others
REQUIRED = {
    StageConfig: STAGES[0],
    TrainConfig: TRAIN,
    ConversationsSource: {"path": "chat.jsonl"},
    config_module.CompareOptions: {"prompts": "prompts.txt"},
    BenchGenerateConfig: {"model": {}},
    PerceptualConfig: {"vgg": "vgg16.pth", "heads": "vgg.pth"},
    BenchTrainConfig: {"model": {}, "batch_size": 1, "length": 64},
    ImageTokenizerTrainConfig: {"model": {}, "steps": 100, "batch_size": 4},
    TextTokenizerConfig: {"vocab_size": 512},
}
CONVERSATIONS = {"kind": "conversations", "path": "chat.jsonl"}
TOKENIZER_TRAINING = {"model": {}, "steps": 100, "batch_size": 4}


def message_of(cls, values) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def nested(path: str, value) -> dict:
    """{"a": {"b": value}} for "a.b"."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_configs_of_the_repository_can_be_read(path):
    names = (f"{path.parent.name}/{path.stem}", path.stem)
    stem = next((known for known in CLASSES if "/" in known and names[0].startswith(known)), None)
    stem = stem or next((known for known in sorted(CLASSES, key=len, reverse=True) if names[1].startswith(known)), None)
    assert stem is not None, f"{path.name}: begin the name with one of {', '.join(CLASSES)}"
    config = read_config(CLASSES[stem], path)
    assert from_dict(CLASSES[stem], to_dict(config)) == config


@pytest.mark.parametrize(
    ("cls", "values", "key", "value", "allowed"),
    [
        # Wrong types, one for each kind of field.
        (TransformerConfig, {"d_model": "wide"}, "d_model", "'wide'", "a whole number"),
        (TransformerConfig, {"d_model": 1.5}, "d_model", "1.5", "a whole number"),
        (TransformerConfig, {"d_model": True}, "d_model", "True", "a whole number"),
        (TransformerConfig, {"d_model": None}, "d_model", "None", "a whole number"),
        (TransformerConfig, {"norm_eps": "some"}, "norm_eps", "'some'", "a number"),
        (TransformerConfig, {"norm_eps": False}, "norm_eps", "False", "a number"),
        (TransformerConfig, {"norm_eps": [0.1]}, "norm_eps", "[0.1]", "a number"),
        (TransformerConfig, {"qk_norm": 1}, "qk_norm", "1", "true or false"),
        (TransformerConfig, {"qk_norm": "no way"}, "qk_norm", "'no way'", "true or false"),
        (TransformerConfig, {"norm_order": "post"}, "norm_order", "'post'", "'pre', 'swin'"),
        (ExecutionConfig, {"param_dtype": ["float32"]}, "param_dtype", "['float32']", "'float32', 'bfloat16'"),
        (SourceConfig, {"kind": "digit_sums", "split": 3}, "split", "3", "text"),
        (TrainConfig, {**TRAIN, "stages": {"share": 1}}, "stages", "{'share': 1}", "a list"),
        (TrainConfig, {**TRAIN, "mesh": "data"}, "mesh", "'data'", "a mapping"),
        (StageConfig, {"share": 1, "weights": ["a"]}, "weights", "['a']", "a mapping from names to a number"),
        (StageConfig, {"share": 1, "weights": {"a": "much"}}, "weights.a", "'much'", "a number"),
        (ImageTokenizerConfig, {"channel_multipliers": 2}, "channel_multipliers", "2", "a list of a whole number"),
        (ImageTokenizerConfig, {"channel_multipliers": [1, "x"]}, "channel_multipliers.1", "'x'", "a whole number"),
        # Values outside their range.
        (TransformerConfig, {"num_layers": 0}, "num_layers", "0", "at least 1"),
        (TransformerConfig, {"head_dim": 7}, "head_dim", "7", "even"),
        (TrainConfig, {**TRAIN, "dropout": 1.0}, "dropout", "1.0", "[0, 1)"),
        (TrainConfig, {**TRAIN, "dropout": float("nan")}, "dropout", "nan", "[0, 1)"),
        (TransformerConfig, {"norm_eps": 0.0}, "norm_eps", "0.0", "positive"),
        (TransformerConfig, {"rope_theta": -1.0}, "rope_theta", "-1.0", "positive"),
        (ImageTokenizerConfig, {"num_codes": 1}, "num_codes", "1", "at least 2"),
        (ImageTokenizerConfig, {"channel_multipliers": []}, "channel_multipliers", "[]", "positive whole numbers"),
        (StageConfig, {"share": 0.0, "weights": {"a": 1}}, "share", "0.0", "(0, 1]"),
        (StageConfig, {"share": 1, "weights": {}}, "weights", "{}", "at least one pool"),
        (StageConfig, {"share": 1, "weights": {"a": 0}}, "weights", "{'a': 0.0}", "one above 0"),
        (StageConfig, {"share": 1, "weights": {"a": 2, "b": -1}}, "weights", "-1.0", "0 or more"),
        (SamplingConfig, {"temperature": -0.1}, "temperature", "-0.1", "0 (greedy) or more"),
        (SamplingConfig, {"temperature": 1e-40}, "temperature", "1e-40", "from 1e-30"),
        (SamplingConfig, {"top_p": 0.0}, "top_p", "0.0", "(0, 1]"),
        (GenerationConfig, {"text_guidance": -1}, "text_guidance", "-1.0", "0 or more"),
        (GenerationConfig, {"image_guidance": 1e38}, "image_guidance", "1e+38", "to 1e30"),
        (GenerationConfig, {"repetition_penalty": 1e-38}, "repetition_penalty", "1e-38", "from 1e-30"),
        (SamplingConfig, {"top_k": -1}, "top_k", "-1", "0 for all"),
        (SamplingConfig, {"min_p": 1.5}, "min_p", "1.5", "[0, 1]"),
        (GenerationConfig, {"context_length": 1}, "context_length", "1", "at least 2"),
        (GenerationConfig, {"max_images": -1}, "max_images", "-1", "0 or more"),
        (GenerationConfig, {"mode": "text", "max_images": 2}, "max_images", "2", "'text' writes no picture"),
        (GenerationConfig, {"mode": "image", "max_images": 0}, "max_images", "0", "'image' writes exactly one"),
        (GenerationConfig, {"stop": ["a", ""]}, "stop", "('a', '')", "an empty text"),
        (GenerationConfig, {"stop_ids": [-1]}, "stop_ids", "(-1,)", "0 or more"),
        (EngineConfig, {"rows": 0}, "rows", "0", "at least 1"),
        (SourceConfig, {"kind": "digit_sums", "seed": -1}, "seed", "-1", "from 0 to 2^63 - 1"),
        (TextTokenizerConfig, {"vocab_size": 512, "seed": 2**32}, "seed", "4294967296", "from 0 to 2^32 - 1"),
        (TrainConfig, {**TRAIN, "seed": -1}, "seed", "-1", "from 0 to 2^63 - 1"),
        (GenerationConfig, {"max_new_tokens": 0}, "max_new_tokens", "0", "at least 1"),
        (GenerationConfig, {"text": {"top_p": 2}}, "text.top_p", "2.0", "(0, 1]"),
        (PrepareCommand, {**PREPARE, "sequence_length": 1}, "sequence_length", "1", "at least 2"),
        (PrepareCommand, {**PREPARE, "sources": []}, "sources", "[]", "at least one source"),
        (TrainConfig, {**TRAIN, "batch_size": 0}, "batch_size", "0", "at least 1"),
        (TrainConfig, {**TRAIN, "z_loss": -1}, "z_loss", "-1.0", "0 or more"),
        (TrainConfig, {**TRAIN, "checkpoint": {"keep": 0}}, "checkpoint.keep", "0", "at least 1"),
        (TrainConfig, {**TRAIN, "mesh": {"tensor": 0}}, "mesh.tensor", "0", "at least 1, or -1"),
        (TextTokenizerCommand, {"output": "o", "tokenizer": {"vocab_size": 256}, "sources": []},
         "tokenizer.vocab_size", "256", "above 257"),
        (TextTokenizerCommand, {"output": "o", "tokenizer": {"vocab_size": 500, "max_lines": 50}, "sources": []},
         "tokenizer.max_lines", "50", "above 100"),
        # Values that do not go together.
        (TransformerConfig, {"num_heads": 6, "num_kv_heads": 4}, "num_kv_heads", "4", "must divide num_heads = 6"),
        (TransformerConfig, {"num_heads": 12, "num_kv_heads": 4, "qk_norm_groups": 6}, "qk_norm_groups", "6",
         "must divide num_heads = 12, and divide num_kv_heads = 4 or be a multiple"),
        (ImageTokenizerConfig, {"resolution": 500}, "resolution", "500", "= 16"),
        (ImageTokenizerConfig, {"resolution": 48, "space_to_depth": 2}, "resolution", "48", "= 32"),
        (ImageTokenizerConfig, {"channels": 48}, "norm_groups", "32", "must divide channels = 48"),
        (SourceConfig, {"kind": "documents"}, "path", "''", "must name a file, a folder or a pattern"),
        (SourceConfig, {"kind": "conversations"}, "path", "''", "kind 'conversations' reads files"),
        (SourceConfig, {"kind": "digit_sum"}, "kind", "'digit_sum'", "did you mean 'digit_sums'?"),
        (SourceConfig, {"kind": ["documents"]}, "kind", "['documents']", "must be one of 'conversations', 'digit_"),
        (DocumentsSource, {"kind": "conversations", "path": "a"}, "kind", "'conversations'", "one of 'documents'"),
        (SourceConfig, {**CONVERSATIONS, "prompt_loss": 1.5}, "prompt_loss", "1.5", "from 0 to 1"),
        (SourceConfig, {**CONVERSATIONS, "prompt_loss": float("nan")}, "prompt_loss", "nan", "from 0 to 1"),
        (TextTokenizerCommand, {"output": "o", "tokenizer": {"vocab_size": 400},
                                "sources": [{"kind": "python_stdlib", "loss": "text"}]},
         "python_stdlib.loss", "'text'", "goes with `chameleon prepare` only"),
        (PrepareCommand, {**PREPARE, "tokenizer": "model"}, "tokenizer", "'model'", "give either"),
        (PrepareCommand, {**PREPARE, "text_tokenizer": ""}, "tokenizer", "''", "here they are '' and "),
        (SourceConfig, {"kind": "digit_sums", "name": "../up"}, "name", "'../up'", "letters, digits"),
        (PrepareCommand, {**PREPARE, "sources": [{"kind": "digit_sums"}] * 2}, "sources", "digit_sums", "must differ"),
        (ImageTokenizerCommand, {"output": "o", "sources": [], "tokenizer": {**TOKENIZER_TRAINING, "steps": 40}},
         "tokenizer.optimizer.warmup_steps", "50", "at most steps = 40"),
        (TrainConfig, {**TRAIN, "mesh": {"data": -1, "tensor": -1}}, "mesh.data", "-1", "only one size may be -1"),
        (TrainConfig, {**TRAIN, "checkpoint": {"every": 15}}, "checkpoint.every", "15", "multiple of log_every = 10"),
        (TrainConfig, {**TRAIN, "stages": [{"share": 0.5, "weights": {"a": 1}}] * 3}, "stages", "[0.5, 0.5, 0.5]",
         "add up to 1"),
        (TrainConfig, {**TRAIN, "steps": 100}, "optimizer.warmup_steps", "4000", "at most steps = 100"),
        (TrainConfig, {**TRAIN, "optimizer": {"final_fraction": 0}}, "optimizer.final_fraction", "0.0", "above 0"),
    ],
)  # fmt: skip
def test_value_that_cannot_be_used(cls, values, key, value, allowed):
    message = message_of(cls, values)
    place, _, rest = message.partition(" = ")
    assert place == key
    assert value in rest
    assert allowed in rest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_head": 3}, "num_head: there is no such key; did you mean 'num_heads'?"),
        ({"dmodel": 3}, "dmodel: there is no such key; did you mean 'd_model'?"),
        ({3: 4}, "3: there is no such key; known keys: vocab_size, d_model"),
        ({"zzz": 3}, "zzz: there is no such key; known keys: vocab_size, d_model"),
    ],
)
def test_unknown_key_gets_the_nearest_known_one(values, message):
    assert message_of(TransformerConfig, values).startswith(message)


def test_unknown_key_deep_inside_is_named_in_full():
    values = {**PREPARE, "sources": [{"kind": "digit_sums"}, {"kind": "digit_captions", "augmented": True}]}
    assert message_of(PrepareCommand, values) == "sources.1.augmented: there is no such key; did you mean 'augment'?"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "digit_sums", "path": "a.jsonl"},
         "path: kind 'digit_sums' has no such key; it goes with 'conversations', 'documents'"),
        ({"kind": "digit_sums", "prompt_loss": 0.5},
         "prompt_loss: kind 'digit_sums' has no such key; it goes with 'conversations'"),
        ({**CONVERSATIONS, "split": "test"},
         "split: kind 'conversations' has no such key; it goes with 'digit_captions', 'digit_counting', 'digit_q"),
        ({"kind": "python_stdlib", "splitt": "test"}, "splitt: there is no such key; did you mean 'split'?"),
        ({"name": "mine"}, "kind: missing; must be one of 'conversations', 'digit_captions', "),
        ({"kind": "digit_sums", "count": -1}, "count = -1: must be 0 or more"),
    ],
)  # fmt: skip
def test_sources_are_read_as_their_kind_says(source, message):
    assert message_of(PrepareCommand, {**PREPARE, "sources": [source]}).startswith(f"sources.0.{message}")


OLD_SOURCE = {
    "kind": "digit_sums", "name": "sums", "split": "test", "count": 200, "augment": False, "path": "", "loss": "all",
    "prompt_loss": 0.0, "answer_end": "eos", "prompt_fit": "pad", "answer_fit": "crop", "exif": True, "seed": 0,
}  # fmt: skip


def test_source_of_an_old_header_still_opens():
    """Every source once had the keys of all kinds."""
    assert from_dict(SourceConfig, OLD_SOURCE) == DigitSumsSource(name="sums", split="test", count=200)
    conversations = {**OLD_SOURCE, "kind": "conversations", "split": "train", "path": "chat.jsonl", "answer_fit": "pad"}
    assert from_dict(SourceConfig, conversations) == ConversationsSource(
        name="sums", count=200, path="chat.jsonl", answer_fit="pad"
    )


@pytest.fixture
def kinds(monkeypatch) -> dict:
    """The known kinds of sources, put back afterwards."""
    known = dict(source_module._KINDS)
    monkeypatch.setattr(source_module, "_KINDS", known)
    source_module._load_entry_points.cache_clear()
    return known


NEW_KIND = """
from typing import Literal
from chameleon_jax.config.reading import config
from data_pipeline.records import Record, Shard
from data_pipeline.sources import SourceConfig, register_source

@register_source
@config
class Verses(SourceConfig):
    kind: Literal["verses"] = "verses"
    lines: int = 4

    def shards(self, datasets=""):
        return [Shard("all", "1.0")]

    def read(self, shard, datasets=""):
        yield Record("0", "my head", ("la " * self.lines,))
"""


def test_installed_package_adds_a_kind_by_an_entry_point(kinds, tmp_path, monkeypatch):
    """As `[project.entry-points."chameleon_jax.sources"]` of its pyproject.toml does."""
    (tmp_path / "verses_of_mine.py").write_text(NEW_KIND)
    info = tmp_path / "verses_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verses-of-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[chameleon_jax.sources]\nverses = verses_of_mine\n")
    with pytest.raises(ConfigError, match="kind = 'verses': must be one of"):
        from_dict(SourceConfig, {"kind": "verses"})
    source_module._load_entry_points.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    command = from_dict(PrepareCommand, {**PREPARE, "sources": [{"kind": "verses", "lines": 2}]})
    assert [record.segments for record in command.sources[0].records()] == [("la la ",)]
    assert from_dict(PrepareCommand, to_dict(command)) == command
    (info / "entry_points.txt").write_text("[chameleon_jax.sources]\nverses = gone_for_good\n")
    source_module._load_entry_points.cache_clear()
    assert "kind: gone_for_good adds kinds, but cannot be imported: No module named" in message_of(
        SourceConfig, {"kind": "other"}
    )


def test_kind_belongs_to_one_class(kinds):
    @register_source
    @config
    class Mine(SourceConfig):
        kind: str = "mine"

    assert register_source(Mine) is Mine
    with pytest.raises(ValueError, match=r"kind 'mine' of .*Other is that of .*Mine"):

        @register_source
        @config
        class Other(SourceConfig):
            kind: str = "mine"


def test_missing_key_says_what_it_must_be():
    values = dict(TRAIN)
    del values["steps"]
    assert message_of(TrainConfig, values) == "steps: missing; must be a whole number"
    assert message_of(TrainConfig, {**TRAIN, "stages": [{"share": 1}]}).startswith("stages.0.weights: missing; must be")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_config_that_is_no_mapping(values):
    assert "must be a mapping of the keys of TrainConfig" in message_of(TrainConfig, values)


def test_numbers_as_people_write_them():
    config = from_dict(TransformerConfig, {"init_std": 1, "norm_eps": "1e-6", "rope_theta": 10_000})
    assert (config.init_std, config.norm_eps, config.rope_theta) == (1.0, 1e-6, 10_000.0)
    assert all(isinstance(value, float) for value in (config.init_std, config.norm_eps, config.rope_theta))


def test_source_is_called_by_its_kind_unless_named():
    assert from_dict(SourceConfig, {"kind": "digit_sums"}).name == "digit_sums"
    assert from_dict(SourceConfig, {"kind": "digit_sums", "name": "my-sums_2"}).name == "my-sums_2"


@given(
    heads=st.integers(1, 4), groups=st.integers(1, 3), repeats=st.integers(1, 3), half=st.integers(1, 64),
    width=st.integers(1, 10**6), std=st.floats(0, 1, exclude_min=True), eps=st.floats(1e-12, 1),
    order=st.sampled_from(["pre", "swin"]), norm=st.booleans(),
)  # fmt: skip
def test_config_survives_files(heads, groups, repeats, half, width, std, eps, order, norm):
    """Through plain data, JSON (checkpoints) and YAML (recipes)."""
    config = TransformerConfig(
        d_model=width,
        num_heads=heads * groups * repeats,
        num_kv_heads=heads * groups,
        qk_norm_groups=groups,
        head_dim=2 * half,
        init_std=std,
        norm_eps=eps,
        norm_order=order,
        qk_norm=norm,
    )
    plain = to_dict(config)
    for values in (plain, json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain))):
        assert from_dict(TransformerConfig, values) == config


def test_nested_config_survives_files():
    config = from_dict(TrainConfig, {**TRAIN, "mesh": {"fsdp": 4}, "optimizer": {"name": "muon"}})
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert (config.mesh.fsdp, config.optimizer.name, config.stages) == (4, "muon", (StageConfig(1.0, {"a": 1.0}),))


OLD_MODEL = {
    "d_model": 64, "num_heads": 2, "num_kv_heads": 2, "attention": "xla", "remat": "full", "compute_dtype": "bfloat16",
    "param_dtype": "bfloat16", "unroll": 2, "dropout": 0.1, "lora": {"rank": 4},
}  # fmt: skip


@pytest.mark.parametrize(("cls", "rest"), [(TrainConfig, TRAIN), (BenchTrainConfig, REQUIRED[BenchTrainConfig])])
def test_keys_that_once_belonged_to_the_model_are_read_as_before(cls, rest):
    config = from_dict(cls, {**rest, "model": {**OLD_MODEL, "vocab_size": 64}})
    assert config.execution == ExecutionConfig("bfloat16", "bfloat16", "xla", "full", 2)
    assert (config.dropout, config.lora) == (0.1, LoRAConfig(rank=4))
    known = {"vocab_size": 64, "context_length": config.model.context_length}
    assert config.model == TransformerConfig(d_model=64, num_heads=2, num_kv_heads=2, **known)
    assert from_dict(TransformerConfig, {**OLD_MODEL, **known}) == config.model
    assert from_dict(cls, to_dict(config)) == config


def test_null_of_older_files_means_the_default():
    older = {"every": 10, "prompts": [{"text": "Once"}], "generation": {"max_new_tokens": None, "context_length": 4096}}
    config = from_dict(TrainConfig, {**TRAIN, "samples": older})
    assert config.samples.generation == GenerationConfig(context_length=4096)


def test_a_key_in_its_old_place_and_its_new_one_is_refused():
    values = {**TRAIN, "model": {"remat": "full"}, "execution": {"remat": "none"}}
    assert message_of(TrainConfig, values) == (
        "model.remat = 'full': is now execution.remat, which is given too; leave this out"
    )
    message = message_of(TrainConfig, {**TRAIN, "model": {"attention": "flash"}})
    assert message.startswith("execution.attention = 'flash': must be one of 'auto', 'xla'")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GenerationConfig(mode="draw"),
            r"mode = 'draw': must be one of 'auto', 'interleaved', 'text', 'image'",
        ),
        (lambda: GenerationConfig(max_new_tokens="many"), "max_new_tokens = 'many': must be a whole number"),
        (lambda: GenerationConfig(max_new_tokens=2.5), r"max_new_tokens = 2\.5: must be a whole number"),
        (lambda: GenerationConfig(text=0.7), r"text = 0\.7: must be a mapping of the keys of SamplingConfig"),
        (lambda: GenerationConfig(text={"temperatur": 0}), "text.temperatur: there is no such key; did you mean"),
        (lambda: TransformerConfig(qk_norm=1), "qk_norm = 1: must be true or false"),
        (lambda: TransformerConfig(d_model=True), "d_model = True: must be a whole number"),
        (lambda: DigitSumsSource(split=None), "split = None: must be text"),
        (lambda: PreprocessingConfig(pad_colour="red"), "pad_colour = 'red': must be a list of a whole number"),
        (lambda: PreprocessingConfig(pad_colour=(0, 0, 0.5)), r"pad_colour\.2 = 0\.5: must be a whole number"),
    ],
)
def test_values_given_in_python_are_checked_as_those_of_files(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_values_given_in_python_take_the_type_of_their_field():
    config = GenerationConfig(max_new_tokens=np.int64(7), text_guidance=np.float32(2), text={"temperature": 0})
    assert config == GenerationConfig(max_new_tokens=7, text_guidance=2.0, text=SamplingConfig(temperature=0.0))
    assert type(config.max_new_tokens) is int
    assert type(config.text_guidance) is type(config.text.temperature) is float
    assert hash(PreprocessingConfig(pad_colour=[1, 2, 3])) == hash(PreprocessingConfig(pad_colour=(1, 2, 3)))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400, "inf"], ids=lambda value: str(value)[:4])
@pytest.mark.parametrize("cls", sorted(CONFIG_CLASSES, key=lambda cls: cls.__name__))
def test_no_number_of_any_config_may_be_infinite(cls, value):
    """Whatever else a config needs: the number is what is refused."""
    for field in dataclasses.fields(cls):
        if "float" not in field.type:
            continue
        given = {"a": value} if "dict" in field.type else value
        with pytest.raises(ConfigError, match=rf"^{field.name}(\.a)? = (-?inf|nan|{{'a': (-?inf|nan)}}): must"):
            from_dict(cls, {**REQUIRED.get(cls, {}), field.name: given})
