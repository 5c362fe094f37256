"""`chameleon convert`, `inspect` and `generate` with models of every format, as a person calls them.

What is converted has to be what is saved in that format straight away, to the byte.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_models import released_model

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import GenerationConfig, SamplingConfig
from chameleon_jax.console.cli import main
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.weights.checkpoint import ConversionError
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer, write_image_tokenizer
from chameleon_jax.weights.safetensors import read_safetensors
from chameleon_jax.weights.sources import FileWeights
from chameleon_jax.weights.stored import StoredTensor
from chameleon_jax.weights.torch_files import read_torch_file

FORMATS = ("chameleon", "huggingface", "meta")


@pytest.fixture(scope="module")
def model() -> Chameleon:
    return released_model(image_head_trained=True)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """The model in a folder for each format."""
    root = tmp_path_factory.mktemp("saved")
    for format in FORMATS:
        model.save(root / format, format)
    return root


@pytest.fixture(scope="module")
def no_decoder(saved, tmp_path_factory) -> Path:
    """A folder as Hugging Face's releases are."""
    folder = shutil.copytree(saved / "huggingface", tmp_path_factory.mktemp("released") / "huggingface")
    shutil.rmtree(folder / "image_decoder")
    for ours in ("checklist.chk", "README.md"):
        (folder / ours).unlink()
    return folder


