"""`chameleon compile` from the command line to its report, on fake CPU devices; for TPUs see test_for_tpus.py."""

from __future__ import annotations

import dataclasses
import json
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from chameleon_jax.compilation.collectives import Collective
from chameleon_jax.compilation.estimate import advice, fits, roofline, step_traffic_bound, width_advice
from chameleon_jax.compilation.run import _too_large, compile_train_step
from chameleon_jax.compilation.table import lines
from chameleon_jax.config import MeshConfig, TrainConfig, from_dict
from chameleon_jax.console.cli import main
from chameleon_jax.models.flops import train_flops_per_token
from chameleon_jax.runtime.accelerators import Accelerator
from chameleon_jax.runtime.compiler_options import OPTIONS, Option, compiler_options, options_for
from chameleon_jax.sharding import make_mesh, replicated_arrays
from chameleon_jax.training.state import abstract_state
from chameleon_jax.training.transformer import TransformerTask

LENGTH = 12
CONFIG = {
    "data": "none", "output": "none", "steps": 8, "batch_size": 8, "sequence_length": LENGTH, "log_every": 1,
    "model": {"vocab_size": 32, "d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4,
              "mlp_dim": 24},
    "stages": [{"share": 1.0, "weights": {"all": 1.0}}], "optimizer": {"warmup_steps": 2},
    "mesh": {"data": 1, "fsdp": 8},
}  # fmt: skip
SMALL = Accelerator("a small chip", 1e9, 1e6, 1e6, 1e6)


