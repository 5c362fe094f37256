"""What the model in training writes after fixed prompts is shown where people look."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_models import random_picture, scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ConfigError, GenerationConfig, SamplePrompt, SamplesConfig
from chameleon_jax.console.train import _sampler
from chameleon_jax.document import DocumentError
from chameleon_jax.models.lora import merge
from chameleon_jax.training.loop import train
from chameleon_jax.training.samples import write_samples
from chameleon_jax.training.trackers import TensorBoard, WeightsAndBiases

PICTURE = Image.new("RGB", (4, 4), (200, 30, 60))


def test_text_and_pictures_become_files_and_a_page(tmp_path):
    prompts = [SamplePrompt("Draw *it*."), SamplePrompt("⟨image⟩ Which?", images=("seven.png",))]
    answers = [["One", PICTURE, " and two", PICTURE], ["# no heading\nseven"]]
    for _ in range(2):  # a run that goes on may draw them once more
        folder = write_samples(tmp_path, 120, prompts, answers)
    assert folder == tmp_path / "step-120"
    assert sorted(path.name for path in folder.iterdir()) == ["01-1.png", "01-2.png", "samples.md"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "01-2.png")), np.asarray(PICTURE))
    page = (folder / "samples.md").read_text()
    assert "    Draw *it*." in page
    assert "    seven.png" in page
    assert page.index("    One") < page.index("![picture 1](01-1.png)") < page.index("     and two")
    assert "    # no heading\n    seven" in page


def test_the_loop_samples_at_its_steps_and_after_the_last(tiny, compiled_once, tmp_path):
    config = tiny.config(
        tmp_path, log_every=8, checkpoint__every=8, ema=0.3, samples={"every": 3, "prompts": [{"text": "Once"}]}
    )  # fmt: skip
    seen = []

    def sample(params):
        seen.append(params)
        return [[f"{len(seen)} times"]]

    state = train(tiny.task(config), tiny.batches, sample=sample)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-3", "step-6", "step-8"]
    assert "    3 times" in (tmp_path / "samples" / "step-8" / "samples.md").read_text()
    # The parameters are those that would be written as the model: the average.
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
                 seen[-1], state.opt_state.average)  # fmt: skip


def test_trackers_show_them_too(tiny, tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda figures, step: logged.append((step, figures)))
    wandb = types.SimpleNamespace(init=lambda **_: run, Html=lambda text: text, Image=lambda image: image)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    answers = [["a < b", PICTURE], ["c"]]
    WeightsAndBiases(tiny.config(tmp_path)).write_samples(7, answers)
    shown = {"samples/01-1": "<pre>a &lt; b</pre>", "samples/01-2": PICTURE, "samples/02-1": "<pre>c</pre>"}
    assert logged == [(7, shown)]

    board = TensorBoard(tiny.config(tmp_path))
    board.write_samples(7, answers)
    board.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content = path.read_bytes()
    assert b"samples/01-1" in content
    assert b"a < b" in content
    assert b"\x89PNG" in content


def test_runs_of_two_people_have_ids_of_their_own_and_keep_them(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: asked.append(options)))
    for person in ("ada", "bob", "ada"):
        (tmp_path / person / "out" / "run").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / person)
        WeightsAndBiases(tiny.config("out/run"))
    ids = [options["id"] for options in asked]
    assert ids[0] == ids[2] != ids[1]
    assert {options["name"] for options in asked} == {"out/run"}

    # A run that an older version began goes on under the id that it made of the path.
    (old := tmp_path / "old" / "wandb").mkdir(parents=True)
    WeightsAndBiases(tiny.config(old.parent))
    assert asked[-1]["id"] == str(old.parent).replace("/", "-").strip("-")[-100:]


# ----------------------------------------------------------------------------------------------------------------------
# What `chameleon train` samples with
# ----------------------------------------------------------------------------------------------------------------------


def sampling(tiny, folder: Path, prompts, **generation):
    """A config for the tiny tokenizer, and that."""
    tokenizer = scrambled_tokenizer()
    model = transformer_for(tokenizer.vocabulary)
    generation = GenerationConfig(**{"max_new_tokens": 8, **generation})
    samples = SamplesConfig(every=1, prompts=tuple(prompts), generation=generation)
    return dataclasses.replace(tiny.config(folder, lora__rank=2), model=model, samples=samples), tokenizer


@pytest.mark.slow
def test_samples_are_what_the_finished_model_would_write(tiny, tmp_path):
    random_picture(1).save(tmp_path / "picture.png")
    prompts = [
        SamplePrompt("The quick", mode="text"),
        SamplePrompt("Draw", mode="image"),
        SamplePrompt("⟨image⟩ is", images=(str(tmp_path / "picture.png"),), mode="text"),
    ]
    config, tokenizer = sampling(tiny, tmp_path, prompts)
    params = transformer_params(config.model, lora=config.lora)
    answers = _sampler(config, tokenizer, None)(params)
    whole = Chameleon(config.model, merge(params, config.lora), tokenizer, image_head_trained=True)
    texts = whole.generate_many(
        [["The quick"], [random_picture(1), " is"]], dataclasses.replace(config.samples.generation, mode="text")
    )
    (drawing,) = whole.generate(["Draw"], dataclasses.replace(config.samples.generation, mode="image"))
    assert [answers[0], answers[2]] == texts
    np.testing.assert_array_equal(np.asarray(answers[1][0]), np.asarray(drawing))


def test_samples_that_could_not_be_drawn_are_refused_before_the_run(tiny, tmp_path):
    with pytest.raises(DocumentError, match=r"gone\.png"):
        _sampler(*sampling(tiny, tmp_path, [SamplePrompt(images=("gone.png",))]), None)
    with pytest.raises(ConfigError, match="max_images = 2: mode 'image' writes exactly one picture"):
        _sampler(*sampling(tiny, tmp_path, [SamplePrompt("Draw", mode="image")], max_images=2), None)
    config, _ = sampling(tiny, tmp_path, [SamplePrompt("Draw", mode="image")])
    with pytest.raises(ConfigError, match="has no image decoder"):
        _sampler(config, types.SimpleNamespace(image=None, image_block=6), None)
    with pytest.raises(ConfigError, match="must list at least one prompt"):
        SamplesConfig(every=3)
    with pytest.raises(ConfigError, match=r"generation\.mode = 'text': goes with each prompt"):
        SamplesConfig(every=3, prompts=(SamplePrompt("a"),), generation=GenerationConfig(mode="text"))
