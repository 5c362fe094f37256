"""A model that goes through other formats comes back bit for bit, and the original libraries read what we write."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_models import (
    random_picture,
    released_json,
    scrambled_json,
    scrambled_vocabulary,
    text_tokenizer,
    transformer_params,
)

import chameleon_jax
from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import (
    ExecutionConfig,
    GenerationConfig,
    ImageTokenizerConfig,
    SamplingConfig,
    TransformerConfig,
)
from chameleon_jax.models.transformer import parameter_shapes
from chameleon_jax.models.vq import VQModel
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.layout import Entry, image_tokenizer_entries, transformer_entries
from chameleon_jax.weights.safetensors import read_safetensors
from chameleon_jax.weights.sources import FileWeights, leaves_of
from chameleon_jax.weights.stored import ComputedTensor
from chameleon_jax.weights.torch_files import read_torch_file

CONFIG = TransformerConfig(
    vocab_size=488, d_model=32, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=4, mlp_dim=48, norm_order="swin"
)
IMAGE_CONFIG = ImageTokenizerConfig(
    resolution=16, channels=32, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8, code_dim=4,
    num_codes=16,
)  # fmt: skip
"""64 codes a picture. GroupNorm of 32 groups and plain pixels, as other formats need them."""

DOCUMENTS = [
    ["The quick brown fox, 1984.\n"],
    [random_picture(1, (30, 20)), " Which digit is this? "],
    ["Это хорошо: ", random_picture(2, (16, 16), "L"), "naïve <s> IMGIMGBZ"],
]


@functools.cache
def image_tokenizer() -> ImageTokenizer:
    """Kernels keep activations of size 1, and the codes lie among the latents, so that pictures have many codes."""
    rng = np.random.default_rng(0)
    pixels = jnp.zeros((1, 16, 16, 3))
    abstract = jax.eval_shape(VQModel(IMAGE_CONFIG).init, jax.random.key(0), pixels)["params"]

    def values(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.2
        return jnp.asarray(noise * scale + (path[-1].key == "scale"))

    params = jax.tree_util.tree_map_with_path(values, abstract)
    return ImageTokenizer(IMAGE_CONFIG, {**params, "codebook": params["codebook"] * 4})


@functools.cache
def document_tokenizer(kind: str) -> DocumentTokenizer:
    if kind == "sentencepiece":
        text = text_tokenizer()
        return DocumentTokenizer(text, image_tokenizer(), scrambled_vocabulary(text.num_pieces, 16))
    content = released_json() if kind == "released" else scrambled_json()
    return DocumentTokenizer(JSONTokenizer(content, kind), image_tokenizer(), vocabulary_from_json(content, kind))


def model(rows: int, dtype: str = "float32", kind: str = "released", **changes: Any) -> Chameleon:
    config = dataclasses.replace(CONFIG, qk_norm_groups=rows, **changes)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), transformer_params(config, seed=rows))
    return Chameleon(config, params, document_tokenizer(kind), image_head_trained=False)


def convert(source: Path, folder: Path, format: str, dtype: str | None = None, shards: int | None = None) -> Path:
    """What `chameleon convert` does."""
    write_checkpoint(open_checkpoint(source), folder, format, dtype, shards)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_same_files(folder: Path, other: Path) -> None:
    found, expected = files(folder), files(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def assert_same_arrays(tree: Any, expected: Any) -> None:
    found, expected = leaves_of(tree), leaves_of(expected)
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        assert leaf.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[name]), err_msg=name)


def readings(tokenizer: DocumentTokenizer) -> list[tuple[list[int], list[str | bytes]]]:
    """The ids of the documents, and what they decode to."""
    encoded = [tokenizer.encode(document) for document in DOCUMENTS]
    decoded = map(tokenizer.decode, encoded)
    frozen = [[part if isinstance(part, str) else part.tobytes() for part in document] for document in decoded]
    return list(zip([ids.tolist() for ids in encoded], frozen, strict=True))


expected_readings = functools.cache(readings)


def assert_same_tokenizer(found: Chameleon, expected: Chameleon) -> None:
    """The image tokenizer bit for bit with its decoder, the ids of documents, and what they decode to."""
    assert found.missing == {}
    assert found.image_tokenizer.config == IMAGE_CONFIG
    assert found.image_tokenizer.can_decode
    assert_same_arrays(found.image_tokenizer.params, expected.image_tokenizer.params)
    assert readings(found.tokenizer) == expected_readings(expected.tokenizer)


def assert_same_model(found: Chameleon, expected: Chameleon) -> None:
    assert found.config == expected.config
    assert found.image_head_trained == expected.image_head_trained
    assert_same_arrays(found.params, expected.params)
    assert_same_tokenizer(found, expected)


def test_pictures_of_these_tests_have_many_codes():
    ids = model(1).encode(DOCUMENTS[1] + DOCUMENTS[2])
    codes = document_tokenizer("released").vocabulary.code_of_id[ids]
    assert len(np.unique(codes[codes >= 0])) >= 8


# ----------------------------------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"), [("released", "float32"), ("scrambled", "bfloat16"), ("sentencepiece", "float32")]
)
def test_ours_through_huggingface_is_the_same_model(tmp_path, kind, dtype):
    original = model(2, dtype, kind)
    original.save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "huggingface", "huggingface")
    convert(tmp_path / "huggingface", tmp_path / "back", "chameleon")
    names = set(files(tmp_path / "huggingface"))
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "image_decoder/model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
        "chameleon_jax.json", "checklist.chk", "README.md",
    }  # fmt: skip
    back = chameleon_jax.load(tmp_path / "back")
    assert_same_model(back, original)
    unknown = kind == "sentencepiece"  # its <unk>, which no text gives, is now the placeholder of image codes
    text_ids = sorted(original.vocabulary.text_ids[unknown:].tolist()) if unknown else None
    expected = original.vocabulary.to_dict() | ({"text_ids": text_ids} if unknown else {})
    assert back.vocabulary.to_dict() == expected


@pytest.mark.parametrize(("shards", "dtype"), [(1, "bfloat16"), (2, "float32"), (4, "bfloat16")])
def test_ours_through_meta_huggingface_and_meta_is_the_same_model(tmp_path, shards, dtype):
    original = model(shards, dtype)
    original.save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "meta", "meta")
    numbers = ["consolidated.pth"] if shards == 1 else [f"consolidated.{shard:02d}.pth" for shard in range(shards)]
    assert set(files(tmp_path / "meta")) == {
        *numbers, "params.json", "consolidate_params.json", "chameleon_jax.json", "tokenizer/text_tokenizer.json",
        "tokenizer/vqgan.yaml", "tokenizer/vqgan.ckpt", "checklist.chk", "README.md",
    }  # fmt: skip
    convert(tmp_path / "meta", tmp_path / "huggingface", "huggingface")
    convert(tmp_path / "huggingface", tmp_path / "meta again", "meta")
    assert_same_files(tmp_path / "meta again", tmp_path / "meta")
    convert(tmp_path / "meta again", tmp_path / "back", "chameleon")
    back = chameleon_jax.load(tmp_path / "back")
    assert_same_model(back, original)
    assert back.vocabulary.to_dict() == original.vocabulary.to_dict()


@pytest.mark.parametrize(("rows", "shards"), [(1, 4), (2, 4)])
def test_rows_of_qk_norm_are_repeated_for_more_shards_and_found_again(tmp_path, rows, shards):
    config = dataclasses.replace(CONFIG, qk_norm_groups=rows)
    original = Chameleon(config, transformer_params(config), None)
    original.save(tmp_path / "meta", "meta", shards=shards)
    found = chameleon_jax.load(tmp_path / "meta")
    assert found.config == dataclasses.replace(original.config, qk_norm_groups=shards)
    expected = leaves_of(original.params)
    repeated = {
        name: np.repeat(leaf, shards // rows, axis=1) if "q_norm" in name or "k_norm" in name else leaf
        for name, leaf in expected.items()
    }
    found_leaves = leaves_of(found.params)
    for name, leaf in repeated.items():
        np.testing.assert_array_equal(np.asarray(found_leaves[name]), np.asarray(leaf), err_msg=name)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, 20))
    np.testing.assert_allclose(found.logits(ids), original.logits(ids), rtol=0, atol=1e-5)


def test_files_are_the_same_from_memory_and_from_any_format(tmp_path):
    original = model(2, "bfloat16")
    for format in ("chameleon", "huggingface", "meta"):
        original.save(tmp_path / format, format)
    for source, target in itertools.product(("chameleon", "huggingface", "meta"), ("huggingface", "meta")):
        folder = convert(tmp_path / source, tmp_path / f"{source} to {target}", target)
        assert_same_files(folder, tmp_path / target)


def test_a_row_for_every_head_survives_huggingface(tmp_path):
    original = model(8)
    original.save(tmp_path / "model", "huggingface")
    assert_same_model(chameleon_jax.load(tmp_path / "model"), original)


def test_model_without_tokenizer_goes_through_every_format(tmp_path):
    bare = dataclasses.replace(CONFIG, qk_norm_groups=2)
    original = Chameleon(bare, transformer_params(bare), None)
    original.save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "meta", "meta")
    convert(tmp_path / "meta", tmp_path / "huggingface", "huggingface")
    convert(tmp_path / "huggingface", tmp_path / "back", "chameleon")
    back = chameleon_jax.load(tmp_path / "back")
    assert back.config == original.config
    assert back.missing.keys() >= {"text", "image", "vocabulary"}
    assert_same_arrays(back.params, original.params)


# ----------------------------------------------------------------------------------------------------------------------
# Types
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "held", "written"),
    [
        ("chameleon", "float32", "bfloat16"),
        ("huggingface", "float32", "bfloat16"),
        ("huggingface", "bfloat16", "float32"),
        ("meta", "float32", "bfloat16"),
        ("meta", "bfloat16", "float32"),
    ],
)
def test_type_changes_as_in_numpy(tmp_path, format, held, written):
    whole = model(2, held)
    original = Chameleon(whole.config, whole.params, None)
    original.save(tmp_path / "original")
    original.save(tmp_path / "from memory", format, dtype=written)
    convert(tmp_path / "original", tmp_path / "from files", format, written)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(written), original.params)
    for name in ("from memory", "from files"):
        found = chameleon_jax.load(tmp_path / name)
        assert found.config == original.config
        assert found.execution == ExecutionConfig(param_dtype=written, compute_dtype=written)
        assert_same_arrays(found.params, expected)


@pytest.mark.parametrize("format", ["chameleon", "huggingface", "meta"])
def test_image_tokenizer_stays_float32_when_the_transformer_is_written_in_bfloat16(tmp_path, format):
    original = model(2)
    original.save(tmp_path / "model", format, dtype="bfloat16")
    found = chameleon_jax.load(tmp_path / "model")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    assert_same_tokenizer(found, original)
    if format == "meta":
        for name in ("consolidated.00.pth", "consolidated.01.pth"):
            assert {str(tensor.dtype) for tensor in read_torch_file(tmp_path / "model" / name).values()} == {"bfloat16"}
        image = read_torch_file(tmp_path / "model/tokenizer/vqgan.ckpt")["state_dict"]
    elif format == "huggingface":
        tensors = read_safetensors(tmp_path / "model/model.safetensors")
        image = {key: tensor for key, tensor in tensors.items() if key.startswith("model.vqmodel.")}
        assert {str(tensors[key].dtype) for key in tensors.keys() - image} == {"bfloat16"}
        image |= read_safetensors(tmp_path / "model/image_decoder/model.safetensors")
    if format != "chameleon":
        assert {str(tensor.dtype) for tensor in image.values()} == {"float32"}
        assert len(image) == len(image_tokenizer_entries(IMAGE_CONFIG))


# ----------------------------------------------------------------------------------------------------------------------
# Every config
# ----------------------------------------------------------------------------------------------------------------------


@st.composite
def configs_and_shards(draw, heads_fill_the_width: bool = False) -> tuple[TransformerConfig, int]:
    """Small models, and a number of shards that divides them and can hold their rows of QK-norm."""
    shards = draw(st.sampled_from([1, 2, 4]))
    kv_heads = shards * draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 3))
    groups = draw(st.sampled_from([n for n in (1, 2, 4) if shards % n == 0]))
    width = heads * head_dim if heads_fill_the_width else shards * draw(st.integers(1, 5))
    config = TransformerConfig(
        vocab_size=shards * draw(st.integers(1, 6)),
        d_model=width,
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=shards * draw(st.integers(1, 6)),
        qk_norm=heads_fill_the_width or draw(st.booleans()),
        qk_norm_groups=groups,
        norm_order=draw(st.sampled_from(["pre", "swin"])),
        context_length=draw(st.sampled_from([256, 4096])),
    )
    return config, shards


def numbered(entry: Entry) -> np.ndarray:
    return np.arange(np.prod(entry.piece)).reshape(entry.piece)


def entries_of(config: TransformerConfig, shards: int) -> dict[tuple[str, int], list[Entry]]:
    """Every layout that can hold a model."""
    found = {("meta", shards): transformer_entries(config, "meta", shards)}
    layouts = ["H1", "H2"] + ["H0"] * (config.qk_norm_groups == 1)
    return found | {(layout, 1): transformer_entries(config, layout) for layout in layouts}


@settings(max_examples=20)
@given(configs_and_shards())
def test_folding_and_unfolding_undo_each_other_in_every_layout(example):
    for entries in entries_of(*example).values():
        for entry in entries:
            piece = numbered(entry)
            stored = entry.fold(piece)
            assert stored.shape == entry.stored
            np.testing.assert_array_equal(entry.unfold(entry.spread(stored)), piece)
            np.testing.assert_array_equal(entry.fold(entry.unfold(entry.spread(stored))), stored)
            # Nothing is lost or invented.
            assert sorted(stored.reshape(-1).tolist()) == sorted(piece.reshape(-1).tolist() * entry.repeat)


@settings(max_examples=20)
@given(configs_and_shards())
def test_entries_of_every_layout_tile_every_leaf_exactly_once(example):
    config, shards = example
    for (layout, count), entries in entries_of(config, shards).items():
        held = {name: np.zeros(shape, int) for name, shape in parameter_shapes(config).items()}
        for entry in entries:
            place = tuple(slice(low, low + size) for low, size in zip(entry.start, entry.piece, strict=True))
            leaf = held[entry.leaf] if entry.layer is None else held[entry.leaf][entry.layer]
            assert (entry.layer is None) == (not entry.leaf.startswith("layers/"))
            assert leaf[place].shape == entry.piece, "it reaches over the end of its leaf"
            leaf[place] += 1
        for name, times in held.items():
            copies = 1
            if layout == "meta":
                if "attention/" in name and "_norm/" in name:
                    copies = count // times.shape[1]  # a row that several shards share
                elif "norm" in name:
                    copies = count  # every shard has the RMSNorms
            assert (times == copies).all(), (layout, name)
        assert len({(entry.shard, entry.key) for entry in entries}) == len(entries)
        assert {entry.shard for entry in entries} == set(range(count))


def checkpoint_of(config: TransformerConfig, params: dict[str, np.ndarray], folder: Path) -> Checkpoint:
    """Random parameters as if a file held them, so that nothing has to be compiled."""
    tensors = {}
    for entry in transformer_entries(config, "H2"):
        leaf = params[entry.leaf] if entry.layer is None else params[entry.leaf][entry.layer]
        tensors[entry] = ComputedTensor(folder, entry.key, entry.fold(leaf))
    return Checkpoint(folder, "huggingface", "in memory", config, FileWeights(tensors), None, None, None, None)


def in_memory(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    params = checkpoint.load_params(None, None, lambda size: None)
    return {name: np.asarray(leaf) for name, leaf in leaves_of(params).items()}


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    configs_and_shards(heads_fill_the_width=True),
    st.lists(st.sampled_from(["meta", "huggingface"]), min_size=1, max_size=3),
)
def test_models_of_every_shape_survive_any_chain_of_conversions(example, chain):
    config, shards = example
    assume(config.num_kv_heads >= config.qk_norm_groups)
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    with tempfile.TemporaryDirectory() as place:
        checkpoint = checkpoint_of(config, params, Path(place))
        for number, format in enumerate(chain):
            folder = Path(place) / str(number)
            write_checkpoint(checkpoint, folder, format, shards=shards if format == "meta" else None)
            checkpoint = open_checkpoint(folder)
            assert checkpoint.warnings == []
        found = in_memory(checkpoint)
        same = dataclasses.replace(checkpoint.config, qk_norm_groups=config.qk_norm_groups, init_std=config.init_std)
        assert same == config
    for name, leaf in params.items():
        if "attention/" in name and "_norm/" in name:
            leaf = np.repeat(leaf, found[name].shape[1] // leaf.shape[1], axis=1)
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


# ----------------------------------------------------------------------------------------------------------------------
# The original libraries read it
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["released", "sentencepiece"])
def exported(request, tmp_path_factory) -> tuple[Chameleon, Path]:
    """A model and the folder that we wrote for transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    original, folder = model(2, kind=request.param), tmp_path_factory.mktemp("exported") / "model"
    original.save(folder, "huggingface")
    return original, folder


