"""What the training engine trains. A task is parameters, a loss of one batch, and what to report of it.

The engine (`loop`, `step`, `state`, `checkpoint`, `log`) knows nothing else of the Transformer (`transformer.py`) and
of the image tokenizer (`image_tokenizer_task.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.config import RunConfig

Batch = Any
"""A named tuple of arrays whose first axis is that of the batch, such as `chameleon_jax.batch.Batch`."""
Params = dict[str, Any]
Self = TypeVar("Self", bound="Task")


class Measures(NamedTuple):
    """What is measured in a step, beside the loss."""

    sums: dict[str, Array]
    """Scalars that are summed over the parts of a batch."""
    maxima: dict[str, Array]
    """Scalars of which the largest over the parts counts."""
    rows: dict[str, Array]
    """One value for each row."""
    statistics: dict[str, Array] = {}
    """Arrays that are summed over the parts of a batch, for `Task.update_frozen`."""


class Part(NamedTuple):
    """Which part of a batch a loss is of: row r of the batch is in part r mod `count`."""

    number: Array | int
    count: int
    total_weight: Array | None
    """`Task.weight` of the whole batch; None if the part is all of it."""


class Work(NamedTuple):
    """What a step processes."""

    unit: str
    """tokens or pictures"""
    amount: int
    """Of one batch, over all devices."""
    flops: float
    """Of one step, forward and backward, without recomputation."""


class Task(Protocol):
    config: RunConfig

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        """Raises `ConfigError` unless batch and parameters divide evenly."""

    def checked(self: Self, mesh: jax.sharding.Mesh) -> Self:
        """The task as it computes right values on these devices. Raises `TrainingError` if it cannot."""

    def on(self: Self, mesh: jax.sharding.Mesh, batch: Batch) -> Self:
        """The task for batches of this shape."""

    def check_batch(self, mesh: jax.sharding.Mesh, batch: Batch) -> None:
        """Raises `ConfigError` unless batches of this shape fit config and mesh."""

    def abstract_params(self) -> Params:
        """Shapes and types of the parameters, without boxes."""

    def params_shardings(self, mesh: jax.sharding.Mesh) -> Params: ...

    def batch_shardings(self, mesh: jax.sharding.Mesh) -> Batch:
        """Shardings of a batch; one may stand for all of its arrays."""

    def init_params(self, key: Array) -> Params: ...

    def first_params(
        self, mesh: jax.sharding.Mesh, target: Params, given: Callable[[Params], Params] | None
    ) -> Params | None:
        """The parameters before the first step. None: those of `init_params`.

        Args:
          target: shapes, types and shardings.
          given: the `initial_params` of `loop.train`.
        """

    def optimizer(self) -> optax.GradientTransformation: ...

    def is_trained(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at `path` has gradients and optimizer state. The others are frozen."""

    def mask(self, tree: Params) -> Params:
        """Gradients or updates of the trained parameters, with 0 where they must not change, and the same where
        parameters must stay equal. Masking twice is masking once."""

    def key(self, step: Array) -> Array | None:
        """Of what is random in a step; depends on seed and step alone. None if nothing is."""

    def weight(self, batch: Batch) -> Array:
        """What the mean of the loss is over, such as the number of targets."""

    def loss(self, params: Params, batch: Batch, key: Array | None, part: Part) -> tuple[Array, Measures]: ...

    def update_frozen(
        self, frozen: Params, statistics: Mapping[str, Array], step: Array
    ) -> tuple[Params, dict[str, Array]]:
        """The frozen parameters after the step of this number, for those that follow statistics rather than gradients;
        and scalars to report."""

    def compiler_options(self, mesh: jax.sharding.Mesh) -> dict[str, bool | int | str]:
        """XLA options of train and evaluation steps."""

    def signals(self, params: Params) -> dict[str, Array]:
        """Figures of the parameters for each line of metrics."""

    def summary(self, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """What a line of metrics says of the measures of some steps."""

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation reports, from the sums of its measures; `loss` is among them."""

    def progress(self, line: Mapping[str, Any]) -> dict[str, str]:
        """What the progress bar shows of a line of metrics with a summary."""

    def work(self, batch: Batch) -> Work: ...
