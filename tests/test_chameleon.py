"""A model written to disk is the same model when it is opened, and what cannot be opened is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    random_picture,
    released_model,
    scrambled_tokenizer,
    transformer_for,
    transformer_params,
)

from chameleon_jax import chameleon
from chameleon_jax.chameleon import CannotDraw, Chameleon, load
from chameleon_jax.config import (
    ConfigError,
    GenerationConfig,
    PreprocessingConfig,
    SamplingConfig,
)
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from chameleon_jax.generating import encode_prompts, resolved
from chameleon_jax.generation import programs
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import NoImageDecoder, to_image, to_pixels
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint

HOT = SamplingConfig(temperature=1.5, top_p=1.0)
CONFIG = GenerationConfig(max_new_tokens=24, max_images=2, text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
TEXT = dataclasses.replace(CONFIG, mode="text", max_images=None)
IMAGE = dataclasses.replace(CONFIG, mode="image", max_images=None)
# Programs are compiled for each number of rows and slots. These tests have 1 or 8 rows of 256 slots wherever they can.
PROMPTS = [["A handwritten three: "], [random_picture(1), " Which digit is this?"], []]


@pytest.fixture(scope="module")
def model() -> Chameleon:
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary)
    params = transformer_params(config, seed=1)
    params["output"] = params["output"].at[:, tokenizer.vocabulary.begin_image].multiply(3.0)
    params = jax.device_put(params, jax.devices()[0])  # what is compiled for these serves those that `load` places
    return Chameleon(config, params, tokenizer)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save(folder)
    return folder


def copy_of(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def frozen(documents: list) -> list:
    return [[part if isinstance(part, str) else part.tobytes() for part in document] for document in documents]


def test_opened_model_is_the_saved_one(model, saved):
    loaded = load(saved)
    assert loaded.config == model.config
    assert jax.tree.structure(loaded.params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    ids = model.encode(PROMPTS[1])
    np.testing.assert_array_equal(loaded.encode(PROMPTS[1]), ids)
    np.testing.assert_array_equal(loaded.logits(ids[None]), model.logits(ids[None]))
    assert frozen([loaded.generate(PROMPTS[1], CONFIG)]) == frozen([model.generate(PROMPTS[1], CONFIG)])


def test_parameters_of_another_precision_come_back(model, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params)
    Chameleon(model.config, half, model.tokenizer).save(tmp_path / "half")
    loaded = load(tmp_path / "half")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, half)


def test_answers_are_text_and_pictures(model):
    documents = model.generate_many([PROMPTS[0]] * 8, CONFIG)
    parts = [part for document in documents for part in document]
    assert {type(part) is str for part in parts} == {True, False}
    for part in parts:
        assert isinstance(part, str) or part.size == (16, 16)
    assert len({str(document) for document in frozen(documents)}) > 4


def test_answer_depends_on_the_seed(model):
    first, again, other = (
        frozen([model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=seed))]) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_new_seed_is_not_compiled_anew(model):
    """Compiling takes minutes for a large model; drawing again must not."""
    model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=100))
    compiled = programs.decode._cache_size()
    model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=101))
    assert programs.decode._cache_size() == compiled


def test_text_mode_writes_no_picture(model):
    for document in model.generate_many([PROMPTS[1]] * 6, TEXT):
        assert all(isinstance(part, str) for part in document)


def test_image_mode_writes_one_picture(model):
    config = dataclasses.replace(IMAGE, max_new_tokens=1)
    for document in model.generate_many(PROMPTS * 2, config):
        assert [part.size for part in document] == [(16, 16)]


def test_picture_that_cannot_fit_is_refused(model):
    length = 2 + len(model.encode(PROMPTS[0]))  # with begin of sequence and begin of image
    config = dataclasses.replace(IMAGE, context_length=length + 4)
    with pytest.raises(DocumentError, match=rf"{length} tokens, and an answer needs at least 5: .*{length + 4}\. "):
        model.generate(PROMPTS[0], config)


def test_no_prompts_give_no_answers(model):
    assert model.generate_many([], CONFIG) == []


def test_prompt_of_something_else_is_refused(model):
    with pytest.raises(DocumentError, match="not int"):
        model.generate(["what is", 3], CONFIG)


def test_text_is_read_as_the_document_that_holds_it(model):
    np.testing.assert_array_equal(model.encode("A handwritten seven."), model.encode(["A handwritten seven."]))
    np.testing.assert_array_equal(model.encode(random_picture(1)), model.encode([random_picture(1)]))
    config = dataclasses.replace(TEXT, text=SamplingConfig(temperature=0))
    assert model.generate("Once", config) == model.generate(["Once"], config)
    texts = ["Once", "Twice", "Thrice"] * 2
    assert model.generate_many(texts, config) == model.generate_many([[text] for text in texts], config)
    with pytest.raises(DocumentError, match="put it in a list"):
        model.generate_many("Once", config)


@pytest.mark.parametrize("seed", [-1, -(2**40), 2**63 - 1, 1 - 2**63])
def test_any_whole_number_is_a_seed(model, seed):
    model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=seed))


@pytest.mark.parametrize("seed", [2**63, -(10**30), 10**10_000], ids=["64 bits", "100 bits", "33,220 bits"])
def test_seed_of_too_many_bits_is_refused_in_one_line(seed):
    with pytest.raises(ConfigError, match=r"^seed = .*below 2\^63$"):
        dataclasses.replace(CONFIG, seed=seed)


def test_prompt_that_is_too_long_is_refused_before_any_work(model, monkeypatch):
    """Of 17,500 tokens the scores of attention alone took 10 GB."""
    monkeypatch.setattr(chameleon.Engines, "find", None)
    with pytest.raises(DocumentError, match=r"document 1 has .* tokens, .*context_length = 4,096. Shorten"):
        model.generate_many(["short", "long " * 17_500], TEXT)
    monkeypatch.setattr(model.image_tokenizer, "tokenize", None)
    with pytest.raises(DocumentError, match=r"the prompt has 6,000 tokens, .*context_length = 4,096"):
        model.generate([random_picture(0)] * 1000, TEXT)


def test_longer_context_can_be_asked_for(model):
    config = dataclasses.replace(TEXT, max_new_tokens=2, context_length=8)
    with pytest.raises(DocumentError, match="context_length = 8"):
        model.generate("A handwritten seven", config)
    assert model.generate("A handwritten seven", dataclasses.replace(config, context_length=512))


def test_more_than_the_model_was_trained_on_is_refused(model):
    short = Chameleon(dataclasses.replace(model.config, context_length=16), model.params, model.tokenizer)
    with pytest.raises(DocumentError, match=r"^the prompt has .* together more than context_length = 16"):
        short.generate("A handwritten seven. " * 4, TEXT)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for length in (16, 17, 17):
            short.logits(np.zeros((1, length), np.int32))
    assert [str(warning.message)[:60] for warning in said] == [
        "rows of 17 ids: the model was trained on rows of up to 16, a"
    ]


def test_lack_of_room_for_a_picture_is_said(model):
    length = 1 + len(model.encode("Once"))
    with pytest.warns(UserWarning, match="only text is written, as a picture needs room for 7 tokens .* leaves 6 of"):
        answer = model.generate("Once", dataclasses.replace(CONFIG, context_length=length + 6))
    assert all(isinstance(part, str) for part in answer)


def test_logits_of_too_many_ids_are_refused(model, monkeypatch):
    monkeypatch.setattr(chameleon, "LOGITS_BYTES", 4 * 10 * model.config.vocab_size)
    assert model.logits(np.zeros((1, 10), np.int32)).shape[1] == 10
    with pytest.raises(DocumentError, match=r"logits of 11 ids and .* columns take more than"):
        model.logits(np.zeros((1, 11), np.int32))


def test_folder_of_a_run_opens_its_model(model, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run" / "model")
    assert load(tmp_path / "run").config == model.config


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "is not a model folder"),
        (["checkpoints"], "training has not finished"),
        (["model"], "is not a model folder"),
    ],
)
def test_folder_without_a_model_is_named(tmp_path, made, message):
    folder = tmp_path / "run"
    for name in made:
        (folder / name).mkdir(parents=True)
    with pytest.raises(FileError, match=message) as caught:
        load(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_interrupted_saving_leaves_no_folder(model, tmp_path, monkeypatch):
    def interrupted(tokenizer, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(DocumentTokenizer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def changed_header(saved: Path, tmp_path: Path, change) -> Path:
    folder = copy_of(saved, tmp_path)
    header = json.loads((folder / "config.json").read_text())
    del header["sha256"]
    change(header)
    (folder / "config.json").write_text(json.dumps(header))
    return folder


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda header: header.update(format_version=7), FileError, r"config\.json: format_version 7 is newer"),
        (lambda header: header.pop("format_version"), FileError, r"config\.json: has no format_version"),
        (lambda header: header.pop("model"), ConfigError, r"config\.json: model = None: must be a mapping"),
        (
            lambda header: header["model"].update(heads=3),
            ConfigError,
            r"config\.json: model\.heads: there is no such key",
        ),
        (lambda header: header["model"].update(mlp_dim=25), FileError, r"layers/mlp/.*has shape .*the config expects"),
        (lambda header: header["model"].update(qk_norm=False), FileError, r"k_norm.*the config expects no such array"),
    ],
)
def test_header_that_does_not_fit_is_named(saved, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        load(changed_header(saved, tmp_path, change))


def test_vocabulary_larger_than_the_model_is_refused(saved, tmp_path):
    """Ids past the embedding would be clamped to its last row without a word."""
    folder = copy_of(saved, tmp_path)
    path = folder / "tokenizer" / "vocabulary.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps({**values, "text_ids": [token + 100 for token in values["text_ids"]]}))
    with pytest.raises((FileError, ConfigError), match="vocab"):
        load(folder)


@pytest.mark.parametrize("damage", ["deleted", "emptied"])
@pytest.mark.parametrize("name", ["params", "tokenizer/text.model", "tokenizer/vocabulary.json"])
def test_damaged_part_is_named(saved, tmp_path, name, damage):
    folder = copy_of(saved, tmp_path)
    path = folder / name
    if damage == "emptied":
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            file.write_bytes(b"")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(FileError, match=name):
        load(folder)


@pytest.mark.parametrize("damage", ["deleted", "emptied"])
def test_damaged_image_tokenizer_leaves_the_rest(model, saved, tmp_path, damage):
    folder = copy_of(saved, tmp_path)
    for file in [file for file in (folder / "tokenizer/image/params").rglob("*") if file.is_file()]:
        file.unlink() if damage == "deleted" else file.write_bytes(b"")
    with pytest.warns(UserWarning, match="continues without its image tokenizer: .*tokenizer/image/params"):
        opened = load(folder)
    assert "tokenizer/image/params" in opened.missing["image"]
    np.testing.assert_array_equal(opened.encode(["The dog"]), model.encode(["The dog"]))


# ----------------------------------------------------------------------------------------------------------------------
# Models of every format, and models of which a part is missing
# ----------------------------------------------------------------------------------------------------------------------

FORMATS = ("chameleon", "huggingface", "meta")
DOCUMENT = ["The dog jumps over ", random_picture(1, (8, 8)), "Zürich, 数字 and\n\tnothing ", random_picture(2, (8, 8))]
GREEDY = SamplingConfig(temperature=0.0)
ANSWER = GenerationConfig(
    mode="text", max_new_tokens=6, text=GREEDY, image=GREEDY, text_guidance=1.0, image_guidance=1.0
)


@pytest.fixture(scope="module")
def released() -> Chameleon:
    return released_model()


@pytest.fixture(scope="module")
def folders(released, tmp_path_factory) -> Path:
    """The model in a folder for each format."""
    root = tmp_path_factory.mktemp("formats")
    for format in FORMATS:
        released.save(root / format, format)
    return root


@pytest.fixture(scope="module")
def bare(released) -> Chameleon:
    """The Transformer without any tokenizer."""
    return Chameleon(released.config, released.params, None)


@pytest.fixture(scope="module")
def no_decoder(folders, tmp_path_factory) -> Path:
    """A folder as Hugging Face's releases are."""
    folder = shutil.copytree(folders / "huggingface", tmp_path_factory.mktemp("released") / "huggingface")
    shutil.rmtree(folder / "image_decoder")
    return folder


