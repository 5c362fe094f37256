"""Which versions of what matters are installed."""

from __future__ import annotations

import importlib.metadata

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "chameleon-jax")


def versions(*also: str) -> dict[str, str]:
    """Version by package, of those in `PACKAGES` and those named that are installed."""
    found = {}
    for package in (*PACKAGES, *also):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
