"""Recipes from YAML files, with values replaced in Python or on the command line."""

from __future__ import annotations

import pytest

from chameleon_jax.config import ConfigError, ExecutionConfig, TrainConfig, TransformerConfig, read_config
from chameleon_jax.console.arguments import Command, ConfigFile, parse
from data_pipeline.augment import LIGHT, OFF
from data_pipeline.config import PrepareCommand

TRAIN = """
data: rows
output: run
steps: 5000
batch_size: 8
model: {d_model: 64}
stages:
  - {share: 0.5, weights: {a: 1}}
  - {share: 0.5, weights: {a: 1, b: 3}}
"""
PREPARE = """
text_tokenizer: text.model
image_tokenizer: image
output: rows
sequence_length: 64
sources:
  - {kind: digit_sums}
  - {kind: digit_captions, augment: true}
"""


@pytest.fixture
def train_yaml(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(TRAIN)
    return path


@pytest.fixture
def prepare_yaml(tmp_path):
    path = tmp_path / "prepare.yaml"
    path.write_text(PREPARE)
    return path


def typed(cls, path, *words: str):
    """The config that a command line gives."""
    return parse(Command("test", "", cls, "", ConfigFile, example="test CONFIG"), [str(path), *words]).config


def message_of(cls, path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        typed(cls, path, *words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "get", "expected"),
    [
        (["--steps", "6000"], lambda config: config.steps, 6000),
        (["--steps=6000"], lambda config: config.steps, 6000),
        (["--optimizer.learning-rate", "3e-4"], lambda config: config.optimizer.learning_rate, 3e-4),
        (["--optimizer.learning_rate=3e-4"], lambda config: config.optimizer.learning_rate, 3e-4),
        (["--batch-size", "4", "--batch-size", "2"], lambda config: config.batch_size, 2),
        (["--model.num-layers", "3"], lambda config: (config.model.d_model, config.model.num_layers), (64, 3)),
        (["--model.qk-norm", "false"], lambda config: config.model.qk_norm, False),
        (["--execution.attention", "xla"], lambda config: config.execution.attention, "xla"),
        (["--mesh.data", "-1"], lambda config: config.mesh.data, -1),
        (["--mesh", "{fsdp: 2}"], lambda config: config.mesh.fsdp, 2),
        (["--stages.1.weights.b", "0.5"], lambda config: config.stages[1].weights, {"a": 1.0, "b": 0.5}),
        (["--stages.0.weights.new", "2"], lambda config: config.stages[0].weights, {"a": 1.0, "new": 2.0}),
        (["--data", "a=b"], lambda config: config.data, "a=b"),
        (["--data=a=b"], lambda config: config.data, "a=b"),
        (["--data", "2026-11-26"], lambda config: config.data, "2026-11-26"),
        (["--data", "null"], lambda config: config.data, "null"),
        (["--sequence-length", "null"], lambda config: config.sequence_length, None),
        (["--trackers", "tensorboard"], lambda config: config.trackers, ("tensorboard",)),
        (["--trackers", "tensorboard", "wandb"], lambda config: config.trackers, ("tensorboard", "wandb")),
        (["--trackers=wandb", "--seed", "1"], lambda config: (config.trackers, config.seed), (("wandb",), 1)),
        (["--trackers", "[tensorboard, wandb]"], lambda config: config.trackers, ("tensorboard", "wandb")),
        (["--trackers", "[]"], lambda config: config.trackers, ()),
        (["--fresh-image-head"], lambda config: config.fresh_image_head, True),
        (["--fresh-image-head", "true", "--seed", "1"], lambda config: config.fresh_image_head, True),
        (["--fresh_image_head=false"], lambda config: config.fresh_image_head, False),
        (["--model.no-qk-norm"], lambda config: config.model.qk_norm, False),
        (["--mesh", "{fsdp: 2}", "--mesh.data", "3"], lambda config: (config.mesh.fsdp, config.mesh.data), (2, 3)),
        ([], lambda config: config.steps, 5000),
    ],
)
def test_option_changes_the_value_it_names(train_yaml, overrides, get, expected):
    assert get(typed(TrainConfig, train_yaml, *overrides)) == expected


def test_option_reaches_into_a_list(prepare_yaml):
    config = typed(PrepareCommand, prepare_yaml, "--sources.0.split", "test", "--sources.1.count", "7")
    assert [(source.split, source.count, source.augment) for source in config.sources] == [
        ("test", 0, OFF),
        ("train", 7, LIGHT),
    ]


def test_dashes_in_names_of_sources_are_kept(train_yaml):
    """`-` and `_` are the same in keys of the config, but sources are called what their owner calls them."""
    train_yaml.write_text(TRAIN.replace("b: 3", "my-text: 3"))
    config = typed(TrainConfig, train_yaml, "--stages.1.weights.my-text", "5")
    assert config.stages[1].weights == {"a": 1.0, "my-text": 5.0}


def test_defaults_can_be_changed_without_a_file():
    assert read_config(TransformerConfig, None, {"d_model": 32}) == TransformerConfig(d_model=32)
    assert read_config(TransformerConfig) == TransformerConfig()


@pytest.mark.parametrize("in_file", ["model: {remat: full, ", "execution: {remat: full}\nmodel: {"])
def test_keys_go_by_their_old_names_too(train_yaml, in_file):
    """Those that once belonged to the model, over old files and new ones."""
    train_yaml.write_text(TRAIN.replace("model: {", in_file))
    words = ["--model.remat", "none", "--model.lora.rank", "2", "--model.compute-dtype=bfloat16"]
    config = typed(TrainConfig, train_yaml, *words)
    assert (config.execution, config.lora.rank) == (ExecutionConfig(compute_dtype="bfloat16"), 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--steps"], "--steps: a value must follow"),
        (["--steps", "--seed", "3"], "--steps: a value must follow"),
        (["steps", "3"], "'steps': is one argument too many; expected CONFIG"),
        (["-s", "3"], "'-s': is one argument too many"),
        (["--", "3"], "'3': is one argument too many"),
        (["--steps", "3", "4"], "'4': is one argument too many"),
        (["--model", "{d_model: 3"], "--model = '{d_model: 3': is not valid YAML"),
        (["--trackers", "tensorbord"], "trackers.0 = 'tensorbord': must be one of 'tensorboard', 'wandb'"),
        (["--stages.2.share", "1"], "stages.2.share: 2 is not a position in a list of 2"),
        (["--stages.-1.share", "1"], "'-1' is not a position in a list"),
        (["--stages.first.share", "1"], "stages.first.share: 'first' is not a position in a list"),
        (["--steps.every", "1"], "steps.every: steps has no keys of its own"),
        (["--no-steps"], "no_steps: there is no such key; did you mean 'steps'?"),
        (["--stepps", "1"], "stepps: there is no such key; did you mean 'steps'?"),
        (
            ["--optimizer.learning-rat", "1"],
            "optimizer.learning_rat: there is no such key; did you mean 'learning_rate'?",
        ),
        (["--model.d-model", "wide"], "model.d_model = 'wide': must be a whole number"),
        (["--steps", ""], "steps = None: must be a whole number"),
    ],
)
def test_bad_option_is_named(train_yaml, overrides, message):
    assert message in message_of(TrainConfig, train_yaml, *overrides)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: rows\noutput: [run\nsteps: 3\n", 3),
        ("data: rows\n\toutput: run\n", 2),
        ("data: 'rows\n", 2),
        ("a: b: c\n", 1),
    ],
)
def test_malformed_yaml_is_named_with_its_line(tmp_path, text, line):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert message_of(TrainConfig, path).startswith(f"{path}, line {line}: not valid YAML: ")


