"""Every recipe under configs/ runs: from files to a model that answers or draws, at tiny sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import random_picture, released_model

import chameleon_jax
from chameleon_jax.config import (
    ConfigError,
    GenerationConfig,
    SamplingConfig,
    TrainConfig,
    find_configs,
    read_config,
    read_yaml,
    to_dict,
)
from chameleon_jax.console.commands import prepare
from chameleon_jax.console.train import train
from chameleon_jax.document import open_image
from chameleon_jax.errors import FileError
from chameleon_jax.training.metrics import read_metrics
from data_pipeline.config import PrepareCommand
from data_pipeline.loader import PreparedData

CONFIGS = find_configs()
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if "steps" in read_yaml(path))
CAPTIONS = ("A red kite. ", "One sheep in 1984. ")
SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "qk_norm_groups",
         "norm_order")  # fmt: skip
LENGTH = 48
GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tiny model in Hugging Face's format, as the recipes name it, with its image decoder, and data."""
    folder = tmp_path_factory.mktemp("recipes")
    model = released_model(image_head_trained=False)
    model.save(folder / "models/chameleon-7b", "huggingface")
    (folder / "data").mkdir()
    for number in range(2):
        random_picture(number, size=(20, 14)).save(folder / f"data/{number}.png")
    documents = [[caption, {"image": f"{number}.png"}] for number, caption in enumerate(CAPTIONS)]
    chats = [
        {"turns": [{"prompt": [{"image": "0.png"}, "What?"], "answer": "A fox."}]},
        {"turns": [{"prompt": "Draw!", "answer": [{"image": "1.png"}]}, {"prompt": "Who?", "answer": "A dog."}]},
    ]
    for name, lines in (("pictures", documents), ("chat", chats)):
        for part in ("", "_held_out"):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"data/{name}{part}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    """Recipes name folders relative to where one stands."""
    monkeypatch.chdir(folder)


def prepared(recipe: str, **changes) -> str:
    """Prepares the data of `recipe` where that is not done yet; returns its folder."""
    command = read_config(PrepareCommand, CONFIGS / recipe, {"sequence_length": LENGTH, **changes})
    if not Path(command.output).exists():
        prepare(command)
    return command.output


def tiny(recipe: str, *, rows: int = 8, **changes) -> TrainConfig:
    """A recipe of training, or a documented variant of it, in small: sizes that fit the tiny model, `rows` in each part
    of a batch, few steps. How it accumulates, evaluates, attends and saves memory is its own.

    Args:
      changes: by dotted key, those of the variant.
    """
    whole = read_config(TrainConfig, CONFIGS / recipe, {"optimizer.warmup_steps": 1} | changes)
    sizes = to_dict(released_model().config)
    small = {f"model.{name}": sizes[name] for name in SIZES} | {
        "sequence_length": LENGTH, "loss_chunk": whole.loss_chunk * LENGTH // whole.sequence_length,
        "batch_size": rows * whole.accumulation, "mesh.fsdp": min(whole.mesh.fsdp, jax.device_count()),
        "steps": 3, "optimizer.warmup_steps": 1, "log_every": 1, "checkpoint.every": 2, "evaluate_every": 2,
    }  # fmt: skip
    return read_config(TrainConfig, CONFIGS / recipe, small | changes)


def arrays(model: chameleon_jax.Chameleon) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)}  # fmt: skip


def changed(output: str, initial: str = "models/chameleon-7b") -> set[str]:
    before, after = arrays(chameleon_jax.load(initial)), arrays(chameleon_jax.load(output))
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.slow
def test_image_head_learns_to_draw_what_it_saw():
    """The whole path: data, released format in, the recipe, generation. The pictures come back code for code."""
    prepared("prepare_image_head.yaml")
    config = tiny(
        "finetune_image_head.yaml",
        **{"steps": 150, "checkpoint.every": 150, "log_every": 50, "evaluate_every": 0, "optimizer.learning_rate": 0.3,
           "execution.compute_dtype": "float32",
           "samples": {"every": 150, "prompts": [{"text": CAPTIONS[0], "mode": "image"}]}},
    )  # fmt: skip
    train(config)
    assert open_image(Path(config.output) / "samples/step-150/01-1.png").size == (8, 8)
    assert changed(config.output) == {"['output']"}
    before, model = chameleon_jax.load(config.initial), chameleon_jax.load(config.output)
    text = np.setdiff1d(np.arange(model.config.vocab_size), model.vocabulary.image_ids)
    np.testing.assert_array_equal(before.params["output"][:, text], model.params["output"][:, text])
    lines = read_metrics(Path(config.output) / "metrics.jsonl")
    assert lines[-1]["image_loss"] < 0.1 < lines[0]["image_loss"]
    assert lines[-1]["held_out"]["pictures"]["image_loss"] < 0.1  # the same pictures

    with pytest.raises(chameleon_jax.chameleon.CannotDraw):
        before.generate([CAPTIONS[0]], GenerationConfig(mode="image"))
    greedy = GenerationConfig(mode="image", image=GREEDY, text_guidance=1.0, image_guidance=1.0)
    drawings = model.generate_many([[caption] for caption in CAPTIONS], greedy)
    for number, (drawn,) in enumerate(drawings):
        codes = model.tokenize_images([random_picture(number, size=(20, 14))])
        (expected,) = model.detokenize_images(codes)
        assert drawn.tobytes() == expected.tobytes()
    assert model.image_head_trained is True
    model.save("out/drawing", "huggingface")
    again = chameleon_jax.load("out/drawing").generate_many([[caption] for caption in CAPTIONS], greedy)
    assert [drawn.tobytes() for (drawn,) in again] == [drawn.tobytes() for (drawn,) in drawings]


@pytest.mark.slow
def test_supervised_fine_tuning_changes_every_matrix_and_answers():
    data = PreparedData(prepared("prepare_sft.yaml"))
    assert data.header["sources"]["chat"]["source"]["prompt_fit"] == "pad"
    config = tiny("sft_7b.yaml", **{"optimizer.learning_rate": 0.01})
    train(config)
    model = chameleon_jax.load(config.output)
    assert changed(config.output) == arrays(model).keys()
    assert model.image_head_trained is True  # an answer is a picture
    assert (model.chat_template, model.config.context_length) == ("meta", 4096)  # of the data, of the initial model
    assert (config.dropout, config.execution.compute_dtype) == (0.05, "bfloat16")
    answer = model.generate(["Who?"], GenerationConfig(mode="text", form="chat", max_new_tokens=3))
    assert all(isinstance(segment, str) for segment in answer)


LORA = {
    "lora.rank": 16, "optimizer.learning_rate": 0.01, "accumulation": 64, "execution.compute_dtype": "float32",
}  # fmt: skip
"""The command of docs/finetuning.md for one GPU, on the devices of the tests and in float32, which is sooner here."""


@pytest.mark.slow
def test_adapters_are_merged_into_a_plain_model_and_the_first_model_may_go():
    prepared("prepare_sft.yaml")
    shutil.copytree("models/chameleon-7b", "models/passing")
    samples = {"every": 2, "prompts": [{"text": "Who?", "mode": "text"}], "generation": {"max_new_tokens": 4}}
    config = tiny("sft_7b.yaml", **LORA, output="out/lora", initial="models/passing", steps=2, samples=samples)
    figures = train(config)
    assert (figures["steps"], figures["model"], figures["adapters"]) == (2, "out/lora/model", "out/lora/adapters")
    (line, *_) = [line for line in read_metrics("out/lora/metrics.jsonl") if "held_out" in line]
    assert {name: value for name, value in figures.items() if name.startswith("held_out.")} == {
        f"held_out.{name}.{loss}": value for name, losses in line["held_out"].items() for loss, value in losses.items()
    }
    assert all(np.isfinite(losses["loss"]) for losses in line["sources"].values())
    assert "    Who?" in Path("out/lora/samples/step-2/samples.md").read_text()
    expected = {f"['layers']['attention']['{name}']" for name in ("q", "k", "v", "o")}
    expected |= {f"['layers']['mlp']['{name}']" for name in ("gate", "up", "down")}
    assert changed("out/lora") == expected
    card = Path("out/lora/model/README.md").read_text()
    assert "Trained from `passing`, low-rank adapters of rank 16: 2 steps" in card
    assert str(Path.cwd()) not in card
    model = chameleon_jax.load("out/lora")
    # The output layer did not learn, whatever the data holds.
    assert model.image_head_trained is False
    model.save("out/lora_huggingface", "huggingface")
    ids = np.asarray([[model.vocabulary.bos, *model.encode(["Who?"])]])
    np.testing.assert_allclose(chameleon_jax.load("out/lora_huggingface").logits(ids), model.logits(ids), rtol=1e-6)

    # The adapters alone make the same of the model that they were trained with.
    again = chameleon_jax.load("models/chameleon-7b", adapters="out/lora")
    for name, value in arrays(model).items():
        np.testing.assert_allclose(arrays(again)[name], value, rtol=1e-6, atol=1e-6, err_msg=name)

    # Only the checkpoint is left; and nothing at all without it.
    shutil.rmtree("models/passing")
    shutil.rmtree("out/lora/model")
    train(config)
    assert changed("out/lora") == expected
    shutil.rmtree("out/lora")
    with pytest.raises(FileError, match="models/passing"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_layers": 3}, r"model\.num_layers = 3: .*chameleon-7b has 2; give the model's own sizes"),
        ({"initial": "models/other"}, r"data = .*: its ids are not those of models/other; prepare the data with"),
    ],
    ids=["sizes", "vocabulary"],
)
def test_model_and_data_that_do_not_fit_are_refused(changes, message):
    prepared("prepare_sft.yaml")
    if not Path("models/other").exists():
        other = released_model()
        vocabulary = other.tokenizer.vocabulary.to_dict()
        vocabulary["bos"], vocabulary["pad"] = vocabulary["pad"], vocabulary["bos"]
        other.tokenizer.vocabulary = type(other.vocabulary).from_dict(vocabulary)
        other.save("models/other")
    with pytest.raises(ConfigError, match=message):
        train(tiny("sft_7b.yaml", **changes, output="out/refused"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "finetune_image_head.yaml"])
def test_recipes_train_from_nothing_too(recipe):
    """Recipes of pre-training above all; their sources are read from the recipe itself."""
    stages = read_config(TrainConfig, CONFIGS / recipe).stages
    names = sorted({name for stage in stages for name in stage.weights})
    sources = [{"kind": "documents", "name": name, "path": "data/pictures.jsonl"} for name in names]
    data = prepared("prepare_image_head.yaml", sources=sources, held_out=[], output=f"out/{recipe}/rows")
    config = tiny(recipe, data=data, output=f"out/{recipe}", initial="", steps=2)
    train(config)
    model = chameleon_jax.load(config.output)
    assert model.config.context_length == PreparedData(data).sequence_length < 4096
    drawing = model.generate(["A red kite. "], GenerationConfig(mode="image"))
    assert drawing[0].size == (8, 8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_complete_in_themselves(recipe):
    """Every size of the model stands in the file: nothing depends on defaults that may change."""
    assert set(SIZES) <= read_yaml(CONFIGS / recipe)["model"].keys()
    assert read_config(TrainConfig, CONFIGS / recipe).steps > 1000
