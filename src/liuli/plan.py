"""From minutes to a plan: which model, how many tokens, how good it will be.

In: a budget and this machine. Out: the shape whose expected loss is lowest, by a law fitted to small runs
(Hoffmann et al., arXiv 2203.15556, eq. 2), measured in bits per byte so that vocabularies can be compared.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from liuli.errors import LiuliError, UsageError
from liuli.files import read_json, write_file, write_json
from liuli.model import ModelConfig, Transformer, flops_per_token, parameter_count
from liuli.stages.pretrain import MAKERS, check_preset
from liuli.stages.training import (
    COMPILE_SAVES,
    COMPILE_SECONDS,
    TrainOptions,
    optimizer_options,
    rows_per_step,
    wants_compile,
)
from liuli.text import Batch, Loader, Rows, Tokenizer
from liuli.train import (
    LoopOptions,
    Machine,
    Optimizer,
    OptimizerOptions,
    Pace,
    TensorBatch,
    measure_machine,
    next_token,
)
from liuli.train.loop import Training, to_tensors
from liuli.train.machine import synchronise

LADDER = (
    (3, 128), (4, 192), (5, 256), (6, 320), (6, 384), (8, 448), (8, 512), (10, 640), (12, 768),
    (14, 896), (16, 1024), (20, 1280), (24, 1536),
)  # fmt: skip
HEAD_SHARE = 0.2  # of the model's FLOPs at the most: vocabulary follows size
LEAST_VOCABULARY = 2560  # below it Chinese falls into bytes, and a small model reads less for as many tokens


@dataclass(frozen=True)
class Law:
    """Expected bits per byte: floor + size_factor / N^size_power + data_factor / D^data_power.

    N: weights in matrix multiplications (blocks and head). D: training tokens.
    """

    floor: float
    size_factor: float
    size_power: float
    data_factor: float
    data_power: float
    source: str

    def bits(self, size: float, tokens: float) -> float:
        bits: float = self.floor + self.size_factor / size**self.size_power + self.data_factor / tokens**self.data_power
        return bits


# A guess from a few laptop runs, not a fit: the plan says so. `liuli plan --fit` puts the user's own in its place.
# A dozen tokens or so a weight: builds of much fewer knew less than those of a smaller model (docs/benchmarks.md).
LAWS = {
    "curriculum": Law(0.10, 200.0, 0.50, 700.0, 0.50, "a guess, not fitted: run liuli plan --fit DATA"),
    "text": Law(0.9, 78.0, 0.35, 200.0, 0.35, "a guess, not fitted: run liuli plan --fit DATA"),
}
FITTED = Path.home() / ".liuli"  # law-text.json, law-curriculum.json: the user's own fits


def known_law(kind: str) -> Law:
    """The user's own fit if there is one, else the packaged law, for "curriculum" or "text"."""
    path = FITTED / f"law-{kind}.json"
    if not path.exists():
        return LAWS[kind]
    try:
        return Law(**read_json(path))
    except (TypeError, ValueError):
        raise LiuliError("this is not a law", path, "remove it, or fit again with liuli plan --fit DATA") from None


@dataclass(frozen=True)
class Plan:
    """What will be built. minutes: of training, all training stages together."""

    minutes: float
    preset: str
    layers: int
    width: int
    vocab_size: int
    context: int
    batch_tokens: int
    compile: bool
    tokens: int
    tokens_per_s: float
    parameters: int
    flops: float
    head_share: float
    bpb: float
    law: str
    machine: dict[str, Any]


