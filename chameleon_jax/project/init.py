"""`chameleon init`: looks at a folder of one's own, and writes the YAML files that make a model of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from chameleon_jax.config import ConfigError, InitCommand, TextTokenizerConfig, TrainConfig, from_dict
from chameleon_jax.config.yaml_files import parse_yaml
from chameleon_jax.errors import FileError
from chameleon_jax.project.look import Found, look
from chameleon_jax.project.recipes import FILES, PICTURE_ONLY, augmentation, recipes
from chameleon_jax.project.sizes import Sizes, choose
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.files import write_json, write_text
from chameleon_jax.runtime.folders import check_writable, read_marker
from chameleon_jax.tokens.text import train_text_tokenizer
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand
from data_pipeline.sources.source import place_of

MARKER = "init.json"
"""Says that the folder is ours, and what was written into it."""
COMMANDS = {
    "train-text-tokenizer": TextTokenizerCommand, "train-image-tokenizer": ImageTokenizerCommand,
    "prepare": PrepareCommand, "train": TrainConfig,
}  # fmt: skip
FEWEST, MOST_HELD_OUT = 8, 500
"""Documents without which nothing can be learnt and measured; and those that are held out at most."""


def init(command: InitCommand, *, files: str) -> dict[str, str]:
    """Writes the YAML files. Returns what was found and what was chosen, for people."""
    import jax

    if is_cloud(command.output) or is_cloud(files):
        raise ConfigError("a folder on this machine is needed; write the YAML files for a bucket by hand")
    output = Path(command.output).absolute()
    _check(output, Path(files).absolute())
    found = _with_names(look(files))
    if (records := sum(each.records for each in found)) < FEWEST:
        raise ConfigError(f"{files}: has {records} documents; at least {FEWEST} are needed to learn and to measure")
    held_out = {each.source["name"]: share_to_hold_out(each) for each in found}
    sizes = choose(found, jax.default_backend() == "cpu", jax.device_count(), _memory_of_device())
    sizes = sizes._replace(vocab_size=_fitting(sizes.vocab_size, _texts(found, held_out)))
    texts = recipes(found, held_out, sizes, output)
    for name, text in texts.items():  # a mistake of ours is found here
        from_dict(COMMANDS[name], parse_yaml(text), name)
    for name, text in texts.items():
        write_text(output / f"{name}.yaml", text)
    for name in FILES:
        if name not in texts:
            (output / f"{name}.yaml").unlink(missing_ok=True)
    write_json(output / MARKER, {name: _hash(text) for name, text in texts.items()})
    return dict(_said(found, held_out, sizes))


def _memory_of_device() -> float | None:
    """Bytes that programs may take on an accelerator; None if that is not known, and for a CPU."""
    import jax

    device = jax.local_devices()[0]
    accelerator, stats = find_accelerator(device), device.memory_stats()
    if stats and device.platform != "cpu":
        return stats["bytes_limit"]
    return accelerator and accelerator.memory


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check(output: Path, files: Path) -> None:
    """Raises `FileError` unless the YAML files may be written without losing anything."""
    check_writable(output)
    inside = os.path.realpath(output).startswith(os.path.join(os.path.realpath(files), ""))
    if inside or os.path.realpath(output) == os.path.realpath(files):
        raise FileError(f"{output}: is inside {files}, where nothing is written; choose another folder")
    if not output.is_dir() or not os.listdir(output):
        return
    written = read_marker(output / MARKER)
    if not written:
        raise FileError(f"{output}: is not empty, and `chameleon init` did not write it; choose another folder")
    for name, digest in written.items():
        path = output / f"{name}.yaml"
        if path.exists() and _hash(path.read_text(encoding="utf-8")) != digest:
            raise FileError(f"{path}: was edited since `chameleon init` wrote it; choose another folder or remove it")


def _with_names(found: Sequence[Found]) -> list[Found]:
    """The sources with names of their own, after their folders or files."""
    named: dict[str, Found] = {}
    for each in found:
        path = Path(each.source["path"])
        path = path.parent if "*" in path.name else path
        stem = path.name if path.is_dir() else path.name.split(".")[0]
        base = re.sub(r"[^0-9A-Za-z_-]+", "_", stem).strip("_-") or each.source["kind"]
        name, number = base, 2
        while name in named:
            name, number = f"{base}_{number}", number + 1
        kind, path_, rest = each.source["kind"], each.source["path"], dict(each.source)
        source = {"kind": kind, "name": name, "path": path_, **rest}
        named[name] = each._replace(source=source)
    return list(named.values())


def share_to_hold_out(found: Found) -> float:
    """A tenth, or what is enough to measure on. Where a hash divides few records unevenly, the share that holds out a
    tenth of them after all."""
    wanted = max(1, min(MOST_HELD_OUT, round(0.1 * found.records)))
    if not found.exact:
        return float(f"{wanted / found.records:.2g}")
    places = sorted(map(place_of, found.ids))
    usual = float(f"{wanted / found.records:.1g}")
    if 0.7 * wanted <= sum(place < usual for place in places) <= 1.5 * wanted:
        return usual
    low, high = places[wanted - 1], places[wanted]
    shares = (round((low + high) / 2, digits) for digits in range(1, 17))
    return next(share for share in shares if low < share < high)


def _texts(found: Sequence[Found], held_out: dict[str, float]) -> list[str]:
    """Texts to learn from, as the text tokenizer will get them; no more than tell what fits."""
    texts = [
        text for each in found for record_id, text in each.texts if place_of(record_id) >= held_out[each.source["name"]]
    ]
    return texts or [PICTURE_ONLY.replace("{image}", "")]


def _fitting(vocab_size: int, texts: Sequence[str]) -> int:
    """The vocabulary, or the largest one that so little text can fill."""
    try:
        train_text_tokenizer(TextTokenizerConfig(vocab_size=vocab_size), texts)
    except ValueError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None:
            raise ConfigError(str(error)) from None
        return int(limit[1])
    return vocab_size


def _said(found: Sequence[Found], held_out: dict[str, float], sizes: Sizes) -> list[tuple[str, str]]:
    """Lines for people."""
    lines = []
    for each in found:
        name = each.source["name"]
        about = "" if each.exact else "about "
        pixels = f", {each.shorter_side} pixels at the shorter side" if each.shorter_side else ""
        bad = f"; {len(each.rejected)} cannot be read, such as {each.rejected[0].place}" if each.rejected else ""
        lines.append((name, f"{about}{each.records:,} {each.said}{pixels}{bad}"))
        wanted = sum(place_of(record_id) < held_out[name] for record_id in each.ids)
        amount = f"{wanted}" if each.exact else f"{held_out[name]:.2g} of all"
        lines.append((f"{name}, held out", f"{amount}, to measure on"))
    lines.append(("text", f"{sizes.vocab_size:,} pieces"))
    if sizes.resolution:
        lines.append(("pictures", f"{sizes.resolution} x {sizes.resolution} pixels become {sizes.grid**2} codes of "
                      f"{sizes.num_codes:,}"))  # fmt: skip
    changed = sorted({name for each in found for name in augmentation(each, sizes)})
    if changed:
        lines.append(("augmentation", f"{sizes.copies} copies of each, each its own way: {', '.join(changed)}"))
    lines.append(("model", f"{sizes.num_layers} layers of width {sizes.d_model}, {sizes.steps:,} steps of "
                  f"{sizes.batch_size} rows of {sizes.sequence_length} tokens"))  # fmt: skip
    lines.append(("for", "a CPU" if sizes.is_cpu else "an accelerator"))
    return lines
