"""What a run takes from the header of its prepared data: size of the vocabulary, what it learns, how prompts look."""

from __future__ import annotations

import dataclasses

import pytest

from chameleon_jax.config import ConfigError, TrainConfig, TransformerConfig, from_dict, read_config, to_dict
from chameleon_jax.training.prepared import (
    chat_template,
    learns_to_draw,
    prompt_fit,
    shares,
    with_context_length,
    with_vocab_size,
)

MODEL = {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 16}


def config_of(*weights: dict[str, float], **model: int | None) -> TrainConfig:
    stages = [{"share": 1 / len(weights), "weights": each} for each in weights]
    values = {"data": "rows", "output": "run", "steps": 10, "batch_size": 2, "stages": stages, "model": MODEL | model}
    return from_dict(TrainConfig, {**values, "optimizer": {"warmup_steps": 1}})


def test_left_out_vocabulary_is_that_of_the_data_rounded_up():
    config = config_of({"a": 1})
    assert config.model.vocab_size is None
    assert with_vocab_size(config, 2310, None).model.vocab_size == 2432
    assert with_vocab_size(config, 2432, None).model.vocab_size == 2432
    assert with_vocab_size(config, 2310, 65536).model.vocab_size == 65536  # the model that the run begins with


def test_left_out_vocabulary_too_small_in_the_initial_model_is_refused():
    with pytest.raises(ConfigError, match=r"model.vocab_size = 128: the prepared data needs at least 2310"):
        with_vocab_size(config_of({"a": 1}), 2310, 128)


def test_given_vocabulary_stays_and_must_be_large_enough():
    assert with_vocab_size(config_of({"a": 1}, vocab_size=4000), 2310, 65536).model.vocab_size == 4000
    with pytest.raises(ConfigError, match=r"model.vocab_size = 2000: the prepared data needs at least 2310"):
        with_vocab_size(config_of({"a": 1}, vocab_size=2000), 2310, None)


def test_python_default_is_the_released_size_and_files_and_options_may_say_null(tmp_path):
    assert TransformerConfig().vocab_size == 65536
    path = tmp_path / "train.yaml"
    path.write_text(
        "data: rows\noutput: run\nsteps: 10\nbatch_size: 2\nstages: [{share: 1, weights: {a: 1}}]\n"
        "optimizer: {warmup_steps: 1}\nmodel: {d_model: 16}\n"
    )
    assert read_config(TrainConfig, path).model.vocab_size is None
    assert read_config(TrainConfig, path, {"model.vocab-size": 300}).model.vocab_size == 300
    stored = to_dict(with_vocab_size(read_config(TrainConfig, path), 300, None))
    assert from_dict(TrainConfig, stored).model.vocab_size == 384  # what a checkpoint keeps


def test_left_out_context_is_that_of_the_rows_or_of_the_initial_model():
    config = dataclasses.replace(config_of({"a": 1}), sequence_length=512)
    assert config.model.context_length is None
    for known, expected in ((None, 512), (256, 512), (4096, 4096)):
        assert with_context_length(config, known).model.context_length == expected
    given = dataclasses.replace(config_of({"a": 1}, context_length=1024), sequence_length=512)
    assert with_context_length(given, 4096).model.context_length == 1024
    short = dataclasses.replace(given, model=dataclasses.replace(given.model, context_length=100))
    with pytest.raises(ConfigError, match=r"model\.context_length = 100: the rows .* have 512 tokens"):
        with_context_length(short, None)


def source(kind: str = "documents", learnt: int = 0, pictures: int = 3, **keys: str) -> dict:
    return {"image_tokens": 12, "image_tokens_learnt": learnt, "pictures": pictures, "source": {"kind": kind, **keys}}


def test_only_sources_that_a_stage_reads_teach_to_draw():
    sources = {"drawn": source(learnt=12), "read": source(), "old": {"image_tokens": 12}}
    assert learns_to_draw(sources, config_of({"drawn": 1, "read": 1}))
    assert not learns_to_draw(sources, config_of({"read": 1}))
    assert not learns_to_draw(sources, config_of({"drawn": 0, "read": 1}))
    assert learns_to_draw(sources, config_of({"read": 1}, {"read": 1, "drawn": 0.1}))
    assert learns_to_draw(sources, config_of({"old": 1}))  # prepared before this was counted


def test_shares_are_those_of_all_tokens():
    assert shares(config_of({"a": 3, "b": 1}, {"a": 0, "b": 2})) == pytest.approx({"a": 0.375, "b": 0.625})


def test_prompts_are_remembered_as_they_were_prepared():
    sources = {
        "padded": source("conversations", prompt_fit="pad"),
        "cropped": source("conversations", prompt_fit="crop"),
        "text": source("conversations", pictures=0, prompt_fit="crop"),
        "documents": source(),
    }
    assert prompt_fit(sources, config_of({"documents": 1})) == (None, "")
    assert prompt_fit(sources, config_of({"padded": 1, "documents": 9})) == ("pad", "")
    assert prompt_fit(sources, config_of({"padded": 1, "text": 9})) == ("pad", "")
    assert prompt_fit(sources, config_of({"padded": 0, "cropped": 1})) == ("crop", "")
    fit, said = prompt_fit(sources, config_of({"padded": 1, "cropped": 2}))
    assert fit == "crop"
    assert "'crop' in most tokens of conversations (cropped) and 'pad' in padded" in said


def test_chats_are_joined_as_most_of_the_conversations_were():
    sources = {
        "documents": source(),
        "old": source("conversations"),
        "closed": source("conversations", answer_end="separator"),
    }
    assert chat_template(sources, config_of({"documents": 1})) == (None, "")
    assert chat_template(sources, config_of({"old": 1, "documents": 9})) == ("meta", "")
    assert chat_template(sources, config_of({"closed": 1})) == ("lumina", "")
    template, said = chat_template(sources, config_of({"old": 1, "closed": 2}))
    assert template == "lumina"
    assert "answer_end is 'separator' in most tokens of conversations (closed) and 'eos' in old: the model" in said


def test_sources_of_a_pool_count_by_their_share_of_it():
    web = {
        "sources": {
            "closed": {**source("conversations", answer_end="separator"), "share": 0.75},
            "files": {**source("parquet", learnt=3, answer_end="eos"), "share": 0.25, "conversations": 7},
            "texts": {**source("parquet", answer_end="eos"), "share": 0.1},
        }
    }
    sources = {"web": web, "chat": source("conversations", answer_end="eos")}
    assert learns_to_draw(sources, config_of({"web": 1}))
    assert chat_template(sources, config_of({"web": 1}))[0] == "lumina"
    assert chat_template(sources, config_of({"web": 1, "chat": 0.2}))[0] == "lumina"
    template, said = chat_template(sources, config_of({"web": 1, "chat": 0.6}))
    assert template == "meta"
    assert "answer_end is 'eos' in most tokens of conversations (files, chat) and 'separator' in closed" in said