def vocabulary_for(layers: int, width: int, preset: str, context: int) -> int:
    """The largest vocabulary, in steps of 256, whose head costs under a fifth of the FLOPs; 2,560 to 65,536."""
    body = flops_per_token(MAKERS[preset](256, width, layers, context=context))
    without_head = body["model"] / 3 - 2 * 256 * width
    most = HEAD_SHARE / (1 - HEAD_SHARE) * without_head / (2 * width)
    return int(min(65_536, max(LEAST_VOCABULARY, most // 256 * 256)))


def candidates(preset: str, context: int, vocab_size: int | None) -> Iterator[ModelConfig]:
    """The ladder of shapes, each with the vocabulary that belongs to it (or the one given)."""
    for layers, width in LADDER:
        V = vocab_size or vocabulary_for(layers, width, preset, context)
        yield MAKERS[preset](V, width, layers, context=context)


def scaling_size(config: ModelConfig) -> int:
    """N of the law: weights that a token is multiplied with."""
    return parameter_count(config)["blocks"] + config.vocab_size * config.width


def step_seconds(config: ModelConfig, machine: Machine, batch_tokens: int, tries: int = 2) -> float:
    """Best time of one eager optimizer step, after one to warm up."""
    torch.manual_seed(0)
    model = Transformer(config).to(machine.device)
    model.compute_dtype = machine.compute_dtype
    optimizer = Optimizer(model, OptimizerOptions(), machine.compute_dtype)
    tokens = torch.randint(
        0, config.vocab_size, (max(1, batch_tokens // config.context), config.context), device=machine.device
    )
    batch = TensorBatch(tokens, tokens, torch.ones(tokens.shape, device=machine.device))
    best = math.inf
    for _ in range(tries + 1):
        start = time.perf_counter()
        (next_token(model, batch) / tokens.numel()).backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
        optimizer.zero_grad()
        synchronise(machine.device)
        best = min(best, time.perf_counter() - start)
    return best


def measured_rates(
    configs: Sequence[ModelConfig], machine: Machine, batch_tokens: int, seconds: float
) -> list[tuple[float, float]]:
    """(width, FLOP/s reached in training) of the configs, narrow to wide, at least one, as many as `seconds` allow."""
    rates: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    step_seconds(configs[0], machine, batch_tokens, 1)  # the first steps of a process load kernels
    for config in configs:
        start = time.perf_counter()
        rate = batch_tokens * flops_per_token(config)["model"] / step_seconds(config, machine, batch_tokens)
        rates.append((config.width, rate))
        if 2 * time.perf_counter() - start > end:  # the next one takes longer still
            break
    return rates


def make_plan(
    minutes: float,
    *,
    preset: str = "qwen3",
    context: int = 256,
    vocab_size: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    batch_tokens: int = TrainOptions.batch_tokens,
    compile: Literal["auto", "yes", "no"] = "auto",
    law: Law | None = None,
    kind: str = "curriculum",
    probe_seconds: float = 4.0,
    reading: float = 1.0,
) -> Plan:
    """Time this machine, then choose the rung with the lowest expected loss after `minutes` of training.

    layers and width fix the shape instead. reading: share of the tokens that is pretraining, whose bits per byte are
    told. Takes under ten seconds.
    """
    check_preset(preset, "plan")
    if minutes <= 0:
        raise UsageError(f"{minutes} minutes are no budget", "--minutes", "give a number above 0")
    machine, law = measure_machine(), law or known_law(kind)
    seconds = minutes * 60
    compiled = wants_compile(TrainOptions(minutes=minutes, compile=compile), machine, seconds)
    speed_up, start_up = (1 / (1 - COMPILE_SAVES), COMPILE_SECONDS) if compiled else (1.0, 1.0)
    options = list(candidates(preset, context, vocab_size))
    if layers or width:
        near = min(options, key=lambda c: abs(c.width - width) if width else abs(c.layers - (layers or 0)))
        shape = (layers or near.layers, width or near.width)
        V = vocab_size or vocabulary_for(*shape, preset, context)
        config = MAKERS[preset](V, shape[1], shape[0], context=context)
        options = [config]
    rates = measured_rates(options[::2], machine, batch_tokens, probe_seconds)
    widths, reached = np.log([w for w, _ in rates]), np.array([r for _, r in rates])

    def judged(config: ModelConfig) -> tuple[float, float, ModelConfig]:
        rate = float(np.interp(math.log(config.width), widths, reached)) * speed_up
        tokens_per_s = rate / flops_per_token(config)["model"]
        bits = law.bits(scaling_size(config), max(1.0, tokens_per_s * max(1.0, seconds - start_up)))
        return bits, tokens_per_s, config

    _, tokens_per_s, config = min((judged(option) for option in options), key=lambda found: found[0])
    tokens = int(tokens_per_s * max(1.0, seconds - start_up))
    costs = flops_per_token(config)
    return Plan(
        minutes=minutes,
        preset=preset,
        layers=config.layers,
        width=config.width,
        vocab_size=config.vocab_size,
        context=context,
        batch_tokens=batch_tokens,
        compile=compiled,
        tokens=tokens,
        tokens_per_s=round(tokens_per_s),
        parameters=parameter_count(config)["total"],
        flops=tokens * costs["train"],
        head_share=round(costs["head"], 3),
        bpb=round(law.bits(scaling_size(config), max(1.0, reading * tokens)), 3),
        law=law.source,
        machine=asdict(machine),
    )


# --- fitting the law -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One small run of the sweep: N, D, FLOPs, and bits per byte reached on rows kept back."""

    size: int
    tokens: int
    flops: float
    bits: float
    layers: int
    width: int


def sweep(
    rows: Rows,
    tokenizer: Tokenizer,
    *,
    preset: str = "qwen3",
    minutes: float = 4.0,
    budgets: int = 3,
    rungs: Sequence[tuple[int, int]] = LADDER[:4],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Run]:
    """Train every rung with every budget of FLOPs (each twice the one before), all together in about `minutes`."""
    if len(rows) < 2 * HELD_ROWS:
        raise LiuliError(f"{len(rows)} rows are too few to fit a law", "plan --fit", f"give {2 * HELD_ROWS} or more")
    machine, batch_tokens = measure_machine(), TrainOptions.batch_tokens
    configs = [MAKERS[preset](tokenizer.vocab_size, width, layers, context=rows.T) for layers, width in rungs]
    costs = [flops_per_token(config)["model"] for config in configs]
    rate = [
        batch_tokens * c / step_seconds(config, machine, batch_tokens) for c, config in zip(costs, configs, strict=True)
    ]
    units = sum(2.0**b for b in range(budgets))
    unit = minutes * 60 / (units * sum(1 / r for r in rate))  # FLOPs of the smallest budget
    grid = list(itertools.product(range(budgets), zip(configs, costs, strict=True)))
    runs: list[Run] = []
    for number, (budget, (config, cost)) in enumerate(grid):
        progress(number, len(grid), f"{config.layers} x {config.width}")
        steps = max(10, round(unit * 2**budget / cost / batch_tokens))
        bits = short_run(config, rows, tokenizer, steps, machine)
        tokens = steps * batch_tokens
        runs.append(Run(scaling_size(config), tokens, tokens * cost, bits, config.layers, config.width))
    progress(len(grid), len(grid), "")
    return runs


HELD_ROWS = 64  # rows at the end that a sweep measures on and does not train on


def short_run(config: ModelConfig, rows: Rows, tokenizer: Tokenizer, steps: int, machine: Machine) -> float:
    """Bits per byte on the held rows after `steps` of the very training that a stage does."""
    options = TrainOptions(steps=steps)
    torch.manual_seed(options.seed)
    model = Transformer(config).to(machine.device)
    model.compute_dtype = machine.compute_dtype
    run = Training(
        model,
        Optimizer(model, optimizer_options(options), machine.compute_dtype),
        Loader(replace(rows, tokens=rows.tokens[:-HELD_ROWS], weights=None), rows_per_step(options, rows.T), 0),
        next_token,
        Pace(steps=steps),
        LoopOptions(warmup=options.warmup, decay=options.cooldown),
        machine,
        tokenizer.bos,
    )
    while run.pace.progress < 1:
        run.take_step()
        run.pace.advance(run.step)
    held = rows.tokens[-HELD_ROWS:].astype(np.int64)
    targets = held[:, 1:]
    batch = Batch(held[:, :-1], targets, np.ones(targets.shape, np.float32), 0)
    with torch.no_grad():
        nats = next_token(model, to_tensors(batch, slice(None), machine.device, tokenizer.bos)).item()
    return nats / math.log(2) / float(tokenizer.bytes_per_id[targets].sum())


def fit_law(runs: Sequence[Run], source: str) -> Law:
    """Least squares: a grid over the two powers, the three other numbers solved for and kept non-negative."""
    if len(runs) < 6:
        raise LiuliError(f"{len(runs)} runs are too few to fit a law", "plan", "use at least 6")
    sizes = np.array([run.size for run in runs], float)
    tokens = np.array([run.tokens for run in runs], float)
    bits = np.array([run.bits for run in runs])
    best: tuple[float, Law] | None = None
    powers = np.arange(0.10, 1.01, 0.02)
    for alpha, beta in itertools.product(powers, powers):
        # columns scaled to about one, so that the three numbers are comparable
        columns = np.stack([np.ones_like(bits), (sizes / sizes.mean()) ** -alpha, (tokens / tokens.mean()) ** -beta], 1)
        found = non_negative_least_squares(columns, bits)
        error = float(((columns @ found - bits) ** 2).sum())
        if best is None or error < best[0]:
            law = Law(
                float(found[0]),
                float(found[1] * sizes.mean() ** alpha),
                float(alpha),
                float(found[2] * tokens.mean() ** beta),
                float(beta),
                source,
            )
            best = (error, law)
    assert best is not None
    return best[1]


def non_negative_least_squares(columns: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The best non-negative solution for three unknowns: try every set of unknowns held at zero."""
    count = columns.shape[1]
    best, best_error = np.zeros(count), math.inf
    for used in itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(1, count + 1)):
        solution = np.zeros(count)
        solution[list(used)] = np.linalg.lstsq(columns[:, used], wanted, rcond=None)[0]
        error = float(((columns @ solution - wanted) ** 2).sum())
        if (solution >= 0).all() and error < best_error:
            best, best_error = solution, error
    return best


def save_law(law: Law, runs: Sequence[Run], folder: Path, kind: str) -> None:
    """law.json, runs.json and isoflop.svg in a folder; the law becomes the user's own for this kind of data."""
    write_json(folder / "law.json", asdict(law))
    write_file(folder / "runs.json", json.dumps([asdict(run) for run in runs], indent=1))
    write_file(folder / "isoflop.svg", isoflop_svg(law, runs))
    write_json(FITTED / f"law-{kind}.json", asdict(law))


COLOURS = ("#0f766e", "#2563eb", "#9333ea", "#db2777", "#ea580c")


def isoflop_svg(law: Law, runs: Sequence[Run], width: int = 720, height: int = 420) -> str:
    """Bits per byte against model size, a curve for each budget: points are runs, lines are the law."""
    left, right, top, bottom = 64, width - 150, 40, height - 56
    budgets = sorted({float(f"{run.flops:.1g}") for run in runs})
    sizes = [run.size for run in runs]
    low_x, high_x = math.log(min(sizes) / 1.5), math.log(max(sizes) * 1.5)
    low_y, high_y = min(run.bits for run in runs) * 0.95, max(run.bits for run in runs) * 1.05

    def place(size: float, bits: float) -> str:
        x = left + (math.log(size) - low_x) / (high_x - low_x) * (right - left)
        y = bottom - (min(max(bits, low_y), high_y) - low_y) / (high_y - low_y) * (bottom - top)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">Bits per byte by size at equal compute ({law.source})</text>',
        f'<path d="M{left},{top}V{bottom}H{right}" stroke="#888" fill="none"/>',
    ]
    for mark in np.linspace(low_y, high_y, 5):
        y = place(min(sizes), float(mark)).split(",")[1]
        parts.append(f'<text x="{left - 8}" y="{y}" text-anchor="end" fill="#555">{mark:.2f}</text>')
    for size in sorted(set(sizes)):
        x = place(size, low_y).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle" fill="#555">{size / 1e6:.2f}M</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">weights multiplied</text>')
    for number, budget in enumerate(budgets):
        colour = COLOURS[number % len(COLOURS)]
        group = [run for run in runs if float(f"{run.flops:.1g}") == budget]
        per_weight = sum(run.flops / run.tokens / run.size for run in group) / len(group)
        flops = sum(run.flops for run in group) / len(group)
        curve = [math.exp(low_x + (high_x - low_x) * step / 60) for step in range(61)]
        points = " ".join(place(size, law.bits(size, flops / (per_weight * size))) for size in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for run in group:
            x, y = place(run.size, run.bits).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{right + 12}" y="{top + 20 * (number + 1)}" fill="{colour}">{flops:.1e} FLOPs</text>')
    return "\n".join([*parts, "</svg>"])