def received(model: Chameleon, document: list, **changes: Any) -> tuple[GenerationConfig, np.ndarray]:
    """The config and the one prompt that the engine gets."""
    config = resolved(model, dataclasses.replace(ANSWER, **changes))
    return config, *encode_prompts(model, [document], [config])


def assert_same_tree(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_opens_as_the_saved_model(released, folders, format):
    loaded = load(folders / format)
    assert loaded.config == released.config
    assert_same_tree(loaded.params, released.params)
    assert loaded.image_tokenizer.config == released.image_tokenizer.config
    assert_same_tree(loaded.image_tokenizer.params, released.image_tokenizer.params)
    assert loaded.vocabulary.to_dict() == released.vocabulary.to_dict()
    assert (loaded.missing, loaded.image_head_trained) == ({}, None)
    np.testing.assert_array_equal(loaded.encode(DOCUMENT), released.encode(DOCUMENT))


def test_pictures_become_codes_and_codes_pictures(released):
    pictures = [random_picture(3, (8, 8)), random_picture(4, (30, 17)), random_picture(5, (9, 40), "L")]
    codes = released.tokenize_images(pictures)
    assert (codes.shape, codes.dtype) == ((3, 16), np.int32)
    assert 0 <= codes.min() <= codes.max() < 16
    assert len(np.unique(codes)) > 4
    pixels = np.stack([to_pixels(picture, 8) for picture in pictures])
    np.testing.assert_array_equal(released.image_tokenizer.encode_pixels(pixels), codes)
    decoded = released.image_tokenizer.decode_codes(codes)
    assert (decoded.shape, decoded.dtype) == ((3, 8, 8, 3), np.float32)
    drawn = released.detokenize_images(codes)
    assert [picture.tobytes() for picture in drawn] == [to_image(pixels).tobytes() for pixels in decoded]
    assert len({picture.tobytes() for picture in drawn}) == 3


def test_documents_come_back_from_their_ids(released):
    ids = released.encode(DOCUMENT)
    vocabulary = released.vocabulary
    assert (ids.ndim, ids.dtype) == (1, np.int32)
    assert (ids == vocabulary.begin_image).sum() == (ids == vocabulary.end_image).sum() == 2
    begin = int(np.argmax(ids == vocabulary.begin_image))
    assert ids[begin + 17] == vocabulary.end_image
    codes = released.tokenize_images([DOCUMENT[1], DOCUMENT[3]])
    np.testing.assert_array_equal(ids[begin + 1 : begin + 17], vocabulary.image_ids[codes[0]])
    expected = [DOCUMENT[0], released.detokenize_images(codes)[0], DOCUMENT[2], released.detokenize_images(codes)[1]]
    assert frozen([released.decode(ids)]) == frozen([expected])


def test_logits_are_the_transformers_and_nothing_is_masked(released):
    ids = np.concatenate([[released.vocabulary.bos], released.encode(DOCUMENT)])[None]
    logits = released.logits(ids)
    assert (logits.shape, logits.dtype) == ((*ids.shape, released.config.vocab_size), np.float32)
    assert np.isfinite(logits).all()
    expected = jax.jit(Transformer(released.config).apply)({"params": released.params}, jnp.asarray(ids))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 460]], "ids from 0 to 460: must be from 0 to 459"),
        ([[-1, 5]], "ids from -1 to 5: must be from 0 to 459"),
        ([0, 5], r"shape \(2,\): expected whole numbers \[batch, length\]"),
        ([[[0, 5]]], r"shape \(1, 1, 2\): expected whole numbers"),
        ([[0.0, 5.0]], "ids of type float64"),
    ],
)
def test_logits_of_what_are_no_ids_are_refused(released, ids, message):
    """JAX would take the last row of the embedding without a word."""
    with pytest.raises(ValueError, match=message):
        released.logits(np.array(ids))


