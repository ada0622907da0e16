"""Objectives: (model, batch) -> sum of weighted losses. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from liuli.model import Transformer
from liuli.model.ops import cross_entropy


class TensorBatch(NamedTuple):
    """One micro-batch: tokens and targets (B, T) int64, weights (B, T) float32, documents (B, T) int64 or None."""

    tokens_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    documents_BT: Tensor | None = None


Objective = Callable[[Transformer, TensorBatch], Tensor]


def next_token(model: Transformer, batch: TensorBatch) -> Tensor:
    """Sum over targets of weight * -log p(target | tokens before it), in nats: a float32 scalar.

    The loop divides by the number of target tokens of the whole optimiser step, all micro-batches together, so that a
    batch cut in two has the same gradient as the whole.
    """
    x_BTD = model.hidden(batch.tokens_BT, documents_BT=batch.documents_BT)
    return cross_entropy(
        x_BTD.flatten(0, 1),
        model.head_VD,
        batch.targets_BT.flatten(),
        batch.weights_BT.flatten(),
        model.config.softcap,
    )