def contents(folder: Path) -> dict[str, object]:
    """What is in each file: bytes, or values in any order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in files
    }


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def said_one_line(capsys) -> str:
    """The one line of an error."""
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("chameleon convert: ")
    assert "Traceback" not in said.err
    return said.err.removeprefix("chameleon convert: ").rstrip("\n")


# ----------------------------------------------------------------------------------------------------------------------
# What is written
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_converted_folder_is_the_saved_one(model, saved, tmp_path, source, target, capsys):
    out = tmp_path / "out"
    assert convert(saved / source, out, "--format", target) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    assert "gigabytes" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if target != "chameleon":
        found, expected = contents(out), contents(saved / target)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        return
    found = load(out)  # Orbax draws the names of its files
    assert found.config == model.config
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    jax.tree.map(np.testing.assert_array_equal, found.image_tokenizer.params, model.image_tokenizer.params)
    assert found.vocabulary.to_dict() == model.vocabulary.to_dict()
    assert found.tokenizer.text.piece_names == model.tokenizer.text.piece_names
    assert found.image_head_trained is True


@pytest.mark.parametrize("format", FORMATS)
def test_image_tokenizer_of_a_model_can_be_read_alone(model, saved, format):
    found = read_image_tokenizer(saved / format)
    assert (found.config, found.preprocessing) == (model.tokenizer.image.config, model.tokenizer.image.preprocessing)
    jax.tree.map(np.testing.assert_array_equal, found.params, model.tokenizer.image.params)


def stored(path: Path) -> dict[str, np.ndarray]:
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    return {key: np.array(tensor.view()) for key, tensor in tensors.items()}


def test_dtype_is_that_of_the_transformer_alone(saved, tmp_path):
    assert convert(saved / "meta", tmp_path / "out", "--format", "huggingface", "--dtype", "bfloat16") == 0
    found = stored(tmp_path / "out" / "model.safetensors")
    for key, expected in stored(saved / "huggingface" / "model.safetensors").items():
        wanted = expected if "vqmodel" in key else expected.astype(ml_dtypes.bfloat16)
        assert found[key].dtype == wanted.dtype
        np.testing.assert_array_equal(found[key], wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # and what is already bfloat16 stays so, or becomes float32 again
    for number, (format, dtype, expected) in enumerate(
        [("meta", None, "bfloat16"), ("meta", "float32", "float32"), ("chameleon", None, "bfloat16")]
    ):
        chosen = [] if dtype is None else ["--dtype", dtype]
        assert convert(tmp_path / "out", tmp_path / f"{number}", "--format", format, *chosen) == 0
        opened = open_checkpoint(tmp_path / f"{number}")
        assert (str(opened.weights.dtype), opened.dtype) == (expected, expected)
        assert str(opened.image_weights.dtype) == "float32"


def test_more_shards_hold_the_same_model(saved, tmp_path):
    assert convert(saved / "huggingface", tmp_path / "four", "--format", "meta", "--shards", "4") == 0
    names = [f"consolidated.0{number}.pth" for number in range(4)]
    assert sorted(path.name for path in (tmp_path / "four").glob("*.pth")) == names
    opened = open_checkpoint(tmp_path / "four")
    assert (opened.layout, opened.warnings) == ("Meta's, 4 shards", [])
    assert convert(tmp_path / "four", tmp_path / "back", "--format", "huggingface") == 0
    back, expected = (folder / "model.safetensors" for folder in (tmp_path / "back", saved / "huggingface"))
    assert back.read_bytes() == expected.read_bytes()
    assert convert(saved / "chameleon", tmp_path / "two", "--format", "meta", "--shards", "2") == 0
    assert contents(tmp_path / "two") == contents(saved / "meta")


def test_decoder_comes_from_another_folder(saved, no_decoder, tmp_path, capsys):
    assert convert(no_decoder, tmp_path / "meta", "--format", "meta") == 1
    said = said_one_line(capsys)
    assert said.startswith(f"{no_decoder}: ")
    assert "lack the image decoder" in said
    assert "--image-tokenizer" in said
    assert list(tmp_path.iterdir()) == []
    for format, tokenizer in (("meta", saved / "meta" / "tokenizer"), ("huggingface", saved / "chameleon")):
        out = tmp_path / format
        assert convert(no_decoder, out, "--format", format, "--image-tokenizer", tokenizer) == 0
        assert contents(out) == contents(saved / format)


@pytest.mark.parametrize("format", FORMATS)
def test_image_tokenizer_alone_of_any_format_replaces_that_of_a_model(model, saved, no_decoder, tmp_path, format):
    own = model.tokenizer.image
    tuned = ImageTokenizer(own.config, {**own.params, "decoder": jax.tree.map(lambda x: 2 * x, own.params["decoder"])})
    write_image_tokenizer(tuned, tmp_path / "tuned", format)
    checkpoint = open_checkpoint(no_decoder, image_tokenizer=tmp_path / "tuned")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_tokenizer().image.params, tuned.params)


def test_model_without_a_decoder_can_be_converted_otherwise(no_decoder, tmp_path):
    assert convert(no_decoder, tmp_path / "out", "--format", "huggingface") == 0
    assert convert(no_decoder, tmp_path / "ours", "--format", "chameleon") == 0
    assert convert(tmp_path / "ours", tmp_path / "back", "--format", "huggingface") == 0
    for folder in (tmp_path / "out", tmp_path / "back"):
        for ours in ("checklist.chk", "README.md"):
            (folder / ours).unlink()
        assert contents(folder) == contents(no_decoder)


@pytest.mark.torch
def test_fused_tensors_are_cut_whatever_their_order_in_memory(saved, tmp_path):
    """Meta's running model keeps q, k and v in one tensor; torch may have saved it transposed."""
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(saved / "meta", tmp_path / "fused")
    for path in folder.glob("consolidated.*.pth"):
        tensors = {key: torch.from_numpy(value) for key, value in stored(path).items()}
        fused = {}
        for layer in range(2):
            for name, parts in (("attention.wqkv", ("wq", "wk", "wv")), ("feed_forward.w13", ("w1", "w3"))):
                prefix = f"layers.{layer}.{name.split('.')[0]}"
                whole = torch.cat([tensors.pop(f"{prefix}.{part}.weight") for part in parts])
                fused[f"layers.{layer}.{name}.weight"] = whole if layer == 0 else whole.t().contiguous().t()
        torch.save({**fused, **tensors}, path)
    assert convert(folder, tmp_path / "out", "--format", "huggingface") == 0
    expected = stored(saved / "huggingface" / "model.safetensors")
    for key, value in stored(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, and what an interruption leaves
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["model", "file", "notes", "empty"])
def test_what_is_at_the_destination_is_never_touched(saved, tmp_path, there, capsys):
    out = tmp_path / "out"
    if there == "model":
        shutil.copytree(saved / "meta", out)
    elif there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if there == "notes":
            (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert convert(saved / "huggingface", out, "--format", "meta") == 1
    assert said_one_line(capsys) == f"{out}: is there already; choose another folder or remove it first"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("format", "shards", "message"),
    [
        ("meta", 1, "have 2 different rows of QK-norm, and Meta's format has one per shard; 1 shards cannot hold them"),
        ("meta", 3, "num_heads = 8 cannot be divided into 3 shards"),
        ("meta", 8, "num_kv_heads = 4 cannot be divided into 8 shards"),
        ("huggingface", 2, "shards = 2: only format 'meta' has shards"),
        ("chameleon", 1, "shards = 1: only format 'meta' has shards"),
    ],
)
def test_impossible_shards_are_explained(saved, tmp_path, format, shards, message, capsys):
    assert convert(saved / "huggingface", tmp_path / "out", "--format", format, "--shards", shards) == 1
    assert message in said_one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "part", "changes", "message"),
    [
        (
            "huggingface",
            "config",
            {"head_dim": 6},
            r"head_dim = 6 cannot be written .*its head size is d_model / num_heads",
        ),
        ("huggingface", "config", {"qk_norm": False}, "qk_norm = False cannot be written .*always normalise"),
        ("huggingface", "image_config", {"space_to_depth": 2}, r"space_to_depth = 2 \(must be 1\)"),
        ("huggingface", "image_config", {"norm_groups": 16}, r"norm_groups = 16 \(must be 32\)"),
        ("meta", "config", {"head_dim": 6}, r"head_dim = d_model / num_heads, but it is 6"),
        ("meta", "image_config", {"space_to_depth": 2}, r"space_to_depth = 2 \(must be 1\)"),
        ("meta", "image_config", {"norm_groups": 16}, r"norm_groups = 16 \(must be 32\)"),
    ],
)
def test_model_that_a_format_cannot_hold_is_refused(saved, tmp_path, format, part, changes, message):
    opened = open_checkpoint(saved / "huggingface")
    changed = dataclasses.replace(opened, **{part: dataclasses.replace(getattr(opened, part), **changes)})
    with pytest.raises(ConversionError, match=message) as caught:
        write_checkpoint(changed, tmp_path / "out", format)
    assert str(caught.value).startswith(f"{saved / 'huggingface'}: ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_model_is_named_and_nothing_is_written(saved, tmp_path, capsys):
    source = shutil.copytree(saved / "huggingface", tmp_path / "source")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert convert(source, tmp_path / "out", "--format", "meta") == 1
    assert said_one_line(capsys).startswith(f"{path}: not a whole safetensors file")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def failing_after(calls: int, error: BaseException, source: Path, monkeypatch) -> None:
    """Makes converting `source` fail after some tensors have been read, not counting those that opening it reads."""
    view, reads = StoredTensor.view, []
    limit = None

    def counted(tensor):
        if limit is not None and len(reads) >= limit:
            raise error
        reads.append(tensor)
        return view(tensor)

    monkeypatch.setattr(StoredTensor, "view", counted)
    open_checkpoint(source)
    limit = len(reads) + calls
    reads.clear()


@pytest.mark.parametrize("calls", [0, 9])
@pytest.mark.parametrize("target", FORMATS)
def test_interrupted_conversion_leaves_nothing(saved, tmp_path, target, calls, monkeypatch, capsys):
    failing_after(calls, KeyboardInterrupt(), saved / "meta", monkeypatch)
    assert convert(saved / "meta", tmp_path / "out", "--format", target) == 130
    assert capsys.readouterr().err.strip() == "chameleon convert: stopped"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", [0, 9])
@pytest.mark.parametrize("target", FORMATS)
def test_full_disk_is_explained_and_leaves_nothing(saved, tmp_path, target, calls, monkeypatch, capsys):
    failing_after(calls, OSError(errno.ENOSPC, "No space left on device"), saved / "meta", monkeypatch)
    assert convert(saved / "meta", tmp_path / "out", "--format", target) == 1
    said = said_one_line(capsys)
    assert said.startswith(f"{tmp_path / 'out'}: cannot be written: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_conversion_after_an_interrupted_one_works(saved, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        failing_after(30, KeyboardInterrupt(), saved / "meta", patch)
        assert convert(saved / "meta", tmp_path / "out", "--format", "huggingface") == 130
    assert convert(saved / "meta", tmp_path / "out", "--format", "huggingface") == 0
    assert contents(tmp_path / "out") == contents(saved / "huggingface")


def test_warnings_are_shown(saved, tmp_path, capsys):
    """Replicated norms that differ between the shards are odd, but can be read."""
    source = shutil.copytree(saved / "meta", tmp_path / "source")
    tensor = read_torch_file(source / "consolidated.01.pth")["norm.weight"]
    with open(source / "consolidated.01.pth", "r+b") as file:
        file.seek(tensor.offset)
        file.write(np.float32(3).tobytes())
    assert convert(source, tmp_path / "out", "--format", "huggingface") == 0
    said = capsys.readouterr().err
    assert said == "warning: norm.weight differs between the shards; their mean was taken\n"
    mean = (tensor.view()[0] + stored(source / "consolidated.00.pth")["norm.weight"][0]) / 2
    found = stored(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Inspect
# ----------------------------------------------------------------------------------------------------------------------

LAYOUTS = {"chameleon": "our own, version 1", "huggingface": "H1 (transformers since 4.43", "meta": "Meta's, 2 shards"}


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_says_what_a_folder_holds(saved, format, capsys):
    assert main(["inspect", str(saved / format)]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines if not line.startswith(" ")}
    assert said["folder"] == str(saved / format)
    assert said["format"] == format
    assert said["layout"].startswith(LAYOUTS[format])
    assert said["transformer"] == "2 layers, width 32, 8 heads (4 for keys and values) of size 4, feed-forward width 40"
    assert said["type"] == "float32"
    assert "(swin); QK-norm with 2 rows" in said["norms"]
    assert said["vocab_size"] == "460"
    for part in ("427 pieces of text", "16 image codes (4 to 19, in order)", "</s> 2", "end of turn 26"):
        assert part in said["vocabulary"]
    assert said["image_tokenizer"].startswith("8 x 8 pixels to 16 codes of 16, with decoder, float32")
    assert said["output_layer"] == "trained on pictures"
    assert said["missing"] == "nothing"


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_gives_json(model, saved, format, capsys):
    assert main(["inspect", str(saved / format), "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == format
    expected = {"num_layers": 2, "d_model": 32, "num_kv_heads": 4, "norm_order": "swin", "vocab_size": 460}
    assert {name: found["architecture"][name] for name in expected} == expected
    assert (found["missing"], found["warnings"]) == ({}, [])
    assert found["tensors_by_dtype"].keys() == {"float32"}
    assert found["output_layer_trained_on_pictures"] is True
    vocabulary = {"text_pieces": 427, "image_codes": 16, "first_image_id": 4, "image_ids_in_order": True, "eos": 2}
    assert {name: found["vocabulary"][name] for name in vocabulary} == vocabulary
    assert (found["image_tokenizer"]["resolution"], found["image_tokenizer"]["decoder"]) == (8, True)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (model.params, model.image_tokenizer.params)]
    assert [found["parameters"], found["image_tokenizer"]["parameters"]] == sizes


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_damaged_is_named(saved, format, tmp_path, capsys):
    folder = shutil.copytree(saved / format, tmp_path / format)
    assert main(["inspect", str(folder), "--verify", "true"]) == 0
    assert "DAMAGED" not in capsys.readouterr().out
    (text,) = [*folder.rglob("text.model"), *folder.rglob("text.json"), *folder.rglob("*tokenizer.json")]
    text.write_bytes(text.read_bytes().replace(b"a", b"b", 1))
    assert main(["inspect", str(folder), "--verify", "true", "--json", "true"]) == 1
    found = capsys.readouterr()
    damaged = [part["found"] for part in json.loads(found.out) if not part["sound"]]
    assert any(text.name in part for part in damaged)
    assert f"{len(damaged)} of" in found.err


def test_inspect_says_what_is_missing(saved, no_decoder, tmp_path, capsys):
    assert main(["inspect", str(no_decoder)]) == 0
    said = capsys.readouterr().out
    assert "without decoder" in said
    assert f"decoder: the weights in {no_decoder} lack the image decoder" in said
    shutil.copytree(saved / "meta", tmp_path / "meta")
    shutil.rmtree(tmp_path / "meta" / "tokenizer")
    assert main(["inspect", str(tmp_path / "meta"), "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["missing"]) == ["image", "text", "vocabulary"]
    assert all(name in str(found["missing"]) for name in ("vqgan.ckpt", "text_tokenizer.json", str(tmp_path / "meta")))
    assert [found[part] for part in ("vocabulary", "text_tokenizer", "image_tokenizer")] == [None] * 3


def test_inspect_reads_no_weights(saved, monkeypatch, capsys):
    def read(*arguments):
        raise AssertionError("weights were read")

    monkeypatch.setattr(FileWeights, "place", read)
    monkeypatch.setattr(FileWeights, "fetch", read)
    for format in ("huggingface", "meta"):
        assert main(["inspect", str(saved / format)]) == 0


# ----------------------------------------------------------------------------------------------------------------------
# Generate; and what works without the package that encodes text
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["huggingface", "meta"])
def test_generate_answers_with_models_of_other_formats(model, saved, tmp_path, format, capsys):
    greedy = SamplingConfig(temperature=0.0)
    config = GenerationConfig(
        mode="text", form="chat", max_new_tokens=6, text=greedy, image=greedy, text_guidance=1.0, image_guidance=1.0
    )
    expected = model.generate(["The dog"], config)
    options = ["--mode", "text", "--form", "chat", "--max-new-tokens", "6", "--output", str(tmp_path)]
    greedily = ["--text.temperature", "0", "--image.temperature", "0", "--text-guidance", "1", "--image-guidance", "1"]
    assert main(["generate", str(saved / format), "The dog", *options, *greedily]) == 0
    assert capsys.readouterr().out.strip() == "\n".join(expected).strip()


def test_generate_explains_that_a_model_cannot_draw(no_decoder, capsys):
    assert main(["generate", str(no_decoder), "The dog", "--mode", "image"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "image_tokenizer=folder" in said.err


@pytest.mark.parametrize("format", FORMATS)
def test_weights_need_no_text_package(saved, tmp_path, format, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(["inspect", str(saved / format)]) == 0
    target = "meta" if format == "huggingface" else "huggingface"
    assert convert(saved / format, tmp_path / "out", "--format", target) == 0
    assert contents(tmp_path / "out") == contents(saved / target)


def test_text_says_which_package_to_install(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    loaded = load(saved / "huggingface")
    ids = np.array([[loaded.vocabulary.bos, 5]])
    assert loaded.logits(ids).shape == (1, 2, 460)
    with pytest.raises(FileError, match=r"tokenizer\.json: .*pip install 'chameleon-jax\[released\]'"):
        loaded.encode(["The dog"])
    assert main(["generate", str(saved / "huggingface"), "The dog", "--mode", "text"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'chameleon-jax[released]'" in said