def test_chat_puts_an_end_of_turn_after_the_prompt(released):
    vocabulary = released.vocabulary
    ids = released.encode(DOCUMENT).tolist()
    _, plain = received(released, DOCUMENT)
    config, chat = received(released, DOCUMENT, form="chat")
    _, drawing = received(released, DOCUMENT, form="chat", mode="image", max_new_tokens=40)
    assert plain.tolist() == [vocabulary.bos, *ids]
    assert chat.tolist() == [vocabulary.bos, *ids, vocabulary.end_of_turn]
    assert drawing.tolist() == [vocabulary.bos, *ids, vocabulary.end_of_turn, vocabulary.begin_image]
    assert config.mode == "text"
    for form, prompt in (("completion", plain), ("chat", chat)):
        np.testing.assert_array_equal(released.tokenizer.encode_prompt(DOCUMENT, form), prompt)


def test_greedy_answer_is_what_the_logits_say(released):
    """Through the whole machine: prompt, cache, masks and decoding, against one forward pass a token."""
    prompt = released.tokenizer.encode_prompt(DOCUMENT, "chat").tolist()
    allowed = np.full(released.config.vocab_size, -np.inf)
    allowed[released.vocabulary.text_ids] = allowed[released.vocabulary.eos] = 0
    answer: list[int] = []
    for _ in range(ANSWER.max_new_tokens):
        ids = np.zeros((1, len(prompt) + ANSWER.max_new_tokens), np.int32)
        ids[0, : len(prompt) + len(answer)] = prompt + answer
        answer.append(int(np.argmax(released.logits(ids)[0, len(prompt) + len(answer) - 1] + allowed)))
        if answer[-1] == released.vocabulary.eos:
            break
    assert len(set(answer)) > 1
    assert released.generate(DOCUMENT, dataclasses.replace(ANSWER, form="chat")) == released.decode(np.array(answer))


