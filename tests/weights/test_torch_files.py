"""Torch's files are read and written byte for byte without torch, and nothing that a file asks for is run."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import warnings
import weakref
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_jax.errors import FileError
from chameleon_jax.weights import torch_files, torch_pickle, torch_writing
from chameleon_jax.weights.stored import StoredTensor
from chameleon_jax.weights.torch_files import read_torch_file
from chameleon_jax.weights.torch_writing import write_torch_file

SIX = np.arange(6, dtype=np.float32)
DATA = SIX.tobytes()


# Files made by hand, so that most tests need no torch.


def plain(value: Any) -> bytes:
    """Opcodes of a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def program(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def tensor(shape=(2, 3), strides=(3, 1), offset=0, numel=6, kind="FloatStorage", key="0", view=b"", more=b"") -> bytes:
    """Opcodes of a tensor."""
    storage = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cpu") + plain(numel) + view
    values = plain(offset) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R" + more
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + values + b"tR"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(plain(name) + opcodes for name, opcodes in items.items()) + b"u"


def save_zip(path: Path, pickled: bytes, data=DATA, order=b"little", method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", order)
        archive.writestr("model/data/0", data)
    return path


def save_legacy(path: Path, pickled: bytes, data=DATA, order=b"little", numel: int = 6) -> Path:
    info = {"protocol_version": 1001, "little_endian": order == b"little", "type_sizes": {"int": 4}}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, info)]
    path.write_bytes(b"".join([*head, pickled, pickle.dumps(["0"], 2), struct.pack("<q", numel), data]))
    return path


both_formats = pytest.mark.parametrize("save", [save_zip, save_legacy])


def refused(path: Path) -> str:
    """The message of a file that cannot be read: one line that names it."""
    with pytest.raises(FileError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


# Our writer and our reader.


def random_tensors() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(40, 30)) * 9
    return {
        "float32": values.astype(np.float32),
        "bfloat16": values.astype(ml_dtypes.bfloat16),
        "float16": values.astype(np.float16),
        "float64": values,
        "int64": values.astype(np.int64),
        "bool": values > 0,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "ключ\n": values[:1].astype(np.float32),
    }


def write(path: Path, tensors: dict[str, np.ndarray], **options: Any) -> Path:
    specs = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    write_torch_file(path, specs, tensors.__getitem__, **options)
    return path


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def test_what_was_written_is_read_bit_for_bit(tmp_path):
    tensors = random_tensors()
    path = write(tmp_path / "model.pth", tensors)
    stored = read_torch_file(path)
    assert list(stored) == list(tensors)
    for key, expected in tensors.items():
        assert (stored[key].file, stored[key].key, stored[key].strides) == (path, key, None)
        assert stored[key].offset % 64 == 0
        assert_same(stored[key].view(), expected)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "a checksum is wrong"


def test_archives_with_long_sizes_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    tensors = random_tensors()
    stored = read_torch_file(write(tmp_path / "model.pth", tensors))
    for key, expected in tensors.items():
        assert_same(stored[key].view(), expected)


def test_lengths_past_31_bits_are_pickled_whole():
    pickled = torch_writing._pickled({"big": ((1 << 17, 1 << 15), np.dtype(ml_dtypes.bfloat16))})
    assert plain(1 << 32) in pickled


def test_one_tensor_at_a_time_is_held_while_writing(tmp_path):
    tensors = {key: value for key, value in random_tensors().items() if value.size}
    last, asked, progress = [lambda: None], [], []

    def value(key):
        assert last[-1]() is None, "the tensor before is still there"
        array = tensors[key].copy()
        last.append(weakref.ref(array))
        asked.append(key)
        return array

    specs = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    write_torch_file(tmp_path / "model.pth", specs, value, progress.append)
    assert asked == list(tensors)
    assert progress == [value.nbytes for value in tensors.values()]


def test_strided_and_mapped_arrays_are_written_in_row_major_order(tmp_path):
    values = np.random.default_rng(0).random((1100, 1000), np.float32)  # more than is written at a time
    values.tofile(tmp_path / "values.bin")
    mapped = np.memmap(tmp_path / "values.bin", np.float32, "r", shape=values.shape)
    tensors = {"mapped": mapped, "transposed": mapped.T, "some": values[::3, 5:]}
    stored = read_torch_file(write(tmp_path / "model.pth", tensors))
    for key, expected in tensors.items():
        assert_same(stored[key].view(), np.ascontiguousarray(expected))