@pytest.fixture(scope="module")
def in_transformers(exported):
    """The exported model as transformers loads it, and what it says about the files."""
    import torch
    from transformers import ChameleonForConditionalGeneration

    loaded, report = ChameleonForConditionalGeneration.from_pretrained(
        exported[1], output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval(), report


@pytest.fixture(scope="module")
def processor(exported):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(exported[1])


PROMPT, PICTURE = ["Which digit is ", " in the picture?"], random_picture(5, (30, 20))


@pytest.mark.torch
def test_transformers_finds_every_tensor_and_no_other(in_transformers):
    _, report = in_transformers
    assert {name: list(keys) for name, keys in report.items() if keys} == {}


@pytest.mark.torch
def test_transformers_computes_our_logits(exported, in_transformers):
    import torch

    original, _ = exported
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 24))
    with torch.no_grad():
        theirs = in_transformers[0](input_ids=torch.from_numpy(ids)).logits.numpy()
    comparable = np.setdiff1d(np.arange(CONFIG.vocab_size), original.vocabulary.image_ids)  # it masks the others
    assert np.std(theirs[..., comparable]) > 0.5
    np.testing.assert_allclose(
        np.asarray(original.logits(ids))[..., comparable], theirs[..., comparable], rtol=0, atol=1e-4
    )