def test_auto_draws_where_the_model_can(released, no_decoder):
    assert released.why_no_pictures is None
    assert received(released, DOCUMENT, mode="auto")[0].mode == "interleaved"
    assert received(load(no_decoder), DOCUMENT, mode="auto")[0].mode == "text"


def test_model_without_a_decoder_reads_pictures_and_writes_text(released, no_decoder):
    model = load(no_decoder)
    assert model.missing.keys() == {"decoder"}
    ids = model.encode(DOCUMENT)
    np.testing.assert_array_equal(ids, released.encode(DOCUMENT))
    expected = released.generate(DOCUMENT, ANSWER)
    assert model.generate(DOCUMENT, dataclasses.replace(ANSWER, mode="auto")) == expected
    assert all(isinstance(part, str) for part in expected)
    for mode in ("image", "interleaved"):
        with pytest.raises(CannotDraw, match=rf"mode = '{mode}'.*no image decoder.*image_tokenizer=") as caught:
            model.generate(DOCUMENT, dataclasses.replace(ANSWER, mode=mode))
        assert "\n" not in str(caught.value)
    for draw in (lambda: model.detokenize_images(np.zeros((1, 16), np.int32)), lambda: model.decode(ids)):
        with pytest.raises(NoImageDecoder, match=r"without the image decoder.*image_tokenizer="):
            draw()


