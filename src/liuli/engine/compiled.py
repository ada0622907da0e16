"""A step made into machine code: what the compiler cannot change, weights and caches, it is handed at every call.

In: a function of tensors, and such as it will be given. Out: the same function, sooner. It knows nothing of models.

On a processor the code is made ahead of time by torch.export and AOTInductor and kept as a file beside torch's own: it
holds no weights, so it serves every model of that shape, in this process and in those to come, and calling it costs
none of the Python that torch.compile puts before each call (0.16 of 0.5 ms, measured). On a GPU that would need CUDA's
compiler, so there torch.compile makes it, anew in each process.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import liuli.model

Step = Callable[..., Tensor]
"""f(laid, pairs_L, *fed): laid holds all weights, in dataclasses; pairs_L the keys and values of each layer, which it
writes to; fed are tensors whose first has a line for each row and whose last is as long as what is seen."""
Pairs = Sequence[tuple[Tensor, Tensor]]


def just_in_time(step: Step, laid: object, pairs_L: Pairs, fed: Sequence[Tensor]) -> Step:
    """The step compiled at its first call: for one row, or for any number of rows; of any length.

    It is a copy of the code, since torch counts compilations by code and gives up after eight; and it asks nothing
    before it runs, as torch would (0.1 ms a step): what a step depends on beside its inputs never changes.
    """
    method = cast(MethodType, step)
    plain = cast(FunctionType, method.__func__)
    copy = FunctionType(plain.__code__.replace(), plain.__globals__, argdefs=plain.__defaults__)
    *rows, slots_S = fed
    torch._dynamo.mark_dynamic(slots_S, 0)
    if len(rows[0]) > 1:
        for tensor in rows:
            torch._dynamo.mark_dynamic(tensor, 0)
    options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    return torch.compile(copy.__get__(method.__self__), options=options)


def ahead_of_time(step: Step, laid: object, pairs_L: Pairs, fed: Sequence[Tensor]) -> Step:
    """The step from its file, which is made first if there is none: for one row, or for any number; of any length."""
    leaves, shape = pytree.tree_flatten((laid, list(pairs_L)))
    file = _file(leaves, shape, fed)
    if not file.exists():
        _make(file, step, leaves, shape, fed)
    run = torch._inductor.aoti_load_package(str(file)).loader.boxed_run
    weights = [leaf for leaf in pytree.tree_leaves(laid) if isinstance(leaf, Tensor)]

    def call(_: object, pairs_L: Pairs, *fed: Tensor) -> Tensor:
        made: Tensor = run([*weights, *chain(*pairs_L), *fed])[0]
        return made

    return call


def _file(leaves: Sequence[Any], shape: pytree.TreeSpec, fed: Sequence[Tensor]) -> Path:
    """Where the code lies: another place for all that it hangs on, the program that it is made from among it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    kinds = [(leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    machine = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    rooms = Path(__file__).parent, Path(liuli.model.__file__).parent
    sources = [path.read_bytes() for room in rooms for path in sorted(room.glob("*.py"))]
    key = repr((kinds, shape, len(fed[0]) > 1, fed[0].shape[1], machine)).encode()
    return Path(cache_dir(), "liuli", hashlib.sha256(b"".join((key, *sources))).hexdigest()[:32] + ".pt2")


class _Exported(torch.nn.Module):
    """The step as a function of tensors alone; `leaves` gives the rest."""

    def __init__(self, step: Step, leaves: Sequence[Any], shape: pytree.TreeSpec) -> None:
        super().__init__()
        self.step, self.leaves, self.shape = step, leaves, shape

    def forward(self, held: Sequence[Tensor], fed: Sequence[Tensor]) -> Tensor:
        tensors = iter(held)
        whole = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return self.step(*pytree.tree_unflatten(whole, self.shape), *fed)


@torch.inference_mode(False)
@torch.no_grad()
def _make(file: Path, step: Step, leaves: Sequence[Any], shape: pytree.TreeSpec, fed: Sequence[Tensor]) -> None:
    """Compile, which takes some seconds."""
    held = [torch.empty_like(leaf) for leaf in leaves if isinstance(leaf, Tensor)]  # shapes: memory never written to
    fed = [tensor.clone() for tensor in fed]
    some, any_number = {0: torch.export.Dim.DYNAMIC}, len(fed[0]) > 1
    of_fed = [some if any_number else None for _ in fed[:-1]] + [some]
    shapes = {"held": [None] * len(held), "fed": of_fed}
    exported = torch.export.export(_Exported(step, leaves, shape), (held, fed), dynamic_shapes=shapes, strict=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_suffix(f".{os.getpid()}.pt2")
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # torch warns itself of its own ways
        torch._inductor.aoti_compile_and_package(exported, package_path=str(made))
    made.replace(file)  # whole or not at all, whoever else makes it
