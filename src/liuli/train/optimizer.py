"""Muon for the matrices inside blocks, AdamW for all else.

Matrices of one shape are stacked, so that a step is a handful of batched matrix multiplications whatever the number of
layers. State is plain tensors in a dict, ready for a checkpoint. Of weights that are shards (train/parallel.py) AdamW
moves each process's own; Muon needs whole matrices, so each process has all gradients and momenta, orthogonalises some
of the matrices, and takes its shard of every one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Polar Express (arXiv 2505.16932): the best odd quintic for each of five iterations,
# X <- a X + (b A + c A^2) X with A = X X^T
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
ITERATIONS = 3  # small singular values have grown by then; that all are near 1 gains a step nothing (docs/notebook.md)


@dataclass(frozen=True)
class OptimizerOptions:
    """Learning rates and decays. Rates are those of the stable phase; the schedule scales all of them alike."""

    kind: str = "muon"  # "muon" (matrices by Muon, the rest by AdamW) or "adamw" (all by AdamW)
    matrix_lr: float = 0.02  # Muon's; of block matrices
    matrix_decay: float = 0.0  # cautious weight decay of block matrices, per unit of learning rate
    momentum: float = 0.95
    adam_lr: float = 0.003  # gains, scalars, gates; and all matrices when kind is "adamw"
    embedding_lr: float = 0.01  # token embedding (and the head, where tied)
    head_lr: float = 0.004  # untied head
    lookup_lr: float = 0.02  # value-embedding and bigram tables (racer)
    critic_lr: float = 0.003  # PPO's value head
    beta1: float = 0.9
    beta2: float = 0.98
    adam_decay: float = 0.0  # AdamW's weight decay, on matrices and tables only
    adam_eps: float = 1e-10  # keeps AdamW's steps small where gradients all but vanish; reinforcement wants 1e-5


def one_rate(rate: float, **others: Any) -> OptimizerOptions:
    """AdamW with one learning rate for all weights, as tuning wants it. others: fields of OptimizerOptions."""
    rates = {"adam_lr": rate, "embedding_lr": rate, "head_lr": rate, "lookup_lr": rate, "critic_lr": rate}
    return OptimizerOptions(kind="adamw", **rates | others)


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each (Polar Express): U V^T of the singular value decomposition, roughly.

    matrices: (N, R, C) float32 or bfloat16. Singular values of the result lie near 1.
    """
    X = matrices_NRC
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X