@pytest.mark.parametrize("source", ["meta/tokenizer", "meta", "huggingface", "chameleon"])
def test_image_tokenizer_of_another_folder_repairs_it(released, folders, no_decoder, source):
    model = load(no_decoder, image_tokenizer=folders / source)
    assert (model.missing, model.why_no_pictures) == ({}, None)
    assert_same_tree(model.image_tokenizer.params, released.image_tokenizer.params)


@pytest.mark.parametrize("format", ["chameleon", "huggingface"])
def test_model_without_a_decoder_stays_one(no_decoder, tmp_path, format):
    write_checkpoint(open_checkpoint(no_decoder), tmp_path / "again", format)
    again = open_checkpoint(tmp_path / "again")
    assert again.missing.keys() == {"decoder"}
    assert not again.load_tokenizer().image.can_decode


def without(folders: Path, tmp_path: Path, format: str, *names: str) -> Chameleon:
    """A model from a folder without some of its files."""
    folder = shutil.copytree(folders / format, tmp_path / format)
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return load(folder)


def without_names(folder: Path) -> None:
    header = json.loads((folder / "config.json").read_text())
    del header["vocabulary_map"]
    (folder / "config.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("format", "missing"),
    [("chameleon", "tokenizer"), ("huggingface", "tokenizer.json"), ("meta", "tokenizer/text_tokenizer.json")],
)
def test_model_without_a_tokenizer_still_computes_logits(released, folders, tmp_path, format, missing):
    folder = shutil.copytree(folders / format, tmp_path / format)
    if format == "huggingface":
        without_names(folder)
    (shutil.rmtree if (folder / missing).is_dir() else Path.unlink)(folder / missing)
    model = load(folder)
    ids = released.encode(DOCUMENT)[None]
    np.testing.assert_array_equal(model.logits(ids), released.logits(ids))
    assert {"text", "vocabulary"} <= model.missing.keys()
    asked: list[Callable[[], Any]] = [
        lambda: model.encode(["text"]),
        lambda: model.decode(ids[0]),
        lambda: model.vocabulary,
        lambda: model.generate(["text"], ANSWER),
    ]
    for ask in asked:
        with pytest.raises(DocumentError) as caught:
            ask()
        assert Path(missing).name in str(caught.value)
        assert str(folder) in str(caught.value)


