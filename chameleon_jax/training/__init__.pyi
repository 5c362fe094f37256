from chameleon_jax.errors import Stopped, TrainingError
from chameleon_jax.training.checkpoint import Checkpoints
from chameleon_jax.training.feeding import Batches, HeldOut, local_rows, place
from chameleon_jax.training.loop import train
from chameleon_jax.training.losses import token_losses, weighted_loss
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.optimizer import make_optimizer, make_schedule
from chameleon_jax.training.state import TrainState, abstract_state, init_state, model_params
from chameleon_jax.training.step import make_evaluation_step, make_train_step
from chameleon_jax.training.transformer import TransformerTask

__all__ = [
    "Batches",
    "Checkpoints",
    "HeldOut",
    "Stopped",
    "TrainState",
    "TrainingError",
    "TransformerTask",
    "abstract_state",
    "init_state",
    "local_rows",
    "make_evaluation_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "model_params",
    "place",
    "read_metrics",
    "token_losses",
    "train",
    "weighted_loss",
]
