"""What the model in training writes after fixed prompts is shown where people look."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_models import (
    IMAGE_TOKENIZER,
    image_tokenizer,
    random_picture,
    scrambled_tokenizer,
    transformer_for,
    transformer_params,
)

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import (
    CheckpointConfig,
    ConfigError,
    GenerationConfig,
    ImageTokenizerTrainConfig,
    MeshConfig,
    ReconstructionsConfig,
    SamplePrompt,
    SamplesConfig,
)
from chameleon_jax.console.train import _sampler
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import TrainingError
from chameleon_jax.models.lora import merge
from chameleon_jax.tokens.image import scale
from chameleon_jax.training.image_tokenizer import (
    pictures_in_order,
    reconstructions,
    train_image_tokenizer,
    whole_batches,
)
from chameleon_jax.training.loop import train
from chameleon_jax.training.samples import Sample, write_samples
from chameleon_jax.training.trackers import TensorBoard, WeightsAndBiases

PICTURE = Image.new("RGB", (4, 4), (200, 30, 60))


def test_text_and_pictures_become_files_and_a_page(tmp_path):
    samples = [
        Sample("Prompt 1", ["One", PICTURE, " and two", PICTURE], ("Draw *it*.",)),
        Sample("Prompt 2", ["# no heading\nseven"], ("⟨image⟩ Which?", "seven.png")),
        Sample("Pictures", [PICTURE]),
    ]
    for _ in range(2):  # a run that goes on may draw them once more
        folder = write_samples(tmp_path, 120, samples)
    assert folder == tmp_path / "step-120"
    assert sorted(path.name for path in folder.iterdir()) == ["01-1.png", "01-2.png", "03-1.png", "samples.md"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "01-2.png")), np.asarray(PICTURE))
    page = (folder / "samples.md").read_text()
    assert "    Draw *it*." in page
    assert "    seven.png" in page
    assert page.index("    One") < page.index("![picture 1](01-1.png)") < page.index("     and two")
    assert "    # no heading\n    seven" in page
    assert "\n## Pictures\n\n\n![picture 1](03-1.png)\n" in page


def test_the_loop_samples_at_its_steps_and_after_the_last(tiny, compiled_once, tmp_path):
    config = tiny.config(
        tmp_path, log_every=8, checkpoint__every=8, ema=0.3, samples={"every": 3, "prompts": [{"text": "Once"}]}
    )  # fmt: skip
    seen = []

    def sample(params):
        seen.append(params)
        return [Sample("Prompt 1", [f"{len(seen)} times"])]

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
    samples = [Sample("first", ["a < b", PICTURE]), Sample("second", ["c"])]
    WeightsAndBiases(tiny.config(tmp_path)).write_samples(7, samples)
    shown = {"samples/01-1": "<pre>a &lt; b</pre>", "samples/01-2": PICTURE, "samples/02-1": "<pre>c</pre>"}
    assert logged == [(7, shown)]

    board = TensorBoard(tiny.config(tmp_path))
    board.write_samples(7, samples)
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
# Reconstructions of an image tokenizer
# ----------------------------------------------------------------------------------------------------------------------

TOKENIZER = ImageTokenizerTrainConfig(
    model=dataclasses.replace(IMAGE_TOKENIZER, channel_multipliers=(1,), channels=4, norm_groups=1, attn_type="none"),
    steps=6, batch_size=8, optimizer={"warmup_steps": 1}, checkpoint=CheckpointConfig(every=2), log_every=1,
    mesh=MeshConfig(data=4, fsdp=2), samples=ReconstructionsConfig(every=4, pictures=3),
)  # fmt: skip


def test_held_out_pictures_are_shown_above_their_reconstructions(tiny, tmp_path, monkeypatch):
    pictures = np.stack([np.asarray(random_picture(seed)) for seed in range(12)])
    held_out = {"many": whole_batches(pictures, 8), "two": whole_batches(pictures[10:], 8)}
    many, two = reconstructions(TOKENIZER, held_out, lambda params: image_tokenizer())({})
    for sample, originals in ((many, pictures[:3]), (two, pictures[10:])):
        (sheet,) = sample.document
        assert sheet.size == (17 * len(originals) - 1, 33)
        codes = image_tokenizer().encode_pixels(scale(originals))
        for column, rebuilt in enumerate(image_tokenizer().detokenize(codes)):
            left = 17 * column
            np.testing.assert_array_equal(np.asarray(sheet.crop((left, 0, left + 16, 16))), originals[column])
            np.testing.assert_array_equal(np.asarray(sheet.crop((left, 17, left + 16, 33))), np.asarray(rebuilt))
    assert two.title == "two: pictures above their reconstructions"

    shown = []
    run = types.SimpleNamespace(log=lambda figures, step: shown.append(figures))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run, Image=lambda image: image))
    WeightsAndBiases(tiny.config(tmp_path)).write_samples(7, [many, two])
    assert shown == [{"samples/01-1": many.document[0], "samples/02-1": two.document[0]}]
    board = TensorBoard(tiny.config(tmp_path))
    board.write_samples(7, [many, two])
    board.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.read_bytes().count(b"\x89PNG") == 2


@pytest.mark.slow
def test_reconstructions_change_nothing_and_are_the_same_in_a_resumed_run(tmp_path):
    pictures = np.stack([np.asarray(random_picture(seed)) for seed in range(16)])
    batches, held_out = pictures_in_order(pictures[:8], 8, 0), {"unseen": whole_batches(pictures[8:], 8)}
    limits = iter((None, 5))  # the first codes are from batches too

    def interrupted(start: int, rows: np.ndarray):
        yield from itertools.islice(batches(start, rows), next(limits))

    def learn(name: str, batches=batches, **changes):
        config = dataclasses.replace(TOKENIZER, output=str(tmp_path / name), **changes)
        return train_image_tokenizer(config, batches, held_out=held_out)

    plain, whole = learn("plain", samples=ReconstructionsConfig()), learn("whole")
    with pytest.raises(TrainingError, match="the data ended after 5 batches"):
        learn("resumed", interrupted)
    resumed = learn("resumed")
    for other in (plain, resumed):
        jax.tree.map(np.testing.assert_array_equal, other.params, whole.params)
    assert not (tmp_path / "plain" / "samples").exists()
    for step in (4, 6):
        first, second = (tmp_path / name / "samples" / f"step-{step}" / "01-1.png" for name in ("whole", "resumed"))
        assert first.read_bytes() == second.read_bytes()
    (last,) = reconstructions(TOKENIZER, held_out, lambda params: whole)({})
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(last.document[0]))


def test_without_held_out_pictures_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ConfigError, match=r"samples.every = 4: must be 0 without held-out pictures"):
        train_image_tokenizer(dataclasses.replace(TOKENIZER, output=str(tmp_path)), [])


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
    samples = _sampler(config, tokenizer, None)(params)
    assert [sample.prompt[0] for sample in samples] == [prompt.text for prompt in prompts]
    answers = [sample.document for sample in samples]
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
