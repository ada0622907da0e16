"""Training in several processes: torchrun starts them, FSDP2 shards the weights, each takes some rows.

Applied from outside: neither the model nor the algorithm knows of it. The loop over text (`fit`) gives each process its
rows of a batch. Where answers are scored every process holds the whole round (tokens, log-probabilities, advantages:
small numbers), so whitening, groups, the weights of tokens and all figures are those of one process; only the drawing
of answers and the passes through the model are divided. `Shared` is an actor like any other: it scores its own rows
and gets the others' numbers from the other processes, so a loss made of it is the loss of the whole step, whichever
rank asks, and its gradient, summed over the ranks, is the whole gradient.

In one process, without torchrun, each function here does the plain thing, so that a stage is written once.

Does not know: rollouts (rows are whatever has tokens_BT and part()), losses, files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from liuli.model import Transformer
from liuli.model.scalar import ScalarModel
from liuli.train.optimizer import Optimizer, OptimizerOptions, shard_of, whole_tensor

Made = TypeVar("Made")
Model = TypeVar("Model", Transformer, ScalarModel)


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
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return rank(), ranks()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leave() -> None:
    """Wait for the others and end this process, successfully. What is to be written must have been written."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort a normal exit now and then (2 of 140 measured, 0 of 140 this way)


def from_first(make: Callable[..., Made], *given: Any) -> Made:
    """What `make(*given)` gives on rank 0, on every rank: rewards, a checkpoint, how much of a budget of time is used.

    Raises on every rank what `make` raises on rank 0, so that none waits for a process that has given up.
    """
    if ranks() == 1:
        return make(*given)
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make(*given)
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return cast(Made, found[0])


def from_each(count: int, make: Callable[[Sequence[int]], Sequence[Made]]) -> list[Made]:
    """Things 0 to count - 1, of which each process makes its share (`own_rows`): all of them, on every rank.

    Raises on every rank what `make` raises on one.
    """
    if ranks() == 1:
        return list(make(range(count)))
    own: list[Any] = [[], None]
    try:
        own[0] = list(make(own_rows(count, rank(), ranks()).tolist()))
    except Exception as error:
        own[1] = error
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, own)
    whole: list[Any] = [None] * count
    for number, (share, failure) in enumerate(found):
        if failure is not None:
            raise failure
        whole[number :: ranks()] = share
    return whole


# --- weights ---------------------------------------------------------------------------------------------------------


def sharded(module: nn.Module, options: OptimizerOptions, low: torch.dtype | None = None) -> Optimizer:
    """Shard the weights of a module (a policy, or policy and critic in a ModuleDict) over all processes, and the
    optimizer of the shards (low: see Optimizer). Weights stay float32; the model itself casts them where it uses them.
    """
    if ranks() == 1:
        return Optimizer(module, options, low)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # slow to import, and seldom used

    for body in [part for part in module.modules() if isinstance(part, Transformer)]:
        for block in body.blocks:
            fully_shard(block)
    for root in module.children() if isinstance(module, nn.ModuleDict) else [module]:
        # kept whole between forward and backward: the head is read after `hidden` has returned, and may be tied
        fully_shard(root, reshard_after_forward=False)
        if isinstance(root, Transformer):
            register_fsdp_forward_method(root, "hidden")
    return Optimizer(module, options, low, share=dealt)


