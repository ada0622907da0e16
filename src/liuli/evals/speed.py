"""What a model costs: memory, and tokens per second of reading prompts and of writing one answer or sixteen."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from liuli.engine import Engine, Sampling
from liuli.model import Transformer

PREFILL_ROWS = 8
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parameter_bytes(model: Transformer) -> int:
    """Bytes of the weights as they lie in memory; tied ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can (Linux): a build has trained before."""
    with contextlib.suppress(OSError):
        switch = os.open(CLEAR, os.O_WRONLY)  # of the kernel, no file: 5 sets the peak to what is held now
        try:
            os.write(switch, b"5")
        finally:
            os.close(switch)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory this process has held, in bytes; on a GPU also what torch held there."""
    figures = {}
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        figures = {"peak_rss_bytes": int(found[1]) * 1024} if found else {}
    elif sys.platform == "darwin":
        import resource

        figures["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return figures


def speed(engine: Engine, seconds: float = 3.0) -> dict[str, float | int]:
    """Memory and tokens/s (the best of the repetitions that fit into about `seconds`).

    prefill: eight prompts of half the context, read together. decode_1, decode_16: half the context (at most 64 tokens)
    written by one answer and by sixteen; reading the short prompts is subtracted. End tokens are not obeyed meanwhile.
    peak_rss: of this work, the process's libraries included.
    """
    T = engine.context
    forget_peak()
    obeyed, engine.stops = engine.stops, frozenset()
    try:
        some = [(300 + row) % engine.tokenizer.vocab_size for row in range(PREFILL_ROWS)]  # equal prompts are read once
        long = [[engine.tokenizer.bos] + [token] * (T // 2 - 1) for token in some]
        steps = max(1, min(64, T // 2))
        return {
            "parameter_bytes": parameter_bytes(engine.model),
            "prefill_tokens_per_s": PREFILL_ROWS * (T // 2) / _best(engine, long, 1, seconds / 3),
            "decode_1_tokens_per_s": _decode_rate(engine, 1, steps, seconds / 3),
            "decode_16_tokens_per_s": _decode_rate(engine, 16, steps, seconds / 3),
            **peak_memory(engine.device),
        }
    finally:
        engine.stops = obeyed


def _decode_rate(engine: Engine, rows: int, steps: int, seconds: float) -> float:
    prompts = [[engine.tokenizer.bos, engine.tokenizer.user]] * rows
    first = _best(engine, prompts, 1, seconds / 4)
    return rows * steps / max(_best(engine, prompts, steps + 1, seconds) - first, 1e-9)


def _best(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int, seconds: float) -> float:
    """Shortest time of one `generate`, in seconds, over repetitions that take about `seconds` in all, at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        engine.generate([list(prompt) for prompt in prompts], Sampling(temperature=0.0, max_tokens=max_tokens))
        times.append(time.perf_counter() - began)
    return min(times)
