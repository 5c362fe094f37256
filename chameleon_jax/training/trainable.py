"""Parameters in two trees: those that are trained, and those that are frozen."""

from __future__ import annotations

from chameleon_jax.training.task import Params, Task


def split(params: Params, task: Task) -> tuple[Params, Params]:
    """Splits the parameters into trained and frozen ones; each tree lacks the leaves of the other.

    Only the former have gradients and optimizer state.
    """

    def part(tree: Params, wanted: bool, path: tuple[str, ...] = ()) -> Params:
        found = {}
        for name, child in tree.items():
            if isinstance(child, dict):
                child = part(child, wanted, (*path, name))
                if child:
                    found[name] = child
            elif task.is_trained((*path, name)) == wanted:
                found[name] = child
        return found

    return part(params, True), part(params, False)


def join(trained: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    joined = dict(frozen)
    for name, child in trained.items():
        joined[name] = join(child, frozen.get(name, {})) if isinstance(child, dict) else child
    return joined