@pytest.mark.parametrize(
    ("announced", "value"),
    [
        (((2, 3), np.dtype(np.float32)), np.zeros((3, 2), np.float32)),
        (((2, 3), np.dtype(np.float32)), np.zeros((2, 3), np.float16)),
        (((2,), np.dtype(np.complex64)), np.zeros(2, np.complex64)),
        (((2,), np.dtype(">f4")), np.zeros(2, ">f4")),
    ],
    ids=["shape", "type", "unknown type", "byte order"],
)
def test_tensors_that_are_not_as_announced_are_refused(tmp_path, announced, value):
    with pytest.raises(ValueError, match=r"^layers\.0"):
        write_torch_file(tmp_path / "model.pth", {"layers.0": announced}, lambda key: value)


# What the reader makes of a pickle.


@both_formats
def test_nested_values_come_back_as_plain_python(tmp_path, save):
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x88ccollections\nOrderedDict\n)R\x87R"
    ordered = b"ccollections\nOrderedDict\n)R(" + plain("w") + parameter + b"u"
    metadata = plain({"_metadata": {"": {"version": 1}}})
    value = {"a": [1, 2.5, None, "x", True, (), (1, 2, 3, 4)], 5: 2**70}
    opcodes = dictionary(
        state_dict=ordered + metadata + b"b",
        epoch=plain(3),
        hyper=plain(value),
        size=b"ctorch\nSize\n" + plain((2, 3)) + b"\x85R",
        pair=b"(" + tensor() + plain("x") + b"t",
        python2=b"ccollections\nOrderedDict\n](](U\x01aK\x01ee\x85R",
    )
    found = read_torch_file(save(tmp_path / "model.pt", program(opcodes)))
    assert found["state_dict"]["w"].key == "w"
    assert_same(found["state_dict"]["w"].view(), SIX.reshape(2, 3))
    assert type(found["state_dict"]) is dict
    assert (found["epoch"], found["hyper"], found["size"]) == (3, value, (2, 3))
    assert found["pair"][0].key == "pair"
    assert found["python2"] == {"a": 1}


@both_formats
@pytest.mark.parametrize(
    ("opcodes", "expected"),
    [
        (tensor(), SIX.reshape(2, 3)),
        (tensor((3, 2), (1, 3)), SIX.reshape(2, 3).T),
        (tensor((2, 2), (1, 2), offset=2), np.array([[2, 4], [3, 5]], np.float32)),
        (tensor((1, 3), (99, 2)), SIX[None, ::2]),
        (tensor((4, 2), (0, 1)), np.stack([SIX[:2]] * 4)),
        (tensor((), (), offset=5), np.float32(5)),
        (tensor((0, 3), (3, 1), offset=6), np.zeros((0, 3), np.float32)),
        (tensor((3,), (1,), offset=1), SIX[1:4]),
    ],
)
def test_strides_and_offsets_of_shared_storages(tmp_path, save, opcodes, expected):
    found = read_torch_file(save(tmp_path / "model.pt", program(opcodes)))
    assert found.key == ""
    assert_same(found.view(), np.asarray(expected))


