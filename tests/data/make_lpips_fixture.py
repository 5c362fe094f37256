"""Writes lpips.npz beside it: distances between random pictures by the lpips package, and their gradient.

    python tests/data/make_lpips_fixture.py [folder]

Needs torch, torchvision and lpips (2.13.0, 0.28.0 and 0.1.4 wrote the committed file). The weights are random, but the
same ones everywhere: 59 MB of them are not stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
"""Channels in and out, by number in torchvision's `vgg16().features`."""
WIDTHS = (64, 128, 256, 512, 512)


def random_weights() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """State dicts of torchvision's VGG16 without its classifier, and of the weights that LPIPS learned."""
    noise = np.random.RandomState(0).standard_normal(10_007).astype(np.float32)
    vgg, heads = {}, {}
    for layer, (into, out) in CONVOLUTIONS.items():
        scale = np.float32((2 / (9 * into)) ** 0.5)  # keeps the size of features
        vgg[f"features.{layer}.weight"] = scale * np.resize(np.roll(noise, 100 * layer), (out, into, 3, 3))
        vgg[f"features.{layer}.bias"] = np.float32(0.1) * np.roll(noise, 100 * layer + 50)[:out]
    for number, width in enumerate(WIDTHS):
        heads[f"lin{number}.model.1.weight"] = np.abs(np.roll(noise, number)[:width]).reshape(1, width, 1, 1)
    return vgg, heads


def main(folder: Path) -> None:
    import lpips
    import torch

    model = lpips.LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
    vgg, heads = random_weights()
    by_layer = {name.split(".")[-2]: name.rsplit(".", 1)[0] for name in model.net.state_dict()}
    state = {f"net.{by_layer[key.split('.')[1]]}.{key.split('.')[2]}": value for key, value in vgg.items()}
    state |= heads | {f"lins.{key.removeprefix('lin')}": value for key, value in heads.items()}
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) == {"scaling_layer.shift", "scaling_layer.scale"}, missing

    pictures = np.random.RandomState(1).randint(0, 256, (2, 2, 40, 32, 3)).astype(np.uint8)
    target, output = (torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in pictures)
    output.requires_grad_()
    distances = model(target, output)[:, 0, 0, 0]
    distances.sum().backward()
    np.savez_compressed(
        folder / "lpips.npz",
        target=pictures[0],
        output=pictures[1],
        distances=distances.detach().numpy(),
        gradient=output.grad.permute(0, 2, 3, 1).numpy(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
