"""A checkpoint gives back every bit, or says why it cannot."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from chameleon_jax.config import CheckpointConfig, MeshConfig, TrainConfig, from_dict, to_dict
from chameleon_jax.errors import FileError
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training import checkpoint as checkpoint_module
from chameleon_jax.training.checkpoint import Checkpoints, stored_config
from chameleon_jax.training.state import TrainState, abstract_state, init_state
from chameleon_jax.training.transformer import TransformerTask


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def config(tiny):
    return tiny.config()


@pytest.fixture(scope="module")
def at_step(config, mesh):
    """A state of a given step; its parameters tell which step it is."""
    abstract = abstract_state(TransformerTask(config), mesh)

    def state(step: int) -> TrainState:
        rng = np.random.default_rng(0)

        def place(leaf):
            return jax.device_put((rng.normal(size=leaf.shape) + step).astype(leaf.dtype), leaf.sharding)

        return jax.tree.map(place, abstract)._replace(step=jnp.asarray(step, jnp.int32))

    return state


def small_state(step: int) -> TrainState:
    """For what does not depend on the arrays."""
    return TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.zeros(2)}, ())


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoints"


def save(folder: Path, config, *states: TrainState, keep: int = 9) -> None:
    with Checkpoints(folder, CheckpointConfig(every=1, keep=keep)) as checkpoints:
        for state in states:
            checkpoints.save(state, config, "the data")


def restore(folder: Path, config, mesh, fingerprint: str = "the data") -> TrainState | None:
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        found = checkpoints.restore(abstract_state(TransformerTask(config), mesh), config, fingerprint)
    return found and found[0]


def assert_same(state, expected) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), state, expected)


def test_an_empty_folder_has_nothing_to_restore(folder, config, mesh):
    assert restore(folder, config, mesh) is None


@pytest.mark.slow
def test_every_bit_comes_back_on_any_arrangement_of_devices(folder, config, mesh, at_step):
    saved = at_step(3)
    save(folder, config, saved)
    assert_same(restore(folder, config, mesh), saved)
    other = make_mesh(MeshConfig(data=1, fsdp=8))
    state = restore(folder, config, other)
    assert_same(state, saved)
    assert state.params["embed"].addressable_shards[0].data.shape == (32, 2)  # born cut into eight along the width


def test_config_of_the_newest_checkpoint_is_known_without_its_arrays(folder, config):
    assert stored_config(folder) is None
    for step in (1, 2):
        save(folder, dataclasses.replace(config, seed=step), small_state(step))
    assert from_dict(TrainConfig, stored_config(folder)) == dataclasses.replace(config, seed=2)


@pytest.mark.slow
def test_training_on_while_a_checkpoint_is_written_does_not_change_it(folder, tiny, mesh):
    # Some megabytes, so that writing is still going on when the arrays are given away and overwritten.
    config = tiny.config(model__vocab_size=4096, model__d_model=128)
    state = init_state(tiny.task(config), mesh)
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 + 7, state), donate_argnums=0)
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, config, "the data")
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
    assert_same(restore(folder, config, mesh), expected)


def test_only_the_newest_are_kept(folder, config):
    save(folder, config, *map(small_state, (1, 2, 3, 4)), keep=2)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["3", "4"]


def test_some_are_kept_for_ever(folder, config):
    with Checkpoints(folder, CheckpointConfig(every=1, keep=1, keep_every=3)) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(small_state(step), config, "the data")
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["3", "6", "8"]


def test_metrics_that_were_not_logged_yet_come_back_as_they_were(folder, config, mesh, at_step):
    unlogged = [{"loss_sum": float(np.float32(1) / 3), "bad": 0.0}, {"loss_sum": 1e-30, "bad": 1.0}]
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(at_step(5), config, "the data", unlogged)
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        state, found = checkpoints.restore(abstract_state(TransformerTask(config), mesh), config, "the data")
    assert int(state.step) == 5
    assert found == unlogged


def test_a_run_can_move_to_other_hardware_and_says_that_bits_may_differ(two_checkpoints, tiny, mesh, at_step, capsys):
    other = tiny.config(execution__attention="blockwise", execution__compute_dtype="bfloat16", loss_chunk=4)
    assert_same(restore(two_checkpoints, other, mesh), at_step(2))
    said = " ".join(capsys.readouterr().err.split())
    changes = "execution.compute_dtype = 'bfloat16' (was 'float32'), execution.attention = 'blockwise' (was 'auto')"
    assert f"Resuming with {changes}, loss_chunk = 4 (was 0): results will differ" in said


def test_checkpoints_of_older_versions_which_had_more_in_model_go_on(folder, tiny, mesh, at_step, monkeypatch, capsys):
    def old_form(config: TrainConfig) -> dict:
        values = to_dict(config)
        values["model"] |= {**values.pop("execution"), "dropout": values.pop("dropout"), "lora": values.pop("lora")}
        return values

    config = tiny.config(dropout=0.1, execution__remat="full", execution__attention="splash")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "to_dict", old_form)
        save(folder, config, at_step(2))
    assert stored_config(folder)["model"]["attention"] == "splash"
    assert_same(restore(folder, config, mesh), at_step(2))
    assert "rounding" not in capsys.readouterr().err
    restore(folder, tiny.config(dropout=0.1, execution__remat="full"), mesh)
    assert "execution.attention = 'auto' (was 'splash'): results will differ" in capsys.readouterr().err
    with pytest.raises(FileError, match=r"dropout was 0\.1, now 0\.0"):
        restore(folder, tiny.config(), mesh)


@pytest.mark.parametrize(("bits", "said"), [("rbg", True), ("threefry2x32", False)])
def test_another_mesh_is_said_where_dropout_depends_on_it(folder, tiny, mesh, at_step, capsys, bits, said):
    config = tiny.config(dropout=0.1, dropout_bits=bits)
    save(folder, config, at_step(1))
    restore(folder, dataclasses.replace(config, mesh=MeshConfig(fsdp=2)), mesh)
    assert ("depends on it): results will differ in rounding" in capsys.readouterr().err) is said


# ----------------------------------------------------------------------------------------------------------------------
# Other runs
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__learning_rate": 0.5}, r"optimizer\.learning_rate was 0\.01, now 0\.5"),
        ({"model__mlp_dim": 48}, r"model\.mlp_dim was 24, now 48"),
        ({"seed": 3}, r"seed was 0, now 3"),
        ({"stages": [{"share": 1.0, "weights": {"all": 2.0}}]}, r"stages\.0\.weights\.all was 1\.0, now 2\.0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_checkpoints_of_another_config_are_refused_by_the_name_of_the_difference(
    two_checkpoints, tiny, mesh, change, message
):
    with pytest.raises(FileError, match=message):
        restore(two_checkpoints, tiny.config(**change), mesh)


def test_what_does_not_change_the_numbers_may_differ(two_checkpoints, tiny, mesh, at_step):
    changes = {"mesh__tensor": 2, "checkpoint__keep": 1, "evaluate_every": 2, "data": "moved", "output": "moved"}
    assert_same(restore(two_checkpoints, tiny.config(**changes), mesh), at_step(2))


def test_checkpoints_of_other_data_are_refused(two_checkpoints, config, mesh):
    with pytest.raises(FileError, match="other data"):
        restore(two_checkpoints, config, mesh, fingerprint="other")


def test_checkpoints_of_a_newer_version_are_refused(folder, config, mesh, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", checkpoint_module.FORMAT_VERSION + 1)
    save(folder, config, small_state(1))
    with pytest.raises(FileError, match=r"newer.*update chameleon_jax"):
        restore(folder, config, mesh)


# ----------------------------------------------------------------------------------------------------------------------
# Damage
# ----------------------------------------------------------------------------------------------------------------------


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_state(folder: Path) -> None:
    shutil.rmtree(folder / "state")


def delete_header(folder: Path) -> None:
    shutil.rmtree(folder / "run")


def array_files(folder: Path) -> list[Path]:
    return [path for path in files_in(folder / "state") if path.parent.name == "d"]


def delete_arrays(folder: Path) -> None:
    for path in array_files(folder):
        path.unlink()


def truncate_arrays(folder: Path) -> None:
    for path in array_files(folder):
        truncate(path)


def empty_all_files(folder: Path) -> None:
    for path in files_in(folder):
        path.write_bytes(b"")


def delete_all_files(folder: Path) -> None:
    for path in files_in(folder):
        path.unlink()


def flip_a_byte_of_an_array(folder: Path) -> None:
    path = max(array_files(folder), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def change_the_header(folder: Path) -> None:
    path = folder / "run" / "data.json"
    content = path.read_text()
    assert '"seed": 0' in content
    path.write_text(content.replace('"seed": 0', '"seed": 1'))


def empty_the_header(folder: Path) -> None:
    (folder / "run" / "data.json").write_bytes(b"")


def delete_metadata(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").unlink()
    (folder / "state" / "_METADATA").unlink()


def delete_everything(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


DAMAGES = [
    delete_state, delete_header, delete_arrays, truncate_arrays, empty_all_files, delete_all_files,
    flip_a_byte_of_an_array, change_the_header, empty_the_header, delete_metadata, delete_everything, a_file_instead,
]  # fmt: skip


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, config, at_step):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save(folder, config, at_step(1), at_step(2))
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_set_aside(folder, config, mesh, at_step, two_checkpoints, damage, capsys):
    shutil.copytree(two_checkpoints, folder)
    damage(folder / "2")
    assert_same(restore(folder, config, mesh), at_step(1))
    message = capsys.readouterr().err
    assert str(folder / "2") in message
    assert "damaged" in message
    assert names_in(folder) == {"1", "damaged-2"}


@pytest.mark.parametrize("damage", [truncate_arrays, a_file_instead], ids=lambda damage: damage.__name__)
def test_a_checkpoint_that_was_set_aside_can_be_written_again(folder, config, mesh, at_step, two_checkpoints, damage):
    shutil.copytree(two_checkpoints, folder)
    damage(folder / "2")
    with Checkpoints(folder, CheckpointConfig(every=1, keep=2)) as checkpoints:
        checkpoints.restore(abstract_state(TransformerTask(config), mesh), config, "the data")
        for step in (2, 3):
            checkpoints.save(at_step(step), config, "the data")
    assert names_in(folder) == {"2", "3", "damaged-2"}
    assert_same(restore(folder, config, mesh), at_step(3))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncate, Path.unlink], ids=["truncated", "deleted"])
def test_no_single_damaged_file_ever_gives_wrong_values(tmp_path, config, mesh, at_step, two_checkpoints, harm):
    names = [path.relative_to(two_checkpoints) for path in files_in(two_checkpoints / "2")]
    assert len(names) > 5
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        harm(folder / name)
        state = restore(folder, config, mesh)
        assert_same(state, at_step(int(state.step)))  # of step 2 if the file was not needed, else of step 1


def test_if_all_are_damaged_it_says_so(folder, config, mesh, two_checkpoints):
    shutil.copytree(two_checkpoints, folder)
    for name in ("1", "2"):
        truncate_arrays(folder / name)
    with pytest.raises(FileError, match=r"none of the checkpoints 2, 1 can be read"):
        restore(folder, config, mesh)
    # A disk that is away for a moment must not take all checkpoints with it.
    assert names_in(folder) == {"1", "2"}


@pytest.mark.parametrize(
    "error", [MemoryError(), ValueError("UNAVAILABLE: no route"), PermissionError(13, "Permission denied", "state")]
)
def test_what_is_no_damage_surfaces_and_leaves_the_checkpoints(
    folder, config, mesh, two_checkpoints, monkeypatch, error
):
    def read(path, wanted):
        raise KeyError("Failed to load checkpointable") from error  # as Orbax does

    shutil.copytree(two_checkpoints, folder)
    monkeypatch.setattr(ocp, "load_checkpointables", read)
    with pytest.raises((MemoryError, FileError)) as caught:
        restore(folder, config, mesh)
    assert "damaged" not in str(caught.value)
    assert names_in(folder) == {"1", "2"}