def test_model_without_text_still_reads_pictures(released, folders, tmp_path):
    """A folder of Hugging Face's names all tokens in config.json too."""
    model = without(folders, tmp_path, "huggingface", "tokenizer.json")
    assert model.missing.keys() == {"text"}
    assert model.vocabulary.to_dict() == released.vocabulary.to_dict()
    np.testing.assert_array_equal(model.encode(DOCUMENT[1::2]), released.encode(DOCUMENT[1::2]))
    assert frozen([model.decode(model.encode(DOCUMENT[1::2]))]) == frozen(
        [released.decode(model.encode(DOCUMENT[1::2]))]
    )
    for ask in (lambda: model.encode(DOCUMENT), lambda: model.decode(released.encode(DOCUMENT))):
        with pytest.raises(DocumentError, match=r"no text tokenizer: there is no tokenizer\.json in "):
            ask()


def test_model_without_an_image_tokenizer_still_reads_text(released, folders, tmp_path):
    model = without(folders, tmp_path, "meta", "tokenizer/vqgan.ckpt")
    assert model.missing.keys() == {"image"}
    text = DOCUMENT[::2]
    np.testing.assert_array_equal(model.encode(text), released.encode(text))
    assert model.generate(text, dataclasses.replace(ANSWER, mode="auto")) == released.generate(text, ANSWER)
    for ask in (lambda: model.encode(DOCUMENT), lambda: model.tokenize_images(DOCUMENT[1::2])):
        with pytest.raises(DocumentError, match=r"no image tokenizer: there is no vqgan\.ckpt in "):
            ask()
    with pytest.raises(CannotDraw, match=r"no image tokenizer \(there is no vqgan\.ckpt in "):
        model.generate(text, dataclasses.replace(ANSWER, mode="image"))


