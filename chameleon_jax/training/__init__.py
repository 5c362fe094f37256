"""Training: the loop, and its parts for a loop of one's own.

`train` takes a config and Batches, and does everything else: checkpoints, metrics, evaluation, going on after a stop.
`make_train_step` and `make_evaluation_step` are the jitted functions inside it, `init_state` the state that they begin
with, and `model_params` gives the parameters to save.
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
    "chameleon_jax.training.step": ("batch_loss", "make_evaluation_step", "make_train_step"),
}
"""Where the public names are defined; `__init__.pyi` says the same to type checkers."""

__all__, __getattr__, __dir__ = lazy_names(__name__, HOMES)
