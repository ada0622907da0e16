"""Learning from rewards in several processes: torchrun starts them, FSDP2 shards the weights, each scores some rows.

Applied from outside: neither the model nor the algorithm knows of it. Every process holds the whole round (tokens, log-
probabilities, advantages: small numbers), so whitening, groups, the weights of tokens and all figures are those of one
process; only the passes through the model are divided. `Shared` is an actor like any other: it scores its own rows and
gets the others' numbers from the other processes, so a loss made of it is the loss of the whole step, whichever rank
asks, and its gradient, summed over the ranks, is the whole gradient.

Does not know: rollouts (rows are whatever has tokens_BT and part()), losses, files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.train.optimizer import Optimizer, OptimizerOptions

Made = TypeVar("Made")


class Rows(Protocol):
    """Answers to be scored; `Rollouts` are such."""

    @property
    def tokens_BT(self) -> Tensor: ...

    def part(self, index_N: Tensor) -> Self: ...


R = TypeVar("R", bound=Rows, contravariant=True)
S = TypeVar("S", bound=tuple[Tensor, ...], covariant=True)


class Scorer(Protocol[R, S]):
    """Rows in; a named tuple of numbers of their tokens out, (B, T) each."""

    def score(self, rollouts: R) -> S: ...


# --- processes -------------------------------------------------------------------------------------------------------


def join(device: str = "cpu") -> tuple[int, int]:
    """Meet the processes that torchrun started: this one's rank, and how many; (0, 1) without torchrun."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def leave() -> None:
    """Wait for the others and end this process, successfully. What is to be written must have been written."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort a normal exit now and then (2 of 140 measured, 0 of 140 this way)


def from_first(make: Callable[[], Made]) -> Made:
    """What rank 0 makes, on every rank: rollouts drawn from a server, rewards, how much of a budget of time is used.

    Raises on every rank what `make` raises on rank 0, so that none waits for a process that has given up.
    """
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return cast(Made, found[0])


# --- weights ---------------------------------------------------------------------------------------------------------


def sharded(module: nn.Module, options: OptimizerOptions) -> Optimizer:
    """Shard the weights of a module (a policy, or a ModuleList of policy and critic) over all processes, and the
    optimizer of the shards. Weights stay float32; the model itself casts them where it uses them.

    Raises LiuliError for Muon: it makes whole matrices orthogonal, and a shard is not one.
    """
    if options.kind != "adamw":
        raise LiuliError(
            "Muon needs whole matrices, and here each process holds a shard of them", "optimizer", 'use kind = "adamw"'
        )
    for body in [part for part in module.modules() if isinstance(part, Transformer)]:
        for block in body.blocks:
            fully_shard(block)
    for root in module.children() if isinstance(module, nn.ModuleList) else [module]:
        # kept whole between forward and backward: the head is read after `hidden` has returned, and may be tied
        fully_shard(root, reshard_after_forward=False)
        if isinstance(root, Transformer):
            register_fsdp_forward_method(root, "hidden")
    return Optimizer(module, options)


def gathered(state: Any) -> Any:
    """A nested state with every shard made whole, on the CPU: what goes into a model folder or to an engine of one
    process. All processes must call it."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    return state.cpu() if isinstance(state, Tensor) else state


# --- rows ------------------------------------------------------------------------------------------------------------


def own_rows(count: int, rank: int, ranks: int) -> Tensor:
    """The rows that a rank takes: every ranks-th, so that rows sorted by length are dealt evenly. May be none."""
    return torch.arange(count)[rank::ranks]


@dataclass(frozen=True)
class Shared(Generic[R, S]):
    """An actor that scores its share of the rows and gets the rest from the other processes; all must call it alike.

    Values are the same on every rank. Gradients flow through this rank's rows alone, times the number of ranks, for
    FSDP2 (and DDP) take the mean over ranks where the sum is wanted. Another loss, added beside (PPO-ptx), is thus
    averaged: give each rank rows of its own. Step.micro_tokens counts the tokens of a pass on all ranks together.
    """

    actor: Scorer[R, S]

    def score(self, rollouts: R) -> S:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        B, T = rollouts.tokens_BT.shape
        index_N = own_rows(B, rank, ranks)
        idle = len(index_N) == 0  # must still go through the model, where the others wait for its shards
        index_N = torch.zeros(1, dtype=torch.int64) if idle else index_N
        own = self.actor.score(rollouts.part(index_N))
        own_SNT = torch.stack(tuple(own))
        index_N = index_N.to(own_SNT.device)
        whole_SBT = own_SNT.new_zeros(len(own), B, T)
        if not idle:
            whole_SBT[:, index_N, : own_SNT.shape[2]] = own_SNT.detach()
        dist.all_reduce(whole_SBT)  # every row comes from one rank: the sum adds zeros to it
        if own_SNT.requires_grad:
            nothing_SNT = (own_SNT - own_SNT.detach()) * (0 if idle else ranks)  # zero, with the gradient of the rows
            short = T - own_SNT.shape[2]
            whole_SBT = whole_SBT.index_add(1, index_N, nn.functional.pad(nothing_SNT, (0, short)))
        return type(own)(*whole_SBT)