def dealt(x_N: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(x_N) (N, …), of which each process makes its own and gets the rest; without gradients."""
    index_N = own_rows(len(x_N), rank(), ranks())
    return _of_all(make(x_N[index_N]) if len(index_N) else x_N[:0], index_N, len(x_N))


def whole(model: Model) -> Model:
    """A model whose weights are here: itself, or of shards a copy, which all processes must ask for."""
    if not any(hasattr(weight, "full_tensor") for weight in model.parameters()):
        return model
    body = model.body if isinstance(model, ScalarModel) else model
    with torch.random.fork_rng(devices=[]):  # first weights are drawn; whoever trains on must not notice
        own = Transformer(body.config)
        copy = ScalarModel(own, len(model.offsets_E)) if isinstance(model, ScalarModel) else own
    copy.load_state_dict(gathered(model.state_dict()))
    own.compute_dtype = body.compute_dtype
    return copy.to(body.embedding.weight.device).eval()


def gathered(state: Any) -> Any:
    """A nested state with every shard made whole, on the CPU: what goes into a checkpoint, a model folder or an engine.
    All processes must call it."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return whole_tensor(state).cpu() if isinstance(state, Tensor) else state


def state_of(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Weights and optimizer, `gathered`, as a checkpoint keeps them."""
    return {"model": gathered(dict(module.state_dict())), "optimizer": gathered(optimizer.state())}


def load_gathered(module: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give module and optimizer their `state_of`, each process its shards: however many there were then."""
    if ranks() == 1:
        module.load_state_dict(state["model"])
        optimizer.load_state(state["optimizer"])
        return

    def own(whole: Any, like: Any) -> Any:
        fits = isinstance(whole, Tensor) and whole.shape == like.shape  # not so AdamW's count of steps
        return shard_of(whole.to(like.device), like) if fits else whole

    current = module.state_dict()
    module.load_state_dict({name: own(whole, current[name]) for name, whole in state["model"].items()})
    held = [weight for group in optimizer.adam.param_groups for weight in group["params"]]
    adam = {
        index: {key: own(value, held[int(index)]) for key, value in moments.items()}
        for index, moments in state["optimizer"]["adam"].items()
    }
    optimizer.load_state(state["optimizer"] | {"adam": adam})


# --- rows ------------------------------------------------------------------------------------------------------------


def own_rows(count: int, number: int, of: int) -> Tensor:
    """The rows of process `number`, dealt like cards, so that rows sorted by length are dealt evenly. May be none."""
    return torch.arange(count)[number::of]


def _of_all(own: Tensor, index_N: Tensor, count: int) -> Tensor:
    """`count` rows, of which this process has made those of index_N. Each comes from one: the sum adds zeros to it."""
    every = own.new_zeros(count, *own.shape[1:])
    every[index_N] = own
    dist.all_reduce(every)
    return every


def divided(rows: R, make: Callable[[R], Tensor]) -> Tensor:
    """make(rows) (B, …), of which each process makes its own rows and gets the rest; all must call it alike.

    Values are the same on every rank. Gradients flow through this rank's rows alone, times the number of ranks, for
    FSDP2 (and DDP) take the mean over ranks where the sum is wanted. Another loss, added beside (PPO-ptx), is thus
    averaged: give each rank rows of its own.
    """
    if ranks() == 1:
        return make(rows)
    B = len(rows.tokens_BT)
    index_N = own_rows(B, rank(), ranks())
    idle = len(index_N) == 0  # must still go through the model, where the others wait for its shards
    index_N = torch.zeros(1, dtype=torch.int64) if idle else index_N
    own = make(rows.part(index_N))
    index_N = index_N.to(own.device)
    told = slice(0 if idle else None)
    every = _of_all(own.detach()[told], index_N[told], B)
    if own.requires_grad:
        nothing = (own - own.detach()) * (0 if idle else ranks())  # zero, with the gradient of the rows
        every = every.index_add(0, index_N, nothing)
    return every


def summed(*numbers: float) -> list[float]:
    """Numbers, each summed over all processes; all must call it alike."""
    if ranks() == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


@dataclass(frozen=True)
class Shared(Generic[R, S]):
    """An actor that scores its share of the rows (`divided`). Step.micro_tokens counts the tokens of a pass on all
    ranks together."""

    actor: Scorer[R, S]

    def score(self, rollouts: R) -> S:
        T, made = rollouts.tokens_BT.shape[1], list[S]()

        def numbers(own: R) -> Tensor:
            made.append(self.actor.score(own))
            own_SNT = torch.stack(tuple(made[0]))
            return nn.functional.pad(own_SNT, (0, T - own_SNT.shape[2])).movedim(1, 0)

        every_BST = divided(rollouts, numbers)
        return type(made[0])(*every_BST.unbind(1))


def across(actor: Scorer[R, S]) -> Scorer[R, S]:
    """The actor, or in several processes the one that shares its rows out."""
    return Shared(actor) if ranks() > 1 else actor
