"""Arrays come back as they were written, or the error says which are not."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime import arrays
from chameleon_jax.runtime.arrays import all_or_none, load_arrays, save_arrays, verify_arrays


def tree() -> dict:
    rng = np.random.default_rng(0)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, np.finfo(np.float32).max], np.float32)
    return {
        "layers": {"q": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32), "scale": jnp.asarray(odd)},
        "half": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16),
        "step": jnp.asarray(12, jnp.int32),
    }


def abstract(arrays) -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_arrays(tmp_path / "params", tree())
    return tmp_path / "params"


def test_saved_arrays_do_not_say_where_they_were_saved(tmp_path):
    save_arrays(tmp_path / "params", tree())
    files = [path for path in (tmp_path / "params").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in files)


def test_arrays_come_back_bit_for_bit(saved):
    loaded = load_arrays(saved, abstract(tree()))
    assert jax.tree.structure(loaded) == jax.tree.structure(tree())
    for array, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
        assert array.dtype == original.dtype
        assert array.shape == original.shape
        assert np.asarray(array).tobytes() == np.asarray(original).tobytes()


def test_arrays_are_born_on_a_mesh(saved):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    wanted = abstract(tree())
    wanted["layers"]["q"] = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32, sharding=sharding)
    loaded = load_arrays(saved, wanted)["layers"]["q"]
    assert loaded.sharding == sharding
    assert {shard.data.shape for shard in loaded.addressable_shards} == {(3, 1, 5)}
    np.testing.assert_array_equal(loaded, tree()["layers"]["q"])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileError, match="params: no such folder of arrays"):
        load_arrays(tmp_path / "params", abstract(tree()))


def test_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "readme").write_text("nothing here")
    with pytest.raises(FileError, match="params: is not a complete folder of arrays"):
        load_arrays(tmp_path / "params", abstract(tree()))


def test_array_of_another_shape_is_named(saved):
    wanted = abstract(tree())
    wanted["layers"]["q"] = jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)
    with pytest.raises(FileError, match=r"layers/q has shape \(3, 4, 5\), the config expects \(3, 4, 6\)"):
        load_arrays(saved, wanted)


def test_missing_and_surplus_arrays_are_named(saved):
    wanted = abstract(tree())
    wanted["layers"]["k"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(FileError, match=r"layers/k has shape none \(missing\), the config expects \(2,\)"):
        load_arrays(saved, wanted)
    wanted = abstract(tree())
    del wanted["half"]
    with pytest.raises(FileError, match=r"half has shape \(7,\), the config expects no such array"):
        load_arrays(saved, wanted)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax abandons its other reads
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut in half"])
def test_damaged_folder_is_named_or_harmless(saved, damage):
    """Whichever file is hit: the arrays come back as they were, or the error names the folder. Never other numbers."""
    wanted, messages = abstract(tree()), []
    for name in files_of(saved):
        content = (saved / name).read_bytes()
        if damage == "deleted":
            (saved / name).unlink()
        else:
            (saved / name).write_bytes(content[: len(content) // 2] if damage == "cut in half" else b"")
        try:
            loaded = load_arrays(saved, wanted)
        except FileError as error:
            messages.append(str(error))
        else:
            for array, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
                assert np.asarray(array).tobytes() == np.asarray(original).tobytes(), name
        (saved / name).write_bytes(content)
    gc.collect()
    assert len(messages) >= 2
    for message in messages:
        assert message.startswith(f"{saved}: ")
        assert "\n" not in message


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_any_flipped_byte_is_found_or_harmless(tmp_path):
    checksums = save_arrays(tmp_path / "params", tree())
    wanted, expected, found = abstract(tree()), jax.tree.leaves(tree()), 0
    named = 0
    for name in files_of(tmp_path / "params"):
        path = tmp_path / "params" / name
        for place in range(0, path.stat().st_size, max(1, path.stat().st_size // 8)):
            flip(path, place)
            try:
                loaded = jax.tree.leaves(load_arrays(tmp_path / "params", wanted, checksums))
            except FileError as error:
                named += str(tmp_path / "params") in str(error)
                found += 1
            else:
                for array, original in zip(loaded, expected, strict=True):
                    assert np.asarray(array).tobytes() == np.asarray(original).tobytes(), (name, place)
            flip(path, place)
    gc.collect()
    assert found == named >= 10


def test_arrays_are_verified_in_the_type_of_the_file(tmp_path, monkeypatch):
    """Also where they are wanted in another, of which there are no checksums."""
    checksums = save_arrays(tmp_path / "params", tree())
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if leaf.dtype == jnp.int32 else jnp.float16), tree()
    )
    loaded = load_arrays(tmp_path / "params", wanted, checksums)
    for array, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(original.astype(array.dtype)))
    checksums["half"] = checksums["half"][:-1] + "x"
    with pytest.raises(DamagedFile, match="half does not match its checksum"):
        load_arrays(tmp_path / "params", wanted, checksums)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MemoryError),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), RuntimeError),
        (PermissionError(13, "Permission denied", "there"), FileError),
        (ValueError("UNAVAILABLE: gs://bucket/run: connection lost"), FileError),
        (ValueError("PERMISSION_DENIED: no"), FileError),
        (ConnectionResetError(104, "Connection reset by peer"), FileError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("DATA_LOSS: Error decoding chunk"), DamagedFile),
        (FileNotFoundError(2, "No such file", "there"), DamagedFile),
        (KeyError("tree_metadata"), DamagedFile),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_damage_is_told_from_what_the_machine_lacks(error, expected):
    """Orbax hides each of them in an error of its own."""

    def read():
        try:
            raise error
        except BaseException as inner:
            raise KeyError("Failed to load checkpointable") from inner

    with pytest.raises(BaseException) as caught:  # noqa: PT011, of every kind
        all_or_none(Path("here"), read)
    assert type(caught.value) is expected


def test_damaged_array_in_one_process_only_is_said_to_the_others(monkeypatch):
    answers = iter([None, [True, "DamagedFile: two.bin: damaged"]])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(arrays, "gather_texts", lambda mine: [mine, json.dumps([next(answers), 0])])
    assert all_or_none(Path("here"), lambda: 3) == 3
    with pytest.raises(DamagedFile, match=r"in process 1: DamagedFile: two\.bin"):
        all_or_none(Path("here"), lambda: 3)


def test_what_has_no_remedy_goes_before_damage(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(arrays, "gather_texts", lambda mine: [mine, json.dumps([[False, "MemoryError: "], 0])])

    def read():
        raise DamagedFile("mine is damaged")

    with pytest.raises(FileError, match="in process 1: MemoryError") as caught:
        all_or_none(Path("here"), read)
    assert not isinstance(caught.value, DamagedFile)


@pytest.mark.parametrize(
    "wrong",
    [["float32"], 7, True, "Infinity 0123456789abcdef", "object 0123456789abcdef", "", "float99 0123456789abcdef"],
)
def test_checksum_that_is_none_is_damage(tmp_path, wrong):
    checksums = save_arrays(tmp_path / "params", tree())
    name = min(checksums)
    for read in (
        lambda sums: load_arrays(tmp_path / "params", jax.eval_shape(tree), sums),
        lambda sums: verify_arrays(tmp_path / "params", sums),
    ):
        with pytest.raises(DamagedFile, match=f"the checksum of {name} is"):
            read({**checksums, name: wrong})
        with pytest.raises(DamagedFile, match="its checksums are"):
            read(list(checksums))