@pytest.mark.torch
def test_tokenizer_and_processor_of_transformers_give_our_ids(exported, in_transformers, processor):
    import torch
    from transformers import AutoTokenizer

    original, folder = exported
    vocabulary = original.vocabulary
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("The quick brown fox, 1984.\n", " naïve  5 € "):
        assert tokenizer(text).input_ids == original.tokenizer.encode_prompt([text]).tolist()
        assert tokenizer.decode(original.encode([text])) == text

    inputs = processor(text="<image>".join(PROMPT), images=PICTURE, return_tensors="pt")
    ids = inputs["input_ids"][0].numpy()
    placeholder = vocabulary.names(original.tokenizer.text)["<image>"]
    assert np.sum(ids == placeholder) == IMAGE_CONFIG.codes_per_image
    with torch.no_grad():
        codes = in_transformers[0].model.get_image_tokens(inputs["pixel_values"]).numpy().reshape(-1)
    ids[ids == placeholder] = codes
    document = [PROMPT[0], PICTURE, PROMPT[1]]
    np.testing.assert_array_equal(ids, original.tokenizer.encode_prompt(document, "chat"))
    assert len(np.unique(codes)) >= 4


@pytest.mark.torch
def test_transformers_answers_a_question_about_a_picture_as_we_do(exported, in_transformers, processor):
    """Greedy; transformers may write what our text mode may: text and the end of sequence."""
    original, _ = exported
    vocabulary = original.vocabulary
    written = {*vocabulary.text_ids.tolist(), vocabulary.eos}
    inputs = processor(text="<image>".join(PROMPT), images=PICTURE, return_tensors="pt")
    output = in_transformers[0].generate(
        **inputs, do_sample=False, max_new_tokens=24,
        suppress_tokens=[token for token in range(CONFIG.vocab_size) if token not in written],
    )  # fmt: skip
    theirs = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(theirs) == 24 or theirs[-1] == vocabulary.eos
    assert len(set(theirs)) > 3
    greedy = GenerationConfig(mode="text", form="chat", max_new_tokens=24, text=SamplingConfig(temperature=0.0))
    assert original.generate([PROMPT[0], PICTURE, PROMPT[1]], greedy) == original.decode(theirs)