def test_vocabulary_that_only_prepared_data_knows_is_asked_for(tmp_path, capsys):
    recipe = tmp_path / "train.yaml"
    sizes = {key: value for key, value in CONFIG["model"].items() if key != "vocab_size"}
    recipe.write_text(json.dumps({**CONFIG, "model": sizes}))
    assert main(["compile", str(recipe)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.splitlines() == [said]
    assert "model.vocab_size = None: must be a number, there is no prepared data here" in said


def test_drawing_with_guidance_compiles_for_a_mesh(tmp_path, capsys):
    sizes = {
        "vocab_size": 64, "d_model": 32, "num_layers": 2, "num_heads": 8, "num_kv_heads": 8, "head_dim": 4,
        "mlp_dim": 48, "context_length": 64,
    }  # fmt: skip
    recipe = tmp_path / "generate.yaml"
    recipe.write_text(json.dumps({"model": sizes, "codes_per_image": 16, "rows": [1, 3]}))
    assert main(["compile", "generate", str(recipe), "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 8}
    assert (found["rows"], found["lanes_per_row"], found["slots"]) == (3, 2, 64)
    assert found["memory"]["cache"] == 2 * 3 * 2 * 2 * 64 * 4 * 4  # lanes, rows, layers, k and v, slots; one head
    # Matrices of the layers are cut into eight parts, norms are not; embedding and output layer where 8 divides them.
    matrices, norms = 2 * (4 * 32 * 32 + 3 * 32 * 48), 5 * 32 + 2 * 2 * 2 * 4
    assert 4 * (matrices // 8 + norms) < found["memory"]["weights"] < 4 * (matrices // 8 + norms + 2 * 64 * 32)
    assert found["collectives"].keys() & {"all-reduce", "all-gather"}
    assert main(["compile", "generate", str(recipe), "--model.num-kv-heads", "4"]) == 1
    assert "does not divide layers/attention/k" in capsys.readouterr().err


def test_the_step_of_an_image_tokenizer_against_a_discriminator_compiles_for_a_mesh(tmp_path, capsys):
    model = {
        "resolution": 16, "space_to_depth": 2, "channels": 8, "channel_multipliers": [1], "num_res_blocks": 1,
        "latent_channels": 4, "code_dim": 4, "num_codes": 16, "norm_groups": 4, "attn_type": "none",
    }  # fmt: skip
    tokenizer = {
        "model": model, "steps": 60, "batch_size": 16, "mesh": {"data": 2, "fsdp": 4},
        "discriminator": {"weight": 0.8, "channels": 4, "stages": 1},
        "perceptual": {"weight": 1.0, "vgg": "is not read", "heads": "nor this"},
    }  # fmt: skip
    recipe = tmp_path / "image_tokenizer.yaml"
    recipe.write_text(json.dumps({"output": "out", "data": "pictures", "tokenizer": tokenizer}))
    assert main(["compile", "image-tokenizer", str(recipe), "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures_per_device_and_part"] == 2
    assert found["memory"]["batch"] == 2 * (16 * 16 * 3 + 4)
    # LPIPS is a part of the state, in float32, without a moment of its own.
    lpips = 14_714_688 + 1_472
    assert found["memory"]["parameters"] > lpips  # bytes of a quarter of it
    assert found["memory"]["optimizer_state"] < lpips / 4
    assert "all-reduce" in found["collectives"]
    assert main(["compile", "image-tokenizer", str(recipe), "--tokenizer.batch-size", "12"]) == 2
    assert "batch_size = 12: must be a multiple of 8" in capsys.readouterr().err


def test_the_report_of_the_command(tmp_path, capsys):
    recipe, program = tmp_path / "train.yaml", tmp_path / "step.bin"
    recipe.write_text(json.dumps(CONFIG))
    assert main(["compile", str(recipe), "--json", "true", "--save", str(program)]) == 0
    found = json.loads(capsys.readouterr().out)
    parameters = found["parameters"]
    assert found["mesh"] == {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    assert (found["devices"], found["device"], found["topology"]) == (8, "cpu", None)
    assert found["rows_per_device_and_part"] == 1
    # All but QK-norm (2 layers, scale and bias of q and k, 4 channels) is cut into eight parts.
    whole = 2 * 2 * 2 * 4
    assert found["memory"]["parameters"] == 4 * ((parameters - whole) // 8 + whole)
    assert found["memory"]["optimizer_state"] == 2 * found["memory"]["parameters"] + 2 * 4  # and two counters
    assert found["memory"]["batch"] == LENGTH * 5 * 4
    assert found["memory"]["temporaries"] > 0
    assert found["memory"]["fits"] is None
    # Evaluation has the optimizer state beside it, but keeps nothing for a backward pass.
    evaluation = found["evaluation_memory"]
    assert evaluation["optimizer_state"] == found["memory"]["optimizer_state"]
    assert found["compiler_options"] == {}
    assert 0 < evaluation["temporaries"] < found["memory"]["temporaries"]
    held = sum(evaluation[name] for name in ("parameters", "optimizer_state", "batch", "temporaries", "program"))
    assert evaluation["peak"] >= held
    assert found["collectives"]["all-gather"]["bytes"] > 4 * parameters
    assert found["collectives"]["all-gather"]["count"] > 2
    assert found["loops_of_unknown_length"] == 0
    assert found["replicated"] == []
    flops = 8 * LENGTH * train_flops_per_token(from_dict(TrainConfig, CONFIG).model, LENGTH)
    assert found["model_flops"] == flops == 8 * found["model_flops_per_device"]
    assert found["estimate"] is None
    assert len(pickle.loads(program.read_bytes())) == 3
    said = "\n".join(lines(found))
    for text in ("8 x cpu", "data 1  fsdp 8", "8 rows of 12 tokens", "all-gather", "not cut: none", "no estimate",
                 "peak of evaluation"):  # fmt: skip
        assert text in said


def test_a_chip_that_is_too_small(monkeypatch):
    monkeypatch.setattr("chameleon_jax.compilation.run.find_accelerator", lambda device: SMALL._replace(memory=2e4))
    config = from_dict(TrainConfig, {**CONFIG, "compiler_options": "none"})
    report = compile_train_step(config, jax.devices())[1]
    assert report["compiler_options"] == {}
    assert report["memory"]["fits"] is False
    assert report["memory"]["share"] > 0.9
    assert any("--execution.remat full" in text for text in report["advice"])
    assert report["estimate"]["step_seconds_one_by_one"] > report["estimate"]["step_seconds_all_at_once"] > 0
    said = "\n".join(lines({"topology": None, "slices": 1, **report}))
    assert "does not fit" in said
    assert "not a measurement" in said


def test_fits_below_nine_tenths():
    assert fits(89, 100) is True
    assert fits(90, 100) is False
    assert fits(1, None) is None


def test_advice_is_for_the_largest_part():
    config = from_dict(TrainConfig, {**CONFIG, "mesh": {"data": 2, "fsdp": 4}})
    mesh = make_mesh(config.mesh)
    state, temporaries = {"parameters": 4, "optimizer_state": 8, "temporaries": 1}, {"parameters": 1}
    temporaries |= {"optimizer_state": 2, "temporaries": 9}
    assert advice(config, mesh, state)[0].startswith("--mesh.data 1 --mesh.fsdp 8")
    assert advice(config, mesh, temporaries)[0].startswith("--execution.remat full")


def test_pieces_of_the_width_narrower_than_a_tile_are_pointed_out():
    """The 7B's width of 4,096 over 128 chips leaves 32 of a tile's 128 columns."""

    def told(platform: str, **sizes: int) -> list[str]:
        axes = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, **sizes}
        devices = np.asarray([types.SimpleNamespace(platform=platform)])
        config = from_dict(TrainConfig, {**CONFIG, "model": {**CONFIG["model"], "d_model": 4096}})
        return width_advice(config, types.SimpleNamespace(shape=axes, devices=devices))

    (text,) = told("tpu", fsdp=128)
    assert text.startswith("--mesh.data 4 --mesh.fsdp 32: pieces of d_model of 128; those of 32")
    assert told("tpu", data=4, fsdp=32) == told("tpu", fsdp=8) == told("gpu", fsdp=128) == []


def test_what_xla_cannot_place_is_one_line_with_advice():
    config = from_dict(TrainConfig, CONFIG)
    mesh = make_mesh(config.mesh)
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.12G of 15.75G hbm. Exceeded by 14.37G.\nX"
    )
    error = str(_too_large(RuntimeError(said), config, mesh, abstract_state(TransformerTask(config), mesh)))
    assert error.startswith("does not fit: it needs 30.12GiB of 15.75GiB a device")
    assert "--execution.remat full" in error
    assert "\n" not in error


def test_the_roofline_is_the_arithmetic_of_its_parts():
    config = from_dict(TrainConfig, {**CONFIG, "batch_size": 16, "accumulation": 2})
    mesh = make_mesh(config.mesh)
    moved = [Collective("all-gather", "bf16", 1000, (), 3), Collective("all-reduce", "f32", 500, (0, 1), 2)]
    found = roofline(config, LENGTH, mesh, SMALL, 5000, moved)
    compute = 2 * LENGTH * train_flops_per_token(config.model, LENGTH) / 1e9
    parts = (compute, 5000 / 1e6, 4000 / 1e6)
    assert (found["compute_seconds"], found["memory_seconds"], found["collective_seconds"]) == pytest.approx(parts)
    assert found["step_seconds_all_at_once"] == pytest.approx(max(parts))
    assert found["step_seconds_one_by_one"] == pytest.approx(sum(parts))
    assert found["mfu_one_by_one"] == pytest.approx(compute / sum(parts))
    assert found["tokens_per_second_per_device_all_at_once"] == pytest.approx(2 * LENGTH / max(parts))
    params = {"a": jax.ShapeDtypeStruct((10, 10), jnp.float32)}
    # State twice; two parts, two passes, four bytes a weight.
    assert step_traffic_bound(config, params, 70, mesh) == 140 + 2 * 2 * 100 * 4


def test_arrays_that_are_not_cut_are_named():
    mesh = jax.make_mesh((2, 2, 1, 2), ("data", "fsdp", "sequence", "tensor"), (AxisType.Auto,) * 4)

    def array(*spec):
        return jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    tree = {
        "both": array("fsdp", "tensor"),
        "together": array(("fsdp", "tensor")),
        "half": array("fsdp"),
        "no": array(),
    }
    found = {array.name: array for array in replicated_arrays(tree, mesh, threshold=1000)}
    assert {name: array.axes for name, array in found.items()} == {"half": ("tensor",), "no": ("fsdp", "tensor")}
    assert found["no"].nbytes == 1024
    assert replicated_arrays(tree, mesh, threshold=1024) == []


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    device_kind: str
    process_index: int = 0


def mesh_of(*devices):
    return types.SimpleNamespace(devices=np.asarray(devices, object), size=len(devices))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_this_compiler_takes_every_option_of_the_table(platform):
    """The options of a GPU have their names and types in every jaxlib; those of TPUs are libtpu's."""
    named = {each.name: each.value for each in OPTIONS if platform in each.devices}
    assert named
    jax.jit(jnp.negative, compiler_options=named)(1.0)


def test_every_option_has_a_reason_and_one_value_for_a_device():
    assert all(each.reason for each in OPTIONS)
    pairs = [(each.name, device) for each in OPTIONS for device in each.devices]
    assert len(set(pairs)) == len(pairs)


def test_options_go_by_the_device():
    v5p, gpu = Device("tpu", "TPU v5"), Device("gpu", "NVIDIA H100 80GB HBM3")
    for_tpu = options_for(v5p)
    assert for_tpu["xla_tpu_scoped_vmem_limit_kib"] == "65536"  # libtpu reads texts
    assert for_tpu["xla_enable_async_all_gather"] == "true"
    for_gpus = options_for(gpu)
    assert for_gpus["xla_gpu_enable_latency_hiding_scheduler"] is True
    assert for_gpus["xla_gpu_all_gather_combine_threshold_bytes"] == 1 << 30
    assert compiler_options(mesh_of(gpu)) == {}  # nothing to overlap
    assert compiler_options(mesh_of(Device("tpu", "TPU v4"))) == {}
    assert compiler_options(mesh_of(v5p), "none") == {}


def test_options_that_this_compiler_does_not_know_are_left_out_with_a_line(monkeypatch, capsys):
    known = next(each for each in OPTIONS if "cpu" in each.devices)
    unknown = Option("xla_cpu_no_such_option", True, ("cpu",), "to be refused")
    monkeypatch.setattr("chameleon_jax.runtime.compiler_options.OPTIONS", (unknown, known))
    with jax.set_mesh(make_mesh(MeshConfig())):
        for _ in range(2):
            assert compiler_options(make_mesh(MeshConfig())) == {known.name: known.value}
    said = capsys.readouterr().err
    assert said.count("compiler option xla_cpu_no_such_option is left out") == 1
