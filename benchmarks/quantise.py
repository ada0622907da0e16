"""What weights in 8 and 4 bits cost: bits per byte of held-out text, and microseconds a product.

    python benchmarks/quantise.py runs/laptop/chat [--text FILE] [--threads 1] [--no-speed]

"int8 integer" rounds the activations too, as the compiled decoder does. Text: default the run's rows/held_out.jsonl.
Speed: the least time of many, each product after the others so that no matrix stays in the nearest cache.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from liuli.engine.quantise import pack, quantised_copy, rounded
from liuli.evals.bits import bits_by_language
from liuli.model import Transformer, load
from liuli.text import Document, Tokenizer, read_documents

SHAPES = ((192, 512), (384, 1536), (512, 2048))  # inputs, outputs
ROWS = (1, 4, 16, 64)
MATRICES = 16


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    model = load(options.model)
    text = options.text or options.model.parent / "rows" / "held_out.jsonl"
    documents = list(read_documents([text]))
    print_bits(model, Tokenizer.load(options.model), documents)
    if options.speed:
        print_speed()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    return parser.parse_args()


def print_bits(model: Transformer, tokenizer: Tokenizer, documents: list[Document]) -> None:
    int8, int4 = quantised_copy(model, "int8"), quantised_copy(model, "int4")
    rows = [("float32", model, False), ("int8", int8, False), ("int8 integer", int8, True), ("int4", int4, False)]
    print("| weights | language | bits per byte | worse by |\n|---|---|---:|---:|")
    first: dict[str, float] = {}
    for name, each, rounds in rows:
        with RoundedActivations() if rounds else contextlib.nullcontext():
            figures = bits_by_language(each, tokenizer, documents, context=model.config.context)
        for language, found in figures.items():
            bits = float(found["per_byte"])
            base = first.setdefault(language, bits)
            print(f"| {name} | {language} | {bits:.4f} | {bits / base - 1:+.2%} |")


class RoundedActivations(TorchFunctionMode):
    """While it is entered, every matrix product rounds its input rows to 8 bits, as `integer` products do."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            q, scale = rounded(args[0])
            args = ((q * scale).to(args[0].dtype), *args[1:])
        return func(*args, **(kwargs or {}))


def print_speed() -> None:
    print("\n| inputs x outputs | rows | " + " | ".join(cases(torch.zeros(32, 32))) + " |")
    print("|---|" + "---:|" * (1 + len(cases(torch.zeros(32, 32)))))
    for inputs, outputs in SHAPES:
        matrices = [cases(torch.randn(outputs, inputs) * 0.02) for _ in range(MATRICES)]
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            times = [least([each[name] for each in matrices], x) for name in matrices[0]]
            print(f"| {inputs} x {outputs} | {rows} | " + " | ".join(f"{us:.1f}" for us in times) + " |", flush=True)


def cases(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Products of one matrix, by name; µs of each is a column."""
    low, eight, integer = weight.bfloat16(), pack(weight, "int8"), pack(weight, "int8", compiled=True)
    four = pack(weight, "int4")
    return {
        "float32": lambda x: F.linear(x, weight),
        "bf16": lambda x: F.linear(x.bfloat16(), low),
        "int8": lambda x: eight.matmul(x.bfloat16()),
        "int8 integer": lambda x: integer.matmul(x.bfloat16()),
        "of it the product": lambda x: torch._int_mm(x.to(torch.int8), integer.weight.t()),
        "int4": lambda x: four.matmul(x.bfloat16()),
    }


@torch.inference_mode()
def least(products: list[Callable[[Tensor], Tensor]], x: Tensor, rounds: int = 60) -> float:
    """Microseconds of one product, the least mean over all matrices of some rounds; the cast of x is in it."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for product in products:
            product(x)
        best = min(best, (time.perf_counter() - began) / len(products))
    return best * 1e6


if __name__ == "__main__":
    main()
