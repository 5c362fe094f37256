"""Reads and writes low-rank adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.

Adapters trained here on a released model can be loaded onto transformers' copy of that model, and vice versa.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from chameleon_jax.config import LoRAConfig, TransformerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.models.lora import A, B, is_adapter, merge
from chameleon_jax.models.transformer import parameter_shapes
from chameleon_jax.runtime.cloud import on_disk
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.runtime.folders import Kind, new_folder, read_marker
from chameleon_jax.weights.layout import TRANSFORMER
from chameleon_jax.weights.safetensors import read_safetensors, write_safetensors
from chameleon_jax.weights.sources import leaves_of, tree_of
from chameleon_jax.weights.stored import FLOATS, all_finite

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ADAPTERS = Kind("adapters", lambda folder: "peft_type" in read_marker(folder / CONFIG), (CONFIG, TENSORS))

_MODULES = {
    rule.leaf.rsplit("/")[-1]: rule.huggingface.removesuffix(".weight")
    for rule in TRANSFORMER
    if rule.leaf.rsplit("/")[-1] in LoRAConfig.targets
}
"""Our name for each matrix that may have an adapter, mapped to transformers' name."""

_SUPPORTED = {
    "use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {},
    "alpha_pattern": {}, "layers_to_transform": None, "fan_in_fan_out": False,
}  # fmt: skip
"""PEFT options that change what adapters compute, each with the only supported value."""


def _keys(leaf: str, layers: int) -> list[str]:
    """Keys in the file, one per layer, of a leaf such as 'layers/attention/q_lora_a'."""
    name = leaf.rsplit("/")[-1]
    module, factor = _MODULES[name.removesuffix(A).removesuffix(B)], "lora_A" if name.endswith(A) else "lora_B"
    return [f"base_model.model.model.layers.{layer}.{module}.{factor}.weight" for layer in range(layers)]


def _stored_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of one layer of a leaf in the file: [rank, inputs] or [outputs, rank]."""
    _, *sizes = shape
    return (sizes[-1], int(np.prod(sizes[:-1]))) if leaf.endswith(A) else (int(np.prod(sizes[1:])), sizes[0])


def write_adapters(folder: Path, lora: LoRAConfig, params: Any, base: str) -> None:
    """Writes the adapters in `params` to a folder, replacing older adapters. All processes must call it.

    Args:
      base: name of the model they were trained on, recorded in the file.
    """
    leaves = {name: leaf for name, leaf in leaves_of(params).items() if is_adapter(name)}
    values = {}
    for name, leaf in leaves.items():
        whole = np.asarray(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        flat = (-1, whole.shape[-1]) if name.endswith(A) else (whole.shape[1], -1)
        for key, layer in zip(_keys(name, len(whole)), whole, strict=True):
            values[key] = np.ascontiguousarray(layer.reshape(flat).T)
    if not is_first():
        return
    header = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": lora.alpha, "lora_dropout": 0.0, "inference_mode": True, **_SUPPORTED,
        "target_modules": [_MODULES[name].rsplit(".")[-1] for name in lora.targets],
    }  # fmt: skip
    with new_folder(folder, ADAPTERS) as tmp:
        specs = {key: (value.shape, value.dtype) for key, value in values.items()}
        write_safetensors(tmp / TENSORS, specs, values.__getitem__)
        write_json(tmp / CONFIG, header)


def read_adapters(folder: str | Path, config: TransformerConfig) -> tuple[LoRAConfig, Any]:
    """Reads adapters from their folder, or from the folder of the run that trained them.

    Args:
      config: architecture of the model they are for.

    Returns:
      Their config, and a tree of the adapters' leaves alone, in float32.

    Raises:
      FileError: if they are damaged, of an unsupported kind, or for a model of another shape.
    """
    folder = Path(on_disk(folder))
    if not (folder / CONFIG).is_file() and (folder / "adapters" / CONFIG).is_file():
        folder = folder / "adapters"
    lora = _read_config(folder / CONFIG)
    path = folder / TENSORS
    tensors = read_safetensors(path)
    leaves = {}
    for name, leaf_shape in parameter_shapes(config, lora).items():
        if not is_adapter(name):
            continue
        shape, layers = _stored_shape(name, leaf_shape), []
        for key in _keys(name, config.num_layers):
            tensor = tensors.pop(key, None)
            if tensor is None or tensor.shape != shape:
                found = f"has shape {tensor.shape}" if tensor else "is missing"
                raise FileError(
                    f"{path}: {key} {found}, but adapters of rank {lora.rank} for this model need {shape}; they belong "
                    "to another model"
                )
            if tensor.dtype not in FLOATS or not all_finite(tensor.view()):
                raise FileError(f"{path}: {key} holds infinite values or NaN, or is of type {tensor.dtype}")
            layers.append(tensor.view().astype(np.float32).T.reshape(leaf_shape[1:]))
        leaves[name] = np.stack(layers)
    if tensors:
        raise FileError(
            f"{path}: {next(iter(tensors))} is not a parameter of this model; the adapters belong to another model"
        )
    return lora, tree_of(leaves)


def _read_config(path: Path) -> LoRAConfig:
    header = read_json(path)
    if not isinstance(header, dict) or header.get("peft_type") != "LORA":
        raise FileError(f"{path}: does not describe low-rank adapters (peft_type LORA)")
    for key, supported in _SUPPORTED.items():
        if header.get(key, supported) not in (supported, None):
            raise FileError(f"{path}: {key} = {str(header[key])[:60]!r}: only {supported!r} is supported")
    rank, alpha, modules = header.get("r"), header.get("lora_alpha"), header.get("target_modules")
    if type(rank) is not int or not 0 < rank <= 65536 or type(alpha) not in (int, float) or not alpha > 0:
        raise FileError(f"{path}: r = {str(rank)[:60]}, lora_alpha = {str(alpha)[:60]}: must be positive numbers")
    names = {module.rsplit(".")[-1]: name for name, module in _MODULES.items()}
    if (
        not isinstance(modules, list)
        or not modules
        or not all(isinstance(module, str) and module in names for module in modules)
    ):
        raise FileError(f"{path}: target_modules = {str(modules)[:100]!r}: must be some of {', '.join(names)}")
    return LoRAConfig(rank, float(alpha), tuple(dict.fromkeys(names[module] for module in modules)))


def add_adapters(params: Any, config: TransformerConfig, folder: str | Path) -> Any:
    """Merges the adapters in a folder into `params`, whose buffers are donated.

    Raises:
      FileError: as `read_adapters` does.
    """
    lora, adapters = read_adapters(folder, config)
    return jax.jit(functools.partial(_merged, config=lora), donate_argnums=0)(params, adapters)


def _merged(params: Any, adapters: Any, config: LoRAConfig) -> Any:
    return merge(tree_of({**leaves_of(params), **leaves_of(adapters)}), config)
