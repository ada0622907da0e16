"""train: an objective -> better weights.

Comes in: a model, a loader of rows, an objective. Goes out: the model with better weights, and a record of how. It does
not know what the rows mean or which stage it serves.
"""

from liuli.train.log import RunLog, StageState, tell_left_out
from liuli.train.loop import FitResult, LoopOptions, fit
from liuli.train.loss import Objective, TensorBatch, next_target, next_token
from liuli.train.machine import Machine, measure_machine
from liuli.train.optimizer import Optimizer, OptimizerOptions, one_rate
from liuli.train.pace import Pace, schedule

__all__ = [
    "FitResult",
    "LoopOptions",
    "Machine",
    "Objective",
    "Optimizer",
    "OptimizerOptions",
    "Pace",
    "RunLog",
    "StageState",
    "TensorBatch",
    "fit",
    "measure_machine",
    "next_target",
    "next_token",
    "one_rate",
    "schedule",
    "tell_left_out",
]
