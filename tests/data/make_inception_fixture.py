"""Writes inception.npz beside it: features of the pictures in lpips.npz by the Inception network of the FID, in torch.

    python tests/data/make_inception_fixture.py [folder]

Needs torch (2.13.0 wrote the committed file). The network is written down here once more, layer by layer in the form in
which pytorch-fid's file has them. The weights are random, but the same ones everywhere: 87 MB of them are not stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Layer = tuple[str, int, int, int, int]
"""Name, channels in and out, height and width of the kernel."""


def layers() -> Iterator[Layer]:
    yield from (
        ("Conv2d_1a_3x3", 3, 32, 3, 3), ("Conv2d_2a_3x3", 32, 32, 3, 3), ("Conv2d_2b_3x3", 32, 64, 3, 3),
        ("Conv2d_3b_1x1", 64, 80, 1, 1), ("Conv2d_4a_3x3", 80, 192, 3, 3),
    )  # fmt: skip
    for name, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        yield from _of_block(f"Mixed_{name}", [
            ("branch1x1", inputs, 64, 1, 1), ("branch5x5_1", inputs, 48, 1, 1), ("branch5x5_2", 48, 64, 5, 5),
            ("branch3x3dbl_1", inputs, 64, 1, 1), ("branch3x3dbl_2", 64, 96, 3, 3), ("branch3x3dbl_3", 96, 96, 3, 3),
            ("branch_pool", inputs, pooled, 1, 1),
        ])  # fmt: skip
    yield from _of_block("Mixed_6a", [
        ("branch3x3", 288, 384, 3, 3), ("branch3x3dbl_1", 288, 64, 1, 1), ("branch3x3dbl_2", 64, 96, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
    ])  # fmt: skip
    for name, n in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        yield from _of_block(f"Mixed_{name}", [
            ("branch1x1", 768, 192, 1, 1), ("branch7x7_1", 768, n, 1, 1), ("branch7x7_2", n, n, 1, 7),
            ("branch7x7_3", n, 192, 7, 1), ("branch7x7dbl_1", 768, n, 1, 1), ("branch7x7dbl_2", n, n, 7, 1),
            ("branch7x7dbl_3", n, n, 1, 7), ("branch7x7dbl_4", n, n, 7, 1), ("branch7x7dbl_5", n, 192, 1, 7),
            ("branch_pool", 768, 192, 1, 1),
        ])  # fmt: skip
    yield from _of_block("Mixed_7a", [
        ("branch3x3_1", 768, 192, 1, 1), ("branch3x3_2", 192, 320, 3, 3), ("branch7x7x3_1", 768, 192, 1, 1),
        ("branch7x7x3_2", 192, 192, 1, 7), ("branch7x7x3_3", 192, 192, 7, 1), ("branch7x7x3_4", 192, 192, 3, 3),
    ])  # fmt: skip
    for name, inputs in (("7b", 1280), ("7c", 2048)):
        yield from _of_block(f"Mixed_{name}", [
            ("branch1x1", inputs, 320, 1, 1), ("branch3x3_1", inputs, 384, 1, 1), ("branch3x3_2a", 384, 384, 1, 3),
            ("branch3x3_2b", 384, 384, 3, 1), ("branch3x3dbl_1", inputs, 448, 1, 1),
            ("branch3x3dbl_2", 448, 384, 3, 3), ("branch3x3dbl_3a", 384, 384, 1, 3),
            ("branch3x3dbl_3b", 384, 384, 3, 1), ("branch_pool", inputs, 192, 1, 1),
        ])  # fmt: skip


def _of_block(block: str, layers: list[Layer]) -> Iterator[Layer]:
    return ((f"{block}.{name}", *sizes) for name, *sizes in layers)


def random_weights() -> dict[str, np.ndarray]:
    """A state dict with the names of pytorch-fid's file, without its classifier."""
    noise, state = np.random.RandomState(0).standard_normal(10_007).astype(np.float32), {}
    for number, (name, inputs, outputs, height, width) in enumerate(layers()):
        own = np.roll(noise, 100 * number)
        scale = np.float32((2 / (height * width * inputs)) ** 0.5)  # keeps the size of features
        state[f"{name}.conv.weight"] = scale * np.resize(own, (outputs, inputs, height, width))
        state[f"{name}.bn.weight"] = 1 + np.float32(0.1) * own[1000 : 1000 + outputs]
        state[f"{name}.bn.bias"] = np.float32(0.1) * own[2000 : 2000 + outputs]
        state[f"{name}.bn.running_mean"] = np.float32(0.1) * own[3000 : 3000 + outputs]
        state[f"{name}.bn.running_var"] = np.square(1 + np.float32(0.1) * own[4000 : 4000 + outputs])
    return state


