"""A step made into machine code: what the compiler cannot change, weights and caches, it is handed at every call.

In: a function of tensors, and such as it will be given. Out: the same function, sooner. It knows nothing of models.

On a processor the code is made ahead of time by torch.export and AOTInductor and kept as a file beside torch's own: it
holds no weights and no cache, so it serves every model of that shape, in this process and in those to come, and calling
it costs none of the Python that torch.compile puts before each call (0.16 of 0.5 ms, measured). On a GPU that would
need CUDA's compiler, so there torch.compile makes it, anew in each process.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import liuli.model
from liuli.errors import UsageError
from liuli.files import write_file

Step = Callable[..., Tensor]
"""f(laid, pairs_L, *fed): laid holds in dataclasses all that is read of a model, also what is no tensor, of which each
value makes other code; pairs_L the keys and values of each layer, which it writes to; fed are tensors whose first has a
line for each row and whose last is as long as what is seen. Compiled: f(pairs_L, *fed)."""
Pairs = Sequence[tuple[Tensor, Tensor]]


def just_in_time(step: Step, laid: object, pairs_L: Pairs, fed: Sequence[Tensor]) -> Step:
    """The step compiled at its first call: for one row, or for any number of rows; of any length.

    It is a copy of the code, since torch counts compilations by code and gives up after eight.
    """
    method = cast(MethodType, step)
    plain = cast(FunctionType, method.__func__)
    copy = FunctionType(plain.__code__.replace(), plain.__globals__, argdefs=plain.__defaults__)
    for tensor in fed if len(fed[0]) > 1 else fed[-1:]:
        torch._dynamo.mark_dynamic(tensor, 0)
    return partial(torch.compile(copy.__get__(method.__self__)), laid)


def ahead_of_time(step: Step, laid: object, pairs_L: Pairs, fed: Sequence[Tensor]) -> Step:
    """The step from its file, which is made first if there is none: for one row, or for any number; of any length, in
    a cache of any size."""
    B, T = fed[0].shape
    small_L, few = _given(pairs_L, min(B, 2), T)
    leaves, shape = pytree.tree_flatten((laid, small_L))
    file = _file(leaves, shape, few)
    if not file.exists():
        _make(file, step, leaves, shape, few)
    run = _loaded(file)
    weights = [leaf for leaf in pytree.tree_leaves(laid) if isinstance(leaf, Tensor)]

    def call(pairs_L: Pairs, *fed: Tensor) -> Tensor:
        return run([*weights, *chain(*pairs_L), *fed])[0]

    return call


@cache
def _loaded(file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """The code in memory, once for all decoders that come and go."""
    run: Callable[[list[Tensor]], list[Tensor]] = torch._inductor.aoti_load_package(str(file)).loader.boxed_run
    return run


def _given(pairs_L: Pairs, B: int, T: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """A small cache, and what may be fed to it: no two of the sizes that vary are alike."""
    _, K, _, E = pairs_L[0][0].shape
    rows, slots, seen = 5, T + 29, T + 13
    small_L = [(k.new_zeros(rows, K, slots, E), v.new_zeros(rows, K, slots, E)) for k, v in pairs_L]
    ids_BT = torch.zeros(B, T, dtype=torch.int64)
    return small_L, [ids_BT, ids_BT, torch.zeros(B, 1, dtype=torch.int64), torch.arange(seen)]


def _file(leaves: Sequence[Any], shape: pytree.TreeSpec, fed: Sequence[Tensor]) -> Path:
    """Where the code lies: another place for all that it hangs on, the program that it is made from among it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    kinds = [(leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in (*leaves, *fed)]
    machine = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    key = repr((kinds, shape, machine, _program()))
    return Path(cache_dir(), "liuli", hashlib.sha256(key.encode()).hexdigest()[:32] + ".pt2")


@cache
def _program() -> str:
    """A hash of all that a step can be made from."""
    rooms = Path(__file__).parent, Path(liuli.model.__file__).parent
    sources = b"".join(path.read_bytes() for room in rooms for path in sorted(room.glob("*.py")))
    return hashlib.sha256(sources).hexdigest()


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
    """Compile, which takes some seconds. Raises UsageError where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UsageError("there is no C++ compiler", "compiled", "install g++ or clang, or leave it out") from None
    held = [torch.empty_like(leaf) for leaf in leaves if isinstance(leaf, Tensor)]  # shapes: memory never written to
    fed = [tensor.clone() for tensor in fed]
    varies = torch.export.Dim.DYNAMIC
    row = {0: varies} if len(fed[0]) > 1 else None
    layers = pytree.tree_unflatten(leaves, shape)[1]
    stores = [{0: varies, 2: varies}] * (2 * len(layers))
    shapes = {"held": [None] * (len(held) - len(stores)) + stores, "fed": [row, row, row, {0: varies}]}
    exported = torch.export.export(_Exported(step, leaves, shape), (held, fed), dynamic_shapes=shapes, strict=False)
    with TemporaryDirectory() as place, warnings.catch_warnings(category=FutureWarning, action="ignore"):  # torch's own
        made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(place, "step.pt2")))
        write_file(file, Path(made).read_bytes(), durable=False)  # whole or not at all, whoever else makes it