# What it refuses.


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that would make the file `marker`, or reach for more than they should."""
    touch = f"touch {marker}"
    system = pickle.dumps(Call(os.system, touch), 2)
    return {
        "os.system": system,
        "eval": pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')"), 2),
        "protocol 4": pickle.dumps(Call(os.system, touch), 4),
        "text opcodes": f"cposix\nsystem\n(S'{touch}'\ntR.".encode(),
        "INST": program(b"(" + plain(touch) + b"iposix\nsystem\n"),
        "NEWOBJ": program(b"csubprocess\nPopen\n" + plain(["touch", str(marker)]) + b"\x85\x81"),
        "torch within torch": program(b"ctorch.storage\n_load_from_bytes\n" + plain(touch) + b"\x85R"),
        "beside tensors": program(dictionary(weight=tensor(), evil=system[2:-1])),
        "type of tensor": program(b"ctorch._tensor\n_rebuild_from_type_v2\n"),
        "layout": program(b"ctorch.serialization\n_get_layout\n"),
        "escape": program(b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"),
        "NEWOBJ of ours": program(b"ccollections\nOrderedDict\n)\x81"),
        "BUILD of ours": program(b"ccollections\nOrderedDict\n" + plain({"__defaults__": 1}) + b"b"),
        "BUILD of a tensor": program(tensor() + plain({"offset": 0}) + b"b"),
        "call of a type": program(b"ctorch\nFloatStorage\n)R"),
        "call of text": program(plain("os.system") + b")R"),
        "class as value": program(dictionary(x=b"ctorch\nFloatStorage\n")),
        "extension": program(b"\x82\x01"),
        "memo bomb": program(b"]r\xff\xff\xff\xff" + b"\x81"),
        "nested": program(b")" + b"\x85" * 200_000),
        "nested key": program(b"}" + b")" + b"\x85" * 200_000 + b"Ns"),
        "holds itself": program(b"]q\x00h\x00a"),
    }


@both_formats
@pytest.mark.parametrize("attack", hostile(Path("x")))
def test_hostile_pickles_are_refused_and_not_run(tmp_path, save, attack):
    marker = tmp_path / "marker"
    pickled = hostile(marker)[attack]
    refused(save(tmp_path / "model.pt", pickled))
    (tmp_path / "bare.pt").write_bytes(pickled)
    refused(tmp_path / "bare.pt")
    assert not marker.exists()
    if attack in ("os.system", "eval", "protocol 4", "text opcodes", "INST"):
        pickle.loads(pickled)
        assert marker.exists(), "the attack is none"


@both_formats
@pytest.mark.parametrize("attack", ["os.system", "protocol 4", "text opcodes", "INST", "beside tensors"])
def test_what_a_file_asked_for_is_named(tmp_path, save, attack):
    message = refused(save(tmp_path / "model.pt", hostile(tmp_path / "marker")[attack]))
    assert "'posix.system'" in message
    assert "not run" in message


GLOBALS = {"size": b"ctorch\nSize\n", "ordered": b"ccollections\nOrderedDict\n"}


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def get(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def bombs() -> dict[str, bytes]:
    """Pickles of some kilobytes that stand for very much, or that Python cannot even hash."""
    doubled = b"]" + put(0) + b"".join(b"](" + get(i) + get(i) + b"e" + put(i + 1) for i in range(90))
    many = b"(" + b"K\x01" * 20_000
    wide = b"](" + (b"K\x01" * 2_000) + b"e" + put(0)
    pairs = b"](" + b"".join(b"K\x01K\x02\x86" for _ in range(5_000)) + b"e" + put(0)
    names = [plain(f"name{index}") for index in range(1500)]
    table = b"}(" + b"".join(name + b"K\x01" for name in names) + b"u"
    return {
        "lists of the same lists": doubled,
        "deep key of a dictionary": b"}" + b")" + b"\x85" * 20_000 + b"Ns",
        "deep value": b")" + b"\x85" * 20_000,
        "deep shape": dictionary(w=tensor().replace(plain((2, 3)), b")" + b"\x85" * 20_000, 1)),
        "a list again and again": wide + b"](" + get(0) * 2_000 + b"e",
        "tables under many names": table + put(9) + b"}(" + b"".join(name + get(9) for name in names) + b"u",
        "copies of a size": many + b"t" + put(0) + b"](" + (GLOBALS["size"] + get(0) + b"\x85R") * 5_000 + b"e",
        "copies of a dictionary": pairs + b"](" + (GLOBALS["ordered"] + get(0) + b"\x85R") * 5_000 + b"e",
        "call with very many arguments": many + b"t" + put(0) + GLOBALS["ordered"] + get(0) + b"R",
        "axes by the thousand": dictionary(w=tensor().replace(plain((2, 3)), many + b"t", 1)),
        "a number of a megabit": b"\x8b" + struct.pack("<i", 1 << 17) + b"\x7f" * (1 << 17),
        "numbers of one hash": b"}(" + b"".join(plain((2**61 - 1) * i) + b"N" for i in range(1, 5_000)) + b"u",
        "steps without end": b"N" * 30_001,
    }


@pytest.mark.parametrize("bomb", bombs())
def test_bombs_are_refused_within_a_budget(tmp_path, monkeypatch, bomb):
    """Steps and values are counted, and with them memory and time; here a tenth of what is allowed otherwise."""
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 30_000)
    monkeypatch.setattr(torch_files, "MAX_VALUES", 50_000)
    path = save_zip(tmp_path / "model.pt", program(bombs()[bomb]))
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["magic number", "version", "machine", "storages"])
def test_old_format_with_anything_in_the_place_of_its_head_is_refused(tmp_path, place):
    """A deep tuple that is hashed or printed ends the interpreter."""
    deep = program(b"](" + b")" + b"\x85" * 20_000 + b"e")
    parts = {
        "magic number": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "version": pickle.dumps(1001, 2),
        "machine": pickle.dumps({"little_endian": True}, 2),
        "value": program(b"}"),
        "storages": pickle.dumps([], 2),
    }
    path = tmp_path / "model.pt"
    path.write_bytes(b"".join({**parts, place: deep}.values()) + bytes(8))
    refused(path)


def test_files_with_many_tensors_are_within_the_budget(tmp_path):
    """Ten times as many as the largest released file has."""
    tensors = {f"layers.{index}.weight": np.zeros(1, np.float32) for index in range(7000)}
    assert len(read_torch_file(write(tmp_path / "model.pth", tensors))) == 7000


def test_tensors_of_more_bytes_than_the_file_are_refused(tmp_path):
    """Strides of zero, or the same storage again and again: what is loaded would fill the memory."""
    expanded = dictionary(w=tensor((1 << 20, 1 << 20), (0, 0)))
    assert "'w', have more than 4 times the bytes" in refused(save_zip(tmp_path / "a.pt", program(expanded)))
    again = dictionary(**{f"w{index}": tensor((1 << 18,), (1,), numel=1 << 18) for index in range(9)})
    message = refused(save_zip(tmp_path / "b.pt", program(again), bytes(1 << 20)))
    assert "'w5', have more than 4 times the bytes" in message


@both_formats
@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (dictionary(w=tensor(numel=6, shape=(7,), strides=(1,))), "'w' needs 28 bytes of its storage, 24 are there"),
        (dictionary(w=tensor(shape=(2, 3), strides=(4, 1))), "'w' needs 28 bytes"),
        (dictionary(w=tensor(offset=1)), "'w' needs 28 bytes"),
        (dictionary(w=tensor(offset=-1)), "impossible"),
        (dictionary(w=tensor(strides=(-3, 1))), "impossible"),
        (dictionary(w=tensor(shape=(2**40, 2**40), strides=(0, 0))), "impossible"),
        (dictionary(w=tensor(strides=(3,))), "impossible"),
        (dictionary(w=tensor(numel=-1)), "impossible"),
        (dictionary(w=tensor(), v=tensor(kind="HalfStorage")), "storage '0'"),
        (dictionary(w=tensor(kind="ComplexFloatStorage")), "'torch.ComplexFloatStorage'"),
        (dictionary(w=tensor(view=plain(("1", 0, 6)))), "view of another"),
        (dictionary(w=tensor(more=plain({"neg": True}))), "metadata"),
        (plain({(1, 2): 3}), "tuple for a key"),
        (b"]" + plain(1) + plain(2) + b"s", "not a dictionary"),
        (b"}" + plain(1) + b"a", "not a list"),
        (plain("storage") + b"Q", "ValueError"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, save, opcodes, reason):
    assert reason in refused(save(tmp_path / "model.pt", program(opcodes)))


def test_storages_shorter_than_their_tensors_are_refused(tmp_path):
    pickled = program(dictionary(w=tensor()))
    assert "'w' needs 24 bytes of its storage, 20 are" in refused(save_zip(tmp_path / "a.pt", pickled, bytes(20)))
    assert "'w' needs 24 bytes of its storage, 20 are" in refused(save_legacy(tmp_path / "b.pt", pickled, bytes(20)))
    assert "not as long" in refused(save_legacy(tmp_path / "c.pt", pickled, numel=5))
    missing = program(dictionary(w=tensor(key="1")))
    assert "'w' needs 24 bytes of its storage, 0 are" in refused(save_zip(tmp_path / "d.pt", missing))


def test_archives_that_torch_would_not_write_are_refused(tmp_path, monkeypatch):
    pickled = program(dictionary(w=tensor()))
    assert "compressed" in refused(save_zip(tmp_path / "a.pt", pickled, method=zipfile.ZIP_DEFLATED))
    assert "little-endian" in refused(save_zip(tmp_path / "b.pt", pickled, order=b"big"))
    assert "little-endian" in refused(save_legacy(tmp_path / "c.pt", pickled, order=b"big"))
    with zipfile.ZipFile(tmp_path / "d.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "data.pkl" in refused(tmp_path / "d.pt")
    with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", b"little" + b" " * (1 << 20), zipfile.ZIP_BZIP2)
    assert "'model/byteorder' is compressed" in refused(tmp_path / "f.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "g.pt", "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's own, of the second name
        for _ in range(2):
            archive.writestr("model/data.pkl", pickled)
    assert "several members of one name" in refused(tmp_path / "g.pt")
    monkeypatch.setattr(torch_files, "MAX_PICKLE_BYTES", 50)
    assert "more than the 50" in refused(save_zip(tmp_path / "e.pt", pickled))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>Not found</html>", "not a torch checkpoint"),
        (bytes(range(100)), "not a torch checkpoint"),
        (b"PK\3\4" + bytes(100), "damaged, cut short"),
        (pickle.dumps({"a": 1}), "a pickle, but no torch checkpoint"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2), "version 1002"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, reason):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert reason in refused(path)


def test_missing_files_are_named(tmp_path):
    assert "No such file" in refused(tmp_path / "none.pt")
    assert "Is a directory" in refused(tmp_path)


def test_storages_in_each_other_are_refused(tmp_path):
    """The second member of the archive is made to begin where the first does."""
    pickled = program(dictionary(w=tensor(), v=tensor(key="1")))
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", DATA)
        archive.writestr("model/data/1", DATA)
        first, second = archive.infolist()[1:]
        second.header_offset = first.header_offset
    assert "overlaps another" in refused(tmp_path / "model.pt")


@both_formats
def test_files_cut_short_anywhere_are_refused(tmp_path, save):
    whole = save(tmp_path / "whole.pt", program(dictionary(w=tensor(), v=tensor()))).read_bytes()
    path = tmp_path / "cut.pt"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


def test_damaged_archives_are_refused(tmp_path):
    whole = save_zip(tmp_path / "model.pt", program(dictionary(weight=tensor()))).read_bytes()
    for place in (whole.index(b"weight"), whole.index(b"PK\3\4", whole.index(b"byteorder")) + 1):
        (tmp_path / "bad.pt").write_bytes(whole[:place] + b"!" + whole[place + 1 :])
        assert "damaged" in refused(tmp_path / "bad.pt")


def tensors_in(value: Any) -> list[StoredTensor]:
    if isinstance(value, StoredTensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@both_formats
@pytest.mark.parametrize("damage", ["pickle", "file"])
@settings(max_examples=300)
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_damage_gives_a_file_error_or_tensors_within_the_file(folder, save, damage, cut, flips):
    def spoil(content: bytes) -> bytes:
        content = bytearray(content)
        for place, byte in flips:
            content[place % len(content)] = byte
        return bytes(content[: len(content) - max(0, cut - 200)])

    pickled = program(dictionary(w=tensor(), v=tensor((3, 2), (1, 3)), other=plain([1, {"a": (2.5, None)}])))
    path = save(folder / "model.pt", spoil(pickled) if damage == "pickle" else pickled)
    if damage == "file":
        path.write_bytes(spoil(path.read_bytes()))
    try:
        found = read_torch_file(path)
    except FileError:
        return
    for stored in tensors_in(found):
        assert stored.view().shape == stored.shape
        assert 0 in stored.shape or stored.strides or stored.offset + stored.nbytes <= path.stat().st_size


# Torch itself.


@pytest.mark.torch
@pytest.mark.parametrize("zip_format", [True, False])
def test_what_torch_saved_is_read(tmp_path, zip_format):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))  # its state dict has _metadata
    tensors = {
        "plain": base,
        "transposed": base.transpose(0, 2),
        "part": base[1, 1:],
        "steps": base[:, ::2, 1::2],
        "expanded": base[:1, :1].expand(3, 3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bfloat16": torch.randn(5, 7).to(torch.bfloat16),
        "half": torch.randn(3).half(),
        "int64": torch.tensor([1, -(2**40)]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    saved = {
        "state_dict": module.state_dict(),
        "tensors": tensors,
        "epoch": 3,
        "hyper": {"a": [1, 2.5, None, "x"]},
        "size": base.shape,
    }
    path = tmp_path / "model.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=zip_format)
    found = read_torch_file(path)
    assert {key: found[key] for key in ("epoch", "hyper", "size")} == {
        "epoch": 3,
        "hyper": {"a": [1, 2.5, None, "x"]},
        "size": (2, 3, 4),
    }
    for name, group in (("state_dict", module.state_dict()), ("tensors", tensors)):
        assert list(found[name]) == list(group)
        for key, expected in group.items():
            expected = expected.detach().clone(memory_format=torch.contiguous_format)
            stored = found[name][key]
            assert stored.key == key
            assert stored.view().tobytes() == expected.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert (stored.shape, str(expected.dtype)) == (tuple(expected.shape), f"torch.{stored.dtype}")
    assert found["tensors"]["transposed"].strides == (1, 4, 12)


@pytest.mark.torch
@pytest.mark.parametrize("long_sizes", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_what_we_wrote(tmp_path, monkeypatch, mapped, long_sizes):
    torch = pytest.importorskip("torch")
    if long_sizes:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    tensors = random_tensors()
    loaded = torch.load(write(tmp_path / "model.pth", tensors), weights_only=True, mmap=mapped)
    assert list(loaded) == list(tensors)
    for key, expected in tensors.items():
        assert (tuple(loaded[key].shape), str(loaded[key].dtype)) == (expected.shape, f"torch.{expected.dtype}")
        assert loaded[key].is_contiguous()
        assert loaded[key].reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes()
