"""The training loop, and its parts for writing your own.

`train` takes a task, such as a `TransformerTask`, and batches, and does the rest: checkpoints, metrics, evaluation,
resuming. `make_train_step` and `make_evaluation_step` are the jitted functions of a task, `init_state` creates
their first state, and `model_params` returns the parameters to save.
"""

from chameleon_jax.runtime.lazy_names import lazy_names

HOMES = {
    "chameleon_jax.errors": ("Stopped", "TrainingError"),
    "chameleon_jax.training.checkpoint": ("Checkpoints",),
    "chameleon_jax.training.feeding": ("Batches", "HeldOut", "local_rows", "place"),
    "chameleon_jax.training.loop": ("train",),
    "chameleon_jax.training.losses": ("token_losses", "weighted_loss"),
    "chameleon_jax.training.metrics": ("read_metrics",),
    "chameleon_jax.training.optimizer": ("make_optimizer", "make_schedule"),
    "chameleon_jax.training.state": ("TrainState", "abstract_state", "init_state", "model_params"),
    "chameleon_jax.training.step": ("make_evaluation_step", "make_train_step"),
    "chameleon_jax.training.transformer": ("TransformerTask",),
}
"""The modules that define the public names; `__init__.pyi` is the same for type checkers."""

__all__, __getattr__, __dir__ = lazy_names(__name__, HOMES)