def test_weights_without_pictures_do_not_draw_unless_told_to(folders, tmp_path):
    """As Meta's release: the name of the run in consolidate_params.json says that pictures were taken out."""
    folder = shutil.copytree(folders / "meta", tmp_path / "meta")
    header = json.loads((folder / "consolidate_params.json").read_text())
    header["src"] = "/runs/sft_v1.4/checkpoint_1200_noimggen"
    (folder / "consolidate_params.json").write_text(json.dumps(header))
    model = load(folder)
    assert model.image_head_trained is False
    for mode in ("image", "interleaved"):
        with pytest.raises(CannotDraw, match=r"never trained on pictures.*image_head_trained = True") as caught:
            model.generate(DOCUMENT, dataclasses.replace(ANSWER, mode=mode))
        assert "\n" not in str(caught.value)
    assert received(model, DOCUMENT, mode="auto")[0].mode == "text"
    model.image_head_trained = True
    drawn = model.generate(DOCUMENT, dataclasses.replace(ANSWER, mode="image", max_new_tokens=20))
    assert [part.size for part in drawn] == [(8, 8)]
    assert received(model, DOCUMENT, mode="auto")[0].mode == "interleaved"


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_known_of_the_image_head_is_kept(bare, tmp_path, trained):
    model = Chameleon(bare.config, bare.params, None, image_head_trained=trained)
    for format in FORMATS:
        model.save(tmp_path / format, format)
        assert load(tmp_path / format).image_head_trained is trained
        for target in FORMATS:
            write_checkpoint(open_checkpoint(tmp_path / format), tmp_path / f"{format}-{target}", target)
            assert open_checkpoint(tmp_path / f"{format}-{target}").image_head_trained is trained


@pytest.mark.parametrize(("old", "new"), [("chameleon", "meta"), ("meta", "huggingface"), ("huggingface", "chameleon")])
def test_saving_replaces_an_older_model_whole(bare, folders, tmp_path, old, new):
    folder = shutil.copytree(folders / old, tmp_path / "model")
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    (folder / "notes.txt").write_text("somebody's")
    with pytest.raises(FileError, match=r"model: is there already; .*it holds 'notes.txt'"):
        bare.save(folder, new)
    (folder / "notes.txt").unlink()
    assert {path.relative_to(folder) for path in folder.rglob("*")} == before
    bare.save(folder, new)
    opened = open_checkpoint(folder)
    assert (opened.format, opened.text) == (new, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_into_an_empty_folder_is_fine(bare, tmp_path):
    (tmp_path / "empty").mkdir()
    bare.save(tmp_path / "empty", "huggingface")
    assert open_checkpoint(tmp_path / "empty").format == "huggingface"


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "photos/1.png", ".hidden"])
def test_saving_never_replaces_anything_else(released, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(FileError, match=r"mine: is there already; choose another folder or remove it first"):
        released.save(tmp_path / "mine")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "{}"


def test_saving_never_replaces_a_file(released, tmp_path):
    (tmp_path / "mine").write_text("{}")
    with pytest.raises(FileError, match=r"mine: is there already"):
        released.save(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "{}"


def test_folder_that_holds_a_model_somewhere_inside_is_no_model(released, folders, tmp_path):
    """The folder of a training run has a model in it, and checkpoints that are worth more."""
    shutil.copytree(folders / "chameleon", tmp_path / "run" / "model")
    with pytest.raises(FileError, match=r"run: is there already"):
        released.save(tmp_path / "run")
    assert load(tmp_path / "run").config == released.config


def test_precision_is_chosen_when_opening(released, folders):
    model = load(folders / "meta", dtype="bfloat16")
    assert (model.execution.param_dtype, model.execution.compute_dtype) == ("bfloat16", "bfloat16")
    assert_same_tree(model.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), released.params))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.image_tokenizer.params)} == {"float32"}
    np.testing.assert_array_equal(model.encode(DOCUMENT), released.encode(DOCUMENT))
    ids = released.encode(DOCUMENT)[None]
    logits = model.logits(ids)
    assert logits.dtype == np.float32
    model.execution = dataclasses.replace(model.execution, compute_dtype="float32")
    assert not np.array_equal(logits, model.logits(ids)), "was computed in float32"
    assert np.corrcoef(np.ravel(logits), np.ravel(released.logits(ids)))[0, 1] > 0.99