class Optimizer:
    """`step(scale)` updates every weight from its gradient with all learning rates multiplied by `scale`."""

    def __init__(
        self,
        model: nn.Module,
        options: OptimizerOptions,
        low: torch.dtype | None = None,
        share: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] = lambda matrices_NRC, make: make(matrices_NRC),
    ) -> None:
        """low: the dtype in which Muon orthogonalises (bfloat16 where the machine is faster with it). share: how
        several processes make something of each matrix."""
        self.options, self.low, self.share = options, low or torch.float32, share
        self.shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        self.muon_state: dict[str, dict[str, Tensor]] = {}
        groups: dict[str, list[nn.Parameter]] = {}
        for name, weight in model.named_parameters():
            kind = group_of(name, weight, options.kind)
            if kind == "muon":
                self.shapes.setdefault((weight.shape[0], weight.shape[1]), []).append(weight)
            else:
                groups.setdefault(kind, []).append(weight)
        rates = {name: getattr(options, f"{name}_lr") for name in ("embedding", "head", "lookup", "critic")}
        self.adam = torch.optim.AdamW(
            [
                {
                    "params": weights,
                    "lr": rates.get(kind, options.adam_lr),
                    "rate": rates.get(kind, options.adam_lr),
                    "weight_decay": options.adam_decay if kind != "vector" else 0.0,
                }
                for kind, weights in sorted(groups.items())
            ],
            betas=(options.beta1, options.beta2),
            eps=options.adam_eps,
            fused=True,
        )

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for weights in self.shapes.values():
            for weight in weights:
                weight.grad = None

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * scale
        self.adam.step()
        for group in self.adam.param_groups:  # the fused kernel writes weights without telling torch's version counter
            torch.autograd.graph.increment_version(group["params"])
        for (rows, columns), weights in self.shapes.items():
            self._muon_step(f"{rows}x{columns}", weights, scale)

    def _muon_step(self, key: str, weights: list[nn.Parameter], scale: float) -> None:
        """Nesterov momentum, orthogonalisation, row-wise variance (NorMuon, arXiv 2510.05491), cautious decay."""
        o = self.options
        grads = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
        grad = torch.stack([whole_tensor(grad) for grad in grads])
        state = self.muon_state.get(key)
        if state is None:
            state = {"momentum": torch.zeros_like(grad), "variance": torch.zeros_like(grad[..., :1])}
            self.muon_state[key] = state
        state["momentum"].lerp_(grad, 1 - o.momentum)
        nesterov = grad.lerp_(state["momentum"], o.momentum).to(self.low)
        update = self.share(nesterov, lambda matrices_NRC: orthogonalise(matrices_NRC, ITERATIONS)).float()
        norm = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
        state["variance"].lerp_(update.square().mean(-1, keepdim=True), 0.1)
        update.mul_(torch.rsqrt(state["variance"] + 1e-10))
        update.mul_(norm / (torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True) + 1e-10))
        rows, columns = update.shape[-2:]
        # a step of the same size in the output whatever the shape (Muon, https://kellerjordan.github.io/posts/muon/)
        rate = o.matrix_lr * scale * max(1.0, rows / columns) ** 0.5
        if o.matrix_decay:
            # decay only where it agrees with the update (cautious weight decay, arXiv 2510.12402)
            held = torch.stack([whole_tensor(weight) for weight in weights])
            update.addcmul_((update * held > 0).to(update.dtype), held, value=o.matrix_decay)
        for weight, change in zip(weights, update, strict=True):
            weight.sub_(shard_of(change, weight), alpha=rate)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as a nested dict of tensors and numbers."""
        adam = self.adam.state_dict()["state"]
        return {"adam": {str(index): dict(values) for index, values in adam.items()}, "muon": self.muon_state}

    def load_state(self, state: dict[str, Any]) -> None:
        current = self.adam.state_dict()
        current["state"] = {int(index): _copied(values) for index, values in state["adam"].items()}
        self.adam.load_state_dict(current)
        # a checkpoint's tensors are on the CPU; AdamW moves its own
        devices = {f"{rows}x{columns}": weights[0].device for (rows, columns), weights in self.shapes.items()}
        self.muon_state = {key: _copied(values, devices[key]) for key, values in state["muon"].items()}


def _copied(values: dict[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    return {key: value.to(device, copy=True) if isinstance(value, Tensor) else value for key, value in values.items()}


def whole_tensor(x: Tensor) -> Tensor:
    """A tensor, put together where each process holds a shard of it."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def shard_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of what all of them hold, cut as `like` is."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def group_of(name: str, weight: nn.Parameter, kind: str) -> str:
    """Which rule updates a weight: "muon", "embedding", "head", "lookup", "critic", "matrix" or "vector"."""
    name = name.removeprefix("body.")  # of a reward model
    if name == "embedding.weight":
        return "embedding"
    if name == "head.weight":
        return "head"
    if name in ("critic.weight", "critic.bias"):
        return "critic"
    if name.startswith("bigram") or "value_embedding" in name:
        return "lookup"
    if weight.dim() < 2 or "value_gate" in name or name == "score.weight":
        return "vector"
    return "muon" if kind == "muon" else "matrix"


def grad_norm(model: nn.Module) -> Tensor:
    """L2 norm of all gradients together (float32 scalar), or of this process's shards of them."""
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    grads = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]
    norms: list[Tensor] = list(torch._foreach_norm(grads))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float32)
    return total
