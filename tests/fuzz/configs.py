"""Mutated configs of every format, in the folders of models and as recipes of training, and mutated tokenizers.

Case n mutates file n modulo their number; the rest of its folder is sound. Configs are opened as `chameleon inspect`
and `chameleon train` open them, tokenizers also encode and decode.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import harness
import hostile
import numpy as np
import yaml

from chameleon_jax.config import TrainConfig, find_configs, read_config
from chameleon_jax.tokens.documents import load_text_tokenizer
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny_models import released_model, text_tokenizer

FILES = (
    "huggingface/config.json", "meta/params.json", "meta/tokenizer/vqgan.yaml", "chameleon/config.json",
    "chameleon/tokenizer/vocabulary.json", "chameleon/tokenizer/image/config.json", "train.yaml",
    "huggingface/tokenizer.json", "text.json", "text.model",
)  # fmt: skip
TEXTS = ("a" * 2000, "They'll say  it's 12345\t\n", "数字 𝄞 \u0301", " " * 999 + "x", "<s>IMGIMGAZ</s>")


@functools.cache
def sound() -> Path:
    """A folder with a model in each format, a recipe, and tokenizers by themselves."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-configs-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    released_model().save(root / "huggingface", "huggingface")
    opened = open_checkpoint(root / "huggingface")
    write_checkpoint(opened, root / "meta", "meta")
    write_checkpoint(opened, root / "chameleon", "chameleon")
    shutil.copy(root / "huggingface" / "tokenizer.json", root / "text.json")
    shutil.copy(find_configs() / "pretrain_7b.yaml", root / "train.yaml")
    (root / "text.model").write_bytes(text_tokenizer().model)
    return root


def write_case(seed: int, folder: Path) -> Path:
    """Returns the model's folder, or the file that lies by itself."""
    rng = random.Random(seed)
    name = FILES[seed % len(FILES)]
    top, *inside = Path(name).parts
    source = sound() / top
    path = hostile.copied(source, folder) if inside else Path(shutil.copy(source, folder / top))
    _mutate(path.joinpath(*inside), rng)
    return path


def _mutate(file: Path, rng: random.Random) -> None:
    if rng.random() < 0.04:
        hostile.no_file(file, rng)
        return
    content = file.read_bytes()
    if file.suffix == ".model":
        file.write_bytes(_mutated_model(content, rng))
    elif file.suffix == ".yaml":
        file.write_bytes(_mutated_yaml(content.decode(), rng))
    elif "tok" in file.name or file.name == "text.json":
        file.write_bytes(_mutated_tokenizer(json.loads(content), rng))
    else:
        value = json.loads(content)
        if rng.random() < 0.9:  # else every change would be found by it
            value.pop("sha256", None)
        file.write_bytes(hostile.mutated_json(value, rng))


def _mutated_yaml(text: str, rng: random.Random) -> bytes:
    value = yaml.safe_load(text)
    match rng.randrange(4):
        case 0:
            return hostile.mutated_bytes(text.encode(), rng)
        case 1:
            lines = text.splitlines()
            place = rng.randrange(len(lines))
            lines[place] = lines[place].split(":")[0] + ": " + rng.choice(hostile.TEXTS)
            return "\n".join(lines).encode()
        case 2:  # aliases and merge keys that double and double
            text = "x0: &x0 {a: b}\n"
            merge = rng.random() < 0.5
            for step in range(1, rng.choice((5, 30, 200))):
                twice = f"[*x{step - 1}, *x{step - 1}]"
                text += f"x{step}: &x{step} " + (f"{{<<: {twice}, k{step}: 1}}\n" if merge else f"{twice}\n")
            return text.encode()
        case _:
            return yaml.safe_dump(hostile.mutated_value(value, rng)).encode()


STEPS = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"},
    {"type": "Replace", "pattern": None, "content": "x"},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "a+b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "a*"}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False},
    {"type": "Metaspace", "replacement": ["a"]}, {"type": "Metaspace", "replacement": "", "prepend_scheme": "always"},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}, {"type": "Digits"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {"type": "ByteFallback"},
    {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}, {"type": "Fuse"}, {"type": "NFKD"},
    {"type": "Prepend", "prepend": "x" * 10**5}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": []}, {"type": "FixedLength", "length": 0},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}, {"type": "CTC"},
    {"type": "BPEDecoder"},
)  # fmt: skip


def _mutated_tokenizer(content: dict, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return hostile.mutated_json(content, rng)
    for _ in range(rng.randint(1, 3)):
        field = rng.choice(("normalizer", "pre_tokenizer", "decoder", "post_processor"))
        steps = [rng.choice(STEPS) for _ in range(rng.choice((1, 2, 3, 30)))]
        if rng.random() < 0.3:
            steps = [hostile.mutated_value(step, rng) for step in steps]
        inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(field, "decoders")
        kept = [content[field]] if isinstance(content.get(field), dict) else []
        content[field] = rng.choice((steps[0], {"type": "Sequence", inner: steps + kept}))
    model = content["model"]
    match rng.randrange(8):
        case 0:
            model[rng.choice(list(model))] = rng.choice(hostile.VALUES)
        case 1:
            model["merges"] = [rng.choice(("a", "a b", "\x20", ["a"], ["a", "b", "c"], 3))] * rng.choice((1, 1000))
        case 2:
            model["vocab"]["x" * rng.choice((1, 1000, 10**6))] = rng.choice(hostile.NUMBERS)
        case 3:
            content["added_tokens"] = [rng.choice(content["added_tokens"])] * rng.choice((2, 10**4))
        case 4:
            token = rng.choice(content["added_tokens"])
            token[rng.choice(list(token))] = rng.choice(hostile.VALUES)
    return json.dumps(content).encode()


def _mutated_model(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return hostile.mutated_bytes(content, rng)
    size = rng.choice((b"\x7f", b"\xff\x7f", b"\xff\xff\xff\xff\x0f"))
    field = bytes([rng.choice((0x0A, 0x12, 0x1A, 0x22, 0x2A))])
    return content + field + size + b"\x12\x7b" + bytes(rng.randrange(256) for _ in range(rng.choice((127, 16383))))


def read_case(path: Path) -> None:
    if path.is_dir() and path.suffix == "":
        checkpoint = open_checkpoint(path)
        text = checkpoint.text
        if checkpoint.image_config is not None and not checkpoint.missing:
            checkpoint.load_tokenizer()
    elif path.suffix == ".yaml":
        read_config(TrainConfig, path)
        return
    else:
        text = load_text_tokenizer(path)
    if text is not None:
        for sample in TEXTS:
            with contextlib.suppress(ValueError):  # what a tokenizer cannot represent; callers say where
                text.decode(text.encode(sample))
        text.decode(np.arange(text.num_pieces))


if __name__ == "__main__":
    harness.main(__file__)
