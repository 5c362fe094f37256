"""Shape annotations: jaxtyping where it is installed, plain placeholders where it is not.

The model and the train step run with nothing but jax, flax, optax and numpy; the tests install jaxtyping and check
every annotated shape while they run.
"""

from __future__ import annotations

try:
    from jaxtyping import Array, Bool, Float, Int, Num
except ModuleNotFoundError:
    from jax import Array

    class _AnyShape:
        def __class_getitem__(cls, item):
            return Array

    Bool = Float = Int = Num = _AnyShape

__all__ = ["Array", "Bool", "Float", "Int", "Num"]