@pytest.mark.torch
@pytest.mark.parametrize("shards", [1, 4])
def test_torch_loads_our_shards_and_they_have_metas_keys(tmp_path, shards):
    torch = pytest.importorskip("torch")
    original = model(1, "bfloat16")
    original.save(tmp_path / "model", "meta", shards=shards)
    layer = [
        *(f"attention.w{key}.weight" for key in "qkvo"),
        *(f"attention.{key}_normalization.{kind}" for key in "qk" for kind in ("weight", "bias")),
        *(f"feed_forward.w{number}.weight" for number in (1, 2, 3)),
        "attention_norm.weight", "ffn_norm.weight",
    ]  # fmt: skip
    keys = {"tok_embeddings.weight", "norm.weight", "output.weight", "rope.freqs"}
    keys |= {f"layers.{number}.{name}" for number in range(CONFIG.num_layers) for name in layer}
    embed = []
    for shard in range(shards):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{shard:02d}.pth"
        loaded = torch.load(tmp_path / "model" / name, weights_only=True)
        assert set(loaded) == keys
        assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
        assert loaded["rope.freqs"].shape == (CONFIG.head_dim // 2,)
        assert loaded["layers.0.attention.wk.weight"].shape == (4 * 4 // shards, 32)
        assert loaded["layers.0.feed_forward.w2.weight"].shape == (32, 48 // shards)
        embed.append(loaded["tok_embeddings.weight"])
    joined = torch.cat(embed, 1).float().numpy()
    np.testing.assert_array_equal(joined, np.asarray(original.params["embed"], np.float32))

    image = torch.load(tmp_path / "model/tokenizer/vqgan.ckpt", weights_only=True)
    assert set(image) == {"state_dict"}
    codebook = image["state_dict"]["quantize.embedding.weight"]
    np.testing.assert_array_equal(codebook.numpy(), np.asarray(original.image_tokenizer.params["codebook"]))
