"""Versions of the installed packages on which results depend."""

from __future__ import annotations

import importlib.metadata

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "chameleon-jax")


def versions(*more: str) -> dict[str, str]:
    """Version by package, for those in `PACKAGES` and `more` that are installed."""
    found = {}
    for package in (*PACKAGES, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