def features(state, x):
    """Of pictures `[n, 3, h, w]` in [-1, 1], in torch."""
    import torch
    from torch.nn import functional as F

    def conv(name, x, stride=1, same=True):
        kernel, norm = state[f"{name}.conv.weight"], [state[f"{name}.bn.{key}"] for key in
                                                     ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
        padding = [side // 2 if same else 0 for side in kernel.shape[2:]]
        return F.relu(F.batch_norm(F.conv2d(x, kernel, stride=stride, padding=padding), *norm, eps=1e-3))

    def chain(block, x, *names):
        for name in names:
            x = conv(f"{block}.{name}", x)
        return x

    def average(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    x = conv("Conv2d_1a_3x3", x, 2, same=False)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x, same=False))
    x = conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2))
    x = F.max_pool2d(conv("Conv2d_4a_3x3", x, same=False), 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = torch.cat([
            chain(b, x, "branch1x1"), chain(b, x, "branch5x5_1", "branch5x5_2"),
            chain(b, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), chain(b, average(x), "branch_pool"),
        ], 1)  # fmt: skip
    double = chain("Mixed_6a", x, "branch3x3dbl_1", "branch3x3dbl_2")
    x = torch.cat([
        conv("Mixed_6a.branch3x3", x, 2, same=False), conv("Mixed_6a.branch3x3dbl_3", double, 2, same=False),
        F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = torch.cat([
            chain(b, x, "branch1x1"), chain(b, x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
            chain(b, x, *(f"branch7x7dbl_{number}" for number in range(1, 6))), chain(b, average(x), "branch_pool"),
        ], 1)  # fmt: skip
    x = torch.cat([
        conv("Mixed_7a.branch3x3_2", chain("Mixed_7a", x, "branch3x3_1"), 2, same=False),
        conv("Mixed_7a.branch7x7x3_4",
             chain("Mixed_7a", x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"), 2, same=False),
        F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip
    for b in ("Mixed_7b", "Mixed_7c"):
        single, double = chain(b, x, "branch3x3_1"), chain(b, x, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = F.max_pool2d(x, 3, 1, 1) if b == "Mixed_7c" else average(x)
        x = torch.cat([
            chain(b, x, "branch1x1"), chain(b, single, "branch3x3_2a"), chain(b, single, "branch3x3_2b"),
            chain(b, double, "branch3x3dbl_3a"), chain(b, double, "branch3x3dbl_3b"), chain(b, pooled, "branch_pool"),
        ], 1)  # fmt: skip
    return x.mean((2, 3))


def main(folder: Path) -> None:
    import torch

    with np.load(Path(__file__).parent / "lpips.npz") as file:
        pictures = np.concatenate([file["target"], file["output"]])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    resized, smaller = (
        torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        for side in (299, 17)
    )
    state = {key: torch.from_numpy(value) for key, value in random_weights().items()}
    with torch.no_grad():
        found = features(state, 2 * resized - 1)
    assert 0.01 < found.std() < 100, found.std()
    smaller = smaller.permute(0, 2, 3, 1)
    np.savez_compressed(folder / "inception.npz", features=found.numpy(), smaller=smaller.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
