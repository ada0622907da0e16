"""Writing speed of the engine beside transformers' `generate` and llama.cpp: the same weights, interleaved in one run.

    python benchmarks/decode.py [--sizes 3m 10m 30m] [--rounds 3] [--tokens 128] [--threads 2] [--no-compile]

Tokens per second of decoding alone (the time of a run with one new token is taken off) for one prompt and for many of
64 tokens, and of reading one prompt of 512. Greedy, the best of the rounds for each. Before timing, ours and
transformers' are shown to write the same tokens. llama.cpp takes part where llama-cpp-python is installed (built with
CMAKE_ARGS="-DGGML_NATIVE=ON"). "of the memory": bytes of weights read a second with one prompt, as a share of what a
plain sum over 256 MiB reads. Where the processor has no products in bfloat16, float32 takes its place.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, c_int8, c_int32, cast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from liuli.assistant.elsewhere import llama_cpp, load_gguf
from liuli.engine import Engine, Sampling
from liuli.engine.quantise import Kind
from liuli.errors import UsageError
from liuli.model import Transformer, parameter_count, qwen3, save
from liuli.model.convert import export_config, export_tensors
from liuli.model.gguf import export_gguf
from liuli.model.ops import multiplies_bfloat16
from liuli.text import Tokenizer

SIZES = {"3m": (4, 256), "10m": (6, 384), "30m": (10, 512)}  # layers, width; those of the anchors
VOCABULARY, CONTEXT = 4096, 1024
PROMPT, LONG_PROMPT = 64, 512
MANY = 16
Writer = Callable[[torch.Tensor, int], list[list[int]]]
"""Writes so many tokens after each prompt (B, T)."""


@dataclass
class Case:
    """Something that writes, bytes of the weights it reads for each token, and its best figures."""

    name: str
    write: Writer
    weight_bytes: float
    one: float = 0.0
    many: float = 0.0
    reading: float = 0.0

    def measure(self, tokens: int) -> None:
        """One round; prompts are new each time, so that nobody remembers them."""
        self.one = max(self.one, speed(self.write, prompts(1, PROMPT), tokens))
        self.many = max(self.many, speed(self.write, prompts(MANY, PROMPT), tokens))
        long, started = prompts(1, LONG_PROMPT), time.perf_counter()
        self.write(long, 1)
        self.reading = max(self.reading, LONG_PROMPT / (time.perf_counter() - started))


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    memory = memory_speed()
    print(f"{options.threads} thread(s), memory is read at {memory / 1e9:.0f} GB/s, greedy, best of {options.rounds}")
    for size in options.sizes:
        compare(size, options, memory)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    return parser.parse_args()


def compare(size: str, options: argparse.Namespace, memory: float) -> None:
    """One size: make all, show that they write the same, time them round by round, print the table."""
    torch.manual_seed(0)
    layers, width = SIZES[size]
    model = Transformer(qwen3(VOCABULARY, width, layers, context=CONTEXT, tied=True)).eval()
    with tempfile.TemporaryDirectory() as made:
        cases = make_cases(model, Path(made), options)
    fed = prompts(2, PROMPT)
    same = cases[0].write(fed, 32) == next(case for case in cases if case.name == "transformers fp32").write(fed, 32)
    for case in cases:  # compile, warm up
        case.measure(8)
        case.one = case.many = case.reading = 0.0
    for _ in range(options.rounds):
        for case in cases:
            case.measure(options.tokens)
    print(
        f"\n{size}: {layers} layers of {width}, {parameter_count(model.config)['total'] / 1e6:.1f}M parameters; ",
        end="",
    )
    print(f"ours and transformers' tokens in float32 are the same: {'yes' if same else 'NO'}\n")
    print(f"| tokens/s | one prompt | of the memory | {MANY} prompts | reading {LONG_PROMPT} |")
    print("|---|---:|---:|---:|---:|")
    for case in cases:
        share = case.weight_bytes * case.one / memory
        print(f"| {case.name} | {case.one:,.0f} | {share:.0%} | {case.many:,.0f} | {case.reading:,.0f} |", flush=True)


def make_cases(model: Transformer, folder: Path, options: argparse.Namespace) -> list[Case]:
    parts = parameter_count(model.config)
    numbers = parts["blocks"] + VOCABULARY * model.config.width  # the tied embedding is read as the head
    dtypes = {"fp32": torch.float32}
    if multiplies_bfloat16(torch.device("cpu")):
        dtypes["bf16"] = torch.bfloat16
    kind, low = list(dtypes.items())[-1]
    cases = [
        *(Case(f"liuli {name}", ours(model, dtype), dtype.itemsize * numbers) for name, dtype in dtypes.items()),
        Case("liuli int8", ours(model, low, "int8"), numbers),
        Case("liuli int4", ours(model, low, "int4"), 0.625 * numbers),
    ]
    if not options.no_compile:
        cases += [
            Case(f"liuli {kind}, compiled", ours(model, low, compiled=True), low.itemsize * numbers),
            Case("liuli int8, compiled", ours(model, low, "int8", compiled=True), numbers),
        ]
    cases += [
        Case(f"transformers {name}", theirs(model, dtype), dtype.itemsize * numbers) for name, dtype in dtypes.items()
    ]
    try:
        cases += [
            Case(f"llama.cpp {kind}", llama(model, folder, kind, options.threads), size * numbers)
            for kind, size in (("bf16", 2.0), ("q8_0", 34 / 32))
        ]
    except UsageError as error:
        print(f"without llama.cpp: {error}")
    return cases


def prompts(rows: int, length: int) -> torch.Tensor:
    return torch.randint(16, 272, (rows, length))


def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], 272)


def ours(model: Transformer, dtype: torch.dtype, weights: Kind | None = None, compiled: bool = False) -> Writer:
    """The engine; nothing ends an answer early."""
    copy = Transformer(model.config).to(dtype).eval()
    copy.load_state_dict(model.state_dict())
    engine = Engine(copy, byte_tokenizer(), MANY, weights=weights, compiled=compiled, prefix_bytes=0)
    engine.stops = frozenset()
    engine.ban_V.zero_()
    engine.bytes_of += [b"?"] * (VOCABULARY - len(engine.bytes_of))

    def write(prompts_BT: torch.Tensor, tokens: int) -> list[list[int]]:
        answers = engine.generate(prompts_BT.tolist(), Sampling(temperature=0, max_tokens=tokens))
        return [answer.ids for answer in answers]

    return write


def theirs(model: Transformer, dtype: torch.dtype) -> Writer:
    """transformers' Qwen3 with the same weights."""
    reference = Qwen3ForCausalLM(Qwen3Config(**export_config(model.config))).to(dtype).eval()
    reference.load_state_dict(export_tensors(model), strict=False)  # a tied head is not stored
    reference.tie_weights()

    def write(prompts_BT: torch.Tensor, tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            whole = reference.generate(
                prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=9,
            )
        return [row[prompts_BT.shape[1] :] for row in whole.tolist()]

    return write


def llama(model: Transformer, folder: Path, kind: str, threads: int) -> Writer:
    """llama.cpp with our GGUF export, in a process of its own: torch and it take each other's matrix tiles (AMX) away.

    Raises UsageError where it is not installed.
    """
    llama_cpp()
    if not (folder / "model").exists():
        byte_tokenizer().save(folder / "tokenizer")
        save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "benchmark"})
    export_gguf(folder / "model", folder / f"{kind}.gguf", kind)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=llama_process, args=(str(folder / f"{kind}.gguf"), threads, there), daemon=True).start()
    here.recv()

    def write(prompts_BT: torch.Tensor, tokens: int) -> list[list[int]]:
        here.send((prompts_BT.numpy(), tokens))
        answers: list[list[int]] = here.recv()
        return answers

    return write


