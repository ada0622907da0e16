"""Tiny Shakespeare by characters: bits per byte on the last tenth after some minutes of wall clock.

    python benchmarks/shakespeare.py tinyshakespeare.txt --preset racer --minutes 3 --seeds 0 1 2

The clock starts before the model is built and includes compilation; the last evaluation is outside. The validation text
is read in windows of T characters, end to end, every character predicted but the first of each window's input.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from liuli.model import Transformer, parameter_count, qwen3, racer
from liuli.text import Batch
from liuli.train import (
    LoopOptions,
    Optimizer,
    OptimizerOptions,
    Pace,
    RunLog,
    StageState,
    TensorBatch,
    fit,
    measure_machine,
    next_token,
)


class Windows:
    """Random windows of one long text; the state is the number of batches dealt."""

    def __init__(self, text: np.ndarray, T: int, batch_rows: int, seed: int) -> None:
        self.text, self.batch_rows, self.seed, self.position = text, batch_rows, seed, 0
        self.rows = SimpleNamespace(T=T)

    def __next__(self) -> Batch:
        generator = np.random.default_rng((self.seed, self.position))
        starts = generator.integers(0, len(self.text) - self.rows.T - 1, self.batch_rows)
        window = self.text[starts[:, None] + np.arange(self.rows.T + 1)[None, :]]
        self.position += 1
        ones = np.ones((self.batch_rows, self.rows.T), np.float32)
        return Batch(window[:, :-1].copy(), window[:, 1:].copy(), ones, self.position)


@torch.no_grad()
def bits_per_byte(model: Transformer, text: np.ndarray) -> float:
    """Exact, over all whole windows end to end; a character is a byte."""
    T = model.config.context
    count = (len(text) - 1) // T
    tokens = torch.from_numpy(text[: count * T].reshape(count, T))
    targets = torch.from_numpy(text[1 : count * T + 1].reshape(count, T))
    nats = 0.0
    for part in zip(tokens.split(64), targets.split(64), strict=True):
        nats += next_token(model, TensorBatch(*part, torch.ones(part[0].shape))).item()
    return nats / (count * T) / math.log(2)


@dataclass(frozen=True)
class Setting:
    """One way to spend the minutes."""

    layers: int
    width: int
    T: int
    batch_rows: int
    dropout: float
    optimizer: OptimizerOptions
    changes: dict[str, object]


def settings(preset: str, minutes: float) -> Setting:
    """What was found best (docs/notebook.md)."""
    muon = OptimizerOptions(matrix_lr=0.02, embedding_lr=0.005, adam_lr=0.003, head_lr=0.004, lookup_lr=0.005)
    if minutes <= 4:
        return Setting(4, 192, 256, 10, 0.1, muon, {})
    return Setting(6, 192, 256, 10, 0.2, muon, {})


def run(
    text: np.ndarray, preset: str, minutes: float, seed: int, setting: Setting, compiled: bool
) -> dict[str, object]:
    """Train for `minutes` and measure."""
    machine = measure_machine()
    cut = int(0.9 * len(text))
    pace = Pace(seconds=minutes * 60)
    torch.manual_seed(seed)
    make = racer if preset == "racer" else qwen3
    vocabulary = int(text.max()) + 1
    config = make(vocabulary, setting.width, setting.layers, context=setting.T, dropout=setting.dropout)
    model = Transformer(replace(config, **setting.changes))
    model.compute_dtype = machine.compute_dtype
    low = machine.compute_dtype
    log = RunLog(Path("runs/shakespeare"), [StageState("train", f"{preset} {seed}")], tensorboard=False)
    log.begin("train")
    result = fit(
        model,
        Optimizer(model, setting.optimizer, low),
        Windows(text[:cut], setting.T, setting.batch_rows, seed),  # type: ignore[arg-type]
        next_token,
        pace,
        log=log,
        machine=machine,
        options=LoopOptions(compile=compiled, figures_every_steps=50),
    )
    log.finish()
    return {
        "preset": preset,
        "minutes": minutes,
        "seed": seed,
        "bits_per_byte": round(bits_per_byte(model, text[cut:]), 4),
        "parameters": parameter_count(config)["total"],
        "steps": result.steps,
        "tokens": result.tokens,
        "tokens_per_s": round(result.tokens_per_s),
        "train_bits": round(result.loss / math.log(2), 4),
        "seconds": round(result.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--preset", default="racer", choices=("racer", "qwen3"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--set", nargs="*", default=[], help="changes to the setting, such as dropout=0.1 matrix_lr=0.01"
    )
    options = parser.parse_args()
    characters = options.text.read_text(encoding="utf-8")
    index = {character: place for place, character in enumerate(sorted(set(characters)))}
    text = np.array([index[character] for character in characters], dtype=np.int64)
    setting = changed(settings(options.preset, options.minutes), options.set)
    for seed in options.seeds:
        start = time.monotonic()
        figures = run(text, options.preset, options.minutes, seed, setting, not options.eager)
        print(json.dumps(figures | {"wall": round(time.monotonic() - start, 1)}), flush=True)


def changed(setting: Setting, changes: list[str]) -> Setting:
    """key=value, of the setting, of its optimizer, or of the model's config."""
    for change in changes:
        key, value = change.split("=", 1)
        parsed = json.loads(value) if value[:1] in "[0123456789-." else value
        parsed = tuple(parsed) if isinstance(parsed, list) else parsed
        if key in Setting.__dataclass_fields__:
            setting = replace(setting, **{key: parsed})
        elif key in OptimizerOptions.__dataclass_fields__:
            setting = replace(setting, optimizer=replace(setting.optimizer, **{key: parsed}))
        else:
            setting = replace(setting, changes=setting.changes | {key: parsed})
    return setting


if __name__ == "__main__":
    main()