def test_file_is_named_with_the_key(train_yaml):
    train_yaml.write_text(TRAIN.replace("steps: 5000", "steps: soon"))
    assert message_of(TrainConfig, train_yaml) == f"{train_yaml}: steps = 'soon': must be a whole number"


def test_missing_empty_and_unreadable_files(tmp_path):
    assert message_of(TrainConfig, tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such file"
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert message_of(TrainConfig, tmp_path / "empty.yaml") == f"{tmp_path}/empty.yaml: output: missing; must be text"
    (tmp_path / "latin.yaml").write_bytes(b"data: caf\xe9\n")
    assert message_of(TrainConfig, tmp_path / "latin.yaml").startswith(f"{tmp_path}/latin.yaml: cannot be read: ")
    assert message_of(TrainConfig, tmp_path).startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "list.yaml").write_text("- data\n- output\n")
    assert "must be a mapping of the keys of TrainConfig" in message_of(TrainConfig, tmp_path / "list.yaml")


def test_key_written_twice_is_an_error(tmp_path):
    """YAML says so; a forgotten second `steps` would otherwise silently win."""
    path = tmp_path / "twice.yaml"
    path.write_text(TRAIN + "steps: 6000\n")
    message = message_of(TrainConfig, path)
    assert message.startswith(str(path))
    assert "steps" in message
