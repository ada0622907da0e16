"""Objectives: (model, batch) -> sum of weighted losses. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
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
    return cross_entropy(
        hidden(model, batch).flatten(0, 1),
        model.head_VD,
        batch.targets_BT.flatten(),
        batch.weights_BT.flatten(),
        model.config.softcap,
    )


def next_target(model: Transformer, batch: TensorBatch) -> Tensor:
    """`next_token`, for rows in which many positions have no target: the head computes those that have one alone."""
    return loss_of_targets(model, hidden(model, batch), batch)


def compiled(objective: Objective) -> Objective:
    """The same through torch.compile. How many targets `next_target` has differs from batch to batch, so its head and
    loss stay as they are: the body alone is compiled."""
    if objective is not next_target:
        return torch.compile(objective, dynamic=False)
    compiled_hidden = torch.compile(hidden, dynamic=False)
    return lambda model, batch: loss_of_targets(model, compiled_hidden(model, batch), batch)


def hidden(model: Transformer, batch: TensorBatch) -> Tensor:
    """What the last layer says of every token, (B, T, D)."""
    return model.hidden(batch.tokens_BT, documents_BT=batch.documents_BT)


def loss_of_targets(model: Transformer, x_BTD: Tensor, batch: TensorBatch) -> Tensor:
    """`next_target`'s loss of what `hidden` gave."""
    weights_N = batch.weights_BT.flatten()
    kept = weights_N.nonzero().squeeze(1)
    x_ND = x_BTD.flatten(0, 1).index_select(0, kept)
    return cross_entropy(x_ND, model.head_VD, batch.targets_BT.flatten()[kept], weights_N[kept], model.config.softcap)
