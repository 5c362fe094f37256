"""Mutated weight files: safetensors, torch's archives and old files, indexes of files, and our own Orbax folders.

Case n is of format n modulo 5. Files are mutated as bytes and in their grammar: opcodes of pickles are put in, left out
and exchanged, members of archives compressed and renamed, fields of headers changed and lengths put right again.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import pickle
import pickletools
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import harness
import hostile
import numpy as np

from chameleon_jax.runtime.arrays import load_arrays, save_arrays
from chameleon_jax.weights.safetensors import read_index, read_safetensors, write_safetensors
from chameleon_jax.weights.stored import StoredTensor
from chameleon_jax.weights.torch_files import read_torch_file
from chameleon_jax.weights.torch_writing import write_torch_file

FORMATS = ("safetensors", "torch", "old torch", "index", "orbax")


@functools.cache
def sound() -> Path:
    """A folder with a sound file of each format."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-weights-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    tensors = arrays()
    specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    write_safetensors(root / "model.safetensors", specs, tensors.__getitem__)
    write_torch_file(root / "model.pth", specs, tensors.__getitem__)
    (root / "index").mkdir()
    placed = {}
    for number, part in enumerate((list(tensors)[:3], list(tensors)[3:])):
        file = f"model-{number}.safetensors"
        write_safetensors(root / "index" / file, {name: specs[name] for name in part}, tensors.__getitem__)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (root / "index" / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "orbax").mkdir()
    save_arrays(root / "orbax" / "params", tree())
    return root


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (16, 8),
        "layers.0.q": (8, 2, 4),
        "layers.0.k": (8, 2, 4),
        "norm": (8,),
        "scalar": (),
        "none": (0,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tree() -> dict[str, Any]:
    values = arrays()
    return {"embed": values["embed"], "layers": {"q": values["layers.0.q"], "k": values["layers.0.k"]}}


def write_case(seed: int, folder: Path) -> Path:
    rng = random.Random(seed)
    kind = FORMATS[seed % len(FORMATS)]
    writers = {"safetensors": _safetensors, "torch": _torch, "old torch": _old_torch, "index": _index, "orbax": _orbax}
    return writers[kind](rng, folder)


def read_case(path: Path) -> None:
    if path.name == "orbax":
        import jax

        load_arrays(path / "params", jax.eval_shape(tree))
    elif path.suffix == ".safetensors":
        _touch(read_safetensors(path))
    elif path.suffix == ".pth":
        _touch(read_torch_file(path))
    else:
        _touch(read_index(path / "model.safetensors.index.json"))


def _touch(value: Any) -> None:
    """Reads every tensor, as loading does."""
    if isinstance(value, StoredTensor):
        np.array(value.view())
    elif isinstance(value, dict):
        for item in value.values():
            _touch(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _touch(item)


def _safetensors(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(_mutated_safetensors((sound() / path.name).read_bytes(), rng))
    if rng.random() < 0.05:
        hostile.no_file(path, rng)
    return path


def _mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    match rng.randrange(5):
        case 0:
            return hostile.mutated_bytes(content, rng)
        case 1:  # tensors moved, as whole numbers that fit together better than chance would have them
            for name in rng.sample(names, 2):
                moved = [number + rng.choice((0, 4, -4, 128)) for number in header[name]["data_offsets"]]
                header[name]["data_offsets"] = moved
            text = json.dumps(header).encode()
        case 2:  # an axis exchanged for others of the same product, and more
            entry = header[rng.choice(names)]
            entry["shape"] = rng.choice(
                ([1] * 10**5 + entry["shape"], entry["shape"][::-1], [2**32] * 9, [2**62, 4, 0], [-1, *entry["shape"]])
            )
            text = json.dumps(header).encode()
        case _:
            text = hostile.mutated_json(header, rng)
    size = rng.choice((len(text), len(text), len(text), rng.choice(hostile.NUMBERS[:15]) % 2**64))
    return struct.pack("<Q", size) + text + data


def _index(rng: random.Random, folder: Path) -> Path:
    path = hostile.copied(sound() / "index", folder)
    index = path / "model.safetensors.index.json"
    shard = path / f"model-{rng.randrange(2)}.safetensors"
    match rng.randrange(4):
        case 0:
            shard.write_bytes(_mutated_safetensors(shard.read_bytes(), rng))
        case 1:
            hostile.no_file(rng.choice((index, shard)), rng)
        case _:
            index.write_bytes(hostile.mutated_json(json.loads(index.read_text()), rng))
    return path


# Torch's pickles


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


_STORAGE = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x40tQ"
_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE + b"K\0K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
FRAGMENTS = (
    *(bytes([opcode]) for opcode in b"N\x88\x89)]}(t\x85\x86\x87aesubRQ02.\x94\x81\x92o\x93"),
    b"K\0", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"G\x7f\xf0\0\0\0\0\0\0",
    b"\x8a\x09" + b"\xff" * 8 + b"\0", b"\x8b\x00\x02\x00\x00" + b"\x7f" * 512, b"q\0", b"h\0", b"q\1", b"h\1",
    b"r\xff\xff\xff\x7f", b"j\0\0\0\0", b"\x80\x04", b"\x95" + b"\xff" * 8, b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\x7f",
    _text("storage"), _text("0"), _text("9"), _text("x" * 999), b"cposix\nsystem\n", b"cbuiltins\neval\n",
    b"(iposix\nsystem\n", b"ctorch\nSize\n", b"ctorch\nHalfStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40)),
    b")" + b"\x85" * 3000, b"(" + b"K\1" * 9000 + b"t", b"})" + b"\x85" * 3000 + b"Ns", b"](" + b"h\0" * 3000 + b"e",
    _STORAGE, _TENSOR, _TENSOR.replace(b"K\x04\x85K\x01\x85", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86K\0K\0\x86"),
)  # fmt: skip
"""Opcodes with their arguments, and some programs of them that ask for much."""


def _mutated_pickle(program: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return hostile.mutated_bytes(program, rng)
    starts = [place for _, _, place in pickletools.genops(program)]
    opcodes = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(1, len(opcodes))
        match rng.randrange(6):
            case 0:
                del opcodes[place]
            case 1:
                opcodes.insert(place, opcodes[rng.randrange(len(opcodes))])
            case 2:
                opcodes[place] = opcodes[rng.randrange(len(opcodes))]
            case 3:
                opcodes.insert(place, rng.choice(FRAGMENTS) * rng.choice((1, 1, 1, 2, 300)))
            case _:
                opcodes[place] = rng.choice(FRAGMENTS)
        if len(opcodes) < 2:
            break
    return b"".join(opcodes)


def _sound_pickle() -> bytes:
    with zipfile.ZipFile(sound() / "model.pth") as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def _torch(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.pth"
    whole = (sound() / "model.pth").read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(hostile.mutated_bytes(whole, rng))
    else:
        with zipfile.ZipFile(sound() / "model.pth") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        file = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
            warnings.simplefilter("ignore")  # zipfile's own, of members of one name
            for name, content in members.items():
                if name.endswith("/data.pkl"):
                    content = _mutated_pickle(content, rng)
                elif rng.random() < 0.1:
                    content = rng.choice((b"", b"x", content * 2, bytes(1 << 20)))
                method = rng.choice(
                    (zipfile.ZIP_STORED,) * 20 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                )
                for _ in range(rng.choice((0,) + (1,) * 30 + (2,))):
                    archive.writestr(
                        rng.choice((name,) * 30 + ("../x", "data.pkl", name[:-1], "")) or "x", content, method
                    )
            for info in archive.infolist():
                if rng.random() < 0.02:
                    info.header_offset = rng.choice((0, 1, 64, 2**31, 2**40))
                if rng.random() < 0.02:
                    info.file_size = rng.choice((0, 1, 2**31, 2**40))
        path.write_bytes(file.getvalue())
    if rng.random() < 0.03:
        hostile.no_file(path, rng)
    return path


def _old_torch(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.pth"
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    values = arrays()
    keys = [str(number) for number in range(len(values))]
    parts = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(machine, 2), _sound_pickle(),
        pickle.dumps(keys, 2),
    ]  # fmt: skip
    for place in rng.sample(range(5), rng.choice((0, 1, 1, 1, 2))):
        parts[place] = _mutated_pickle(parts[place], rng)
    for value in values.values():
        size = value.size if rng.random() < 0.95 else rng.choice(hostile.NUMBERS[:14])
        parts.append(struct.pack("<q", size) + value.tobytes())
    content = b"".join(parts)
    path.write_bytes(hostile.mutated_bytes(content, rng) if rng.random() < 0.2 else content)
    return path


def _orbax(rng: random.Random, folder: Path) -> Path:
    path = hostile.copied(sound() / "orbax", folder)
    files = [file for file in path.rglob("*") if file.is_file()]
    files.sort(key=lambda file: (file.parent, file.stat().st_size, file.name))  # Orbax draws names at random
    for file in rng.sample(files, rng.choice((1, 1, 2))):
        match rng.randrange(6):
            case 0:
                hostile.no_file(file, rng)
            case 1:
                file.unlink()
            case 2:
                other = rng.choice(files)
                if other.is_file():
                    with other.open("rb") as source:  # it may be a sparse giant by now
                        content = source.read(1 << 20)
                    file.write_bytes(content)
            case _:
                content = file.read_bytes()
                try:
                    file.write_bytes(hostile.mutated_json(json.loads(content), rng))
                except ValueError:
                    file.write_bytes(hostile.mutated_bytes(content, rng))
    return path


if __name__ == "__main__":
    harness.main(__file__)