@pytest.mark.parametrize("format", FORMATS)
def test_precision_is_that_of_the_files_by_default(bare, tmp_path, format):
    bare.save(tmp_path / "half", format, dtype="bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bare.params)
    model = load(tmp_path / "half")
    assert (model.execution.param_dtype, model.execution.compute_dtype) == ("bfloat16", "bfloat16")
    assert_same_tree(model.params, half)
    model = load(tmp_path / "half", dtype="float32")
    assert (model.execution.param_dtype, model.execution.compute_dtype) == ("float32", "float32")
    assert_same_tree(model.params, jax.tree.map(lambda leaf: leaf.astype(np.float32), half))


@pytest.mark.parametrize("format", FORMATS)
def test_preprocessing_is_chosen_when_opening_and_kept_when_saving(released, folders, tmp_path, format, capsys):
    """Another preprocessing gives other codes, so a model has to keep its own."""
    style = PreprocessingConfig(style="huggingface", fit="pad", pad_colour=(0, 9, 200))
    model = load(folders / "meta", preprocessing=style)
    picture = random_picture(6, (40, 23))
    expected = model.image_tokenizer.encode_pixels(to_pixels(picture, 8, style)[None])
    np.testing.assert_array_equal(model.tokenize_images([picture]), expected)
    assert not np.array_equal(expected, released.tokenize_images([picture]))
    model.save(tmp_path / "model", format)
    again = load(tmp_path / "model")
    assert again.image_tokenizer.preprocessing == style
    said = "only chameleon_jax.json records" in capsys.readouterr().err
    assert said == (format != "chameleon")
    np.testing.assert_array_equal(again.tokenize_images([picture]), expected)


def test_output_layer_with_blank_image_columns_is_known_not_to_draw(released):
    output = released.params["output"].at[:, released.vocabulary.image_ids].set(0.0)
    model = Chameleon(released.config, {**released.params, "output": output}, released.tokenizer)
    with pytest.raises(CannotDraw, match="never trained on pictures"):
        model.generate(["A dog. "], GenerationConfig(mode="image", max_new_tokens=20))
    model.image_head_trained = True
    assert model.why_no_pictures is None


class CountedReads:
    """An array that counts how often it is indexed."""

    def __init__(self, array):
        self.array, self.reads = array, 0

    def __getitem__(self, index):
        self.reads += 1
        return self.array[index]


def test_output_layer_is_looked_at_once(released):
    drawing = CountedReads(released.params["output"])
    blank = CountedReads(released.params["output"].at[:, released.vocabulary.image_ids].set(0.0))
    model = Chameleon(released.config, dict(released.params), released.tokenizer)
    model.params = {**released.params, "output": drawing}
    for _ in range(3):
        assert model.why_no_pictures is None
    model.params = {**released.params, "output": blank}
    for _ in range(3):
        assert "never trained on pictures" in model.why_no_pictures
    assert (drawing.reads, blank.reads) == (1, 1)
    model.params["output"] = drawing  # in place
    assert model.why_no_pictures is None
    model.image_head_trained = False
    assert "never trained on pictures" in model.why_no_pictures
    assert (drawing.reads, blank.reads) == (2, 1)