def llama_process(file: str, threads: int, pipe: Any) -> None:
    """Answers what comes through the pipe."""
    write = llama_here(file, threads)
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            pipe.send(write(*pipe.recv()))


def llama_here(file: str, threads: int) -> Callable[[np.ndarray, int], list[list[int]]]:
    """All prompts in one batch, the likeliest token taken from llama.cpp's logits."""
    lib = llama_cpp()
    loaded = load_gguf(lib, file)
    contexts = {rows: llama_context(lib, loaded, rows, threads) for rows in (1, 2, MANY)}

    def write(prompts_BT: np.ndarray, tokens: int) -> list[list[int]]:
        B, T = prompts_BT.shape
        context = contexts[B]
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = Batch(lib, B * T)
        row_N, at_N = np.divmod(np.arange(B * T), T)
        answers = [llama_step(lib, context, batch, prompts_BT.ravel(), at_N, row_N, at_N == T - 1)]
        for at in range(T, T + tokens - 1):
            all_B = np.arange(B)
            answers.append(llama_step(lib, context, batch, answers[-1], np.full(B, at), all_B, np.ones(B, bool)))
        lib.llama_batch_free(batch.made)
        return [list(answer) for answer in zip(*(step.tolist() for step in answers), strict=True)]

    return write


def llama_context(lib: Any, loaded: Any, rows: int, threads: int) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = rows * CONTEXT, rows
    params.n_batch, params.n_ubatch = 1024, 512
    params.n_threads = params.n_threads_batch = threads
    return lib.llama_init_from_model(loaded, params)


class Batch:
    """llama.cpp's batch with numpy views of its arrays."""

    def __init__(self, lib: Any, most: int) -> None:
        self.made = lib.llama_batch_init(most, 0, 1)

        def view(pointer: Any, kind: Any) -> np.ndarray[Any, Any]:
            return np.ctypeslib.as_array(cast(pointer, POINTER(kind)), (most,))

        self.token, self.pos = view(self.made.token, c_int32), view(self.made.pos, c_int32)
        self.logits, self.rows = view(self.made.logits, c_int8), self.made.seq_id
        view(self.made.n_seq_id, c_int32).fill(1)


def llama_step(
    lib: Any, context: Any, batch: Batch, ids: np.ndarray, at: np.ndarray, row: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Feed tokens of several rows; the likeliest next token of each that is wanted."""
    N = len(ids)
    batch.made.n_tokens = N
    batch.token[:N], batch.pos[:N], batch.logits[:N] = ids, at, wanted
    for number, of in enumerate(row.tolist()):
        batch.rows[number][0] = of
    assert lib.llama_decode(context, batch.made) == 0, "llama.cpp cannot go on"
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (int(wanted.sum()), VOCABULARY))
    return logits.argmax(-1)


def speed(write: Writer, prompts_BT: torch.Tensor, tokens: int) -> float:
    """New tokens per second over the whole batch, without the first token, which the prompt's reading gives."""
    started = time.perf_counter()
    write(prompts_BT, 1)
    read = time.perf_counter()
    write(prompts_BT, tokens)
    done = time.perf_counter()
    return len(prompts_BT) * (tokens - 1) / ((done - read) - (read - started))


def memory_speed() -> float:
    """Bytes a second of a sum over 256 MiB, the best of ten."""
    numbers, best = torch.ones(2**26), 0.0
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
