"""The plan: a law that is fitted to runs, and a shape whose vocabulary follows its size."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

from liuli import plan, planning
from liuli.errors import LiuliError
from liuli.model import flops_per_token
from liuli.plan import (
    HEAD_SHARE,
    LADDER,
    LEAST_VOCABULARY,
    Law,
    Run,
    candidates,
    fit_law,
    isoflop_svg,
    known_law,
    make_plan,
    sweep,
)
from liuli.stages.training import TrainOptions, wants_compile
from liuli.text import Document, Tokenizer
from liuli.text.corpus import make_rows
from liuli.train.machine import Machine, measure_machine

KNOWN = Law(0.8, 120.0, 0.4, 900.0, 0.5, "known")


def runs_of(law: Law) -> list[Run]:
    """A sweep that obeys a law exactly: three budgets, five sizes."""
    sizes = [200_000, 400_000, 800_000, 1_600_000, 3_200_000]
    grid = itertools.product((1e12, 4e12, 1.6e13), sizes)
    made = [(n, int(flops / (6 * n)), flops) for flops, n in grid]
    return [Run(n, d, flops, law.bits(n, d), 4, 128) for n, d, flops in made]


def test_the_fit_finds_the_law_that_the_runs_obey() -> None:
    found = fit_law(runs_of(KNOWN), "test")
    for size, tokens in ((100_000, 1e6), (1e6, 1e7), (1e7, 1e9)):  # the last is far outside of what was fitted
        assert found.bits(size, tokens) == pytest.approx(KNOWN.bits(size, tokens), rel=0.02)


def test_too_few_runs_or_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LiuliError, match="too few"):
        fit_law(runs_of(KNOWN)[:5], "test")
    tokenizer = Tokenizer.train(["one line"] * 3, 300)
    rows = make_rows([Document("word " * 100)], tokenizer, 64, tmp_path / "rows")
    with pytest.raises(LiuliError, match="rows are too few"):
        sweep(rows, tokenizer)


@pytest.mark.parametrize("preset", ["qwen3", "racer"])
def test_vocabulary_follows_size(preset: str) -> None:
    ladder = list(candidates(preset, 256, None))
    assert len(ladder) == len(LADDER)
    assert all(flops_per_token(c)["head"] <= HEAD_SHARE for c in ladder if c.vocab_size > LEAST_VOCABULARY)
    assert all(a.vocab_size <= b.vocab_size for a, b in itertools.pairwise(ladder))


def test_the_plan_is_the_rung_of_lowest_expected_loss_and_keeps_a_given_shape() -> None:
    small = Law(0.1, 0.0, 0.5, 1000.0, 0.5, "size is worth nothing")
    large = Law(0.1, 1000.0, 0.5, 0.0, 0.5, "data is worth nothing")
    options = {"compile": "no", "probe_seconds": 0.1, "batch_tokens": 512, "context": 64}
    assert make_plan(1, law=small, **options).width == LADDER[0][1]
    assert make_plan(1, law=large, **options).width == LADDER[-1][1]
    fixed = make_plan(1, layers=3, width=96, **options)
    assert (fixed.layers, fixed.width) == (3, 96)
    assert fixed.tokens == pytest.approx(fixed.tokens_per_s * 59, rel=0.01)
    part = make_plan(1, law=small, layers=3, width=96, reading=0.1, **options)  # what reading alone will have seen
    assert part.bpb == pytest.approx(small.bits(1, 0.1 * part.tokens), abs=1e-3)


def test_what_is_left_open_of_a_shape_is_that_of_the_nearest_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measured_rates", lambda *_: [(128, 1e11)])
    given = [{"layers": 1}, {"layers": 5}, {"layers": 30}, {"width": 300}, {"width": 4096}]
    made = [make_plan(1, compile="no", **part) for part in given]
    shapes = [(3, 128), (5, 256), (24, 1536), (6, 320), (24, 1536)]
    wanted = [(part.get("layers", n), part.get("width", w)) for part, (n, w) in zip(given, shapes, strict=True)]
    assert [(one.layers, one.width) for one in made] == wanted


@pytest.mark.parametrize("kind", ["curriculum", "text"])
@pytest.mark.parametrize(
    ("rates", "shape"),  # FLOP/s of training by width, as measured on two cores without AVX-512 and on two with it
    [({128: 66e9, 256: 90e9, 384: 100e9}, (3, 128)), ({128: 220e9, 256: 420e9, 384: 500e9}, (4, 192))],
)
def test_a_quarter_of_an_hour_makes_a_model_of_a_size_that_it_is_enough_for(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], shape: tuple[int, int], kind: str
) -> None:
    monkeypatch.setattr(plan, "measured_rates", lambda *_: list(rates.items()))
    made = make_plan(0.85 * 15, kind=kind, law=plan.LAWS[kind], compile="no")
    assert (made.layers, made.width, made.vocab_size) == (*shape, 2560)
    assert 5 < made.tokens / made.parameters < 10
    longer = make_plan(0.85 * 240, kind=kind, law=plan.LAWS[kind], compile="no")
    assert longer.parameters > 2 * made.parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_its_own_it_compiles_what_is_long_and_in_bfloat16(dtype: str) -> None:
    machine = Machine("cpu", "test", 2, dtype, 1e9, 1e9, 0, compiler=True)
    assert wants_compile(TrainOptions(minutes=15), machine, 900) is (dtype == "bfloat16")
    assert not wants_compile(TrainOptions(minutes=1), machine, 60)
    assert wants_compile(TrainOptions(minutes=1, compile="yes"), machine, 60)


@pytest.mark.parametrize(("able", "narrow", "asked"), [(False, 1e9, [128]), (True, 4e11, [2048])])
def test_a_processor_slow_in_bfloat16_is_asked_for_a_small_product_only(
    monkeypatch: pytest.MonkeyPatch, able: bool, narrow: float, asked: list[int]
) -> None:
    """However busy it is: a large product takes it a minute."""
    sizes = []

    def rate(device: str, dtype: torch.dtype, size: int) -> float:
        sizes.extend([size] if dtype == torch.bfloat16 else [])
        return narrow if dtype == torch.bfloat16 else 1e11

    monkeypatch.setattr("liuli.train.machine.matmul_rate", rate)
    monkeypatch.setattr("liuli.train.machine.choose_device", lambda: "cpu")
    monkeypatch.setattr("liuli.train.machine.multiplies_bfloat16", lambda device: able)
    machine = measure_machine.__wrapped__()
    assert sizes == asked and machine.dtype == ("bfloat16" if able else "float32")


def test_a_users_law_is_used_for_its_kind_and_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FITTED", tmp_path / "laws")
    plan.save_law(KNOWN, runs_of(KNOWN), tmp_path / "out", "text")
    assert known_law("text") == KNOWN
    assert known_law("curriculum") == plan.LAWS["curriculum"]
    assert len(json.loads((tmp_path / "out" / "runs.json").read_text())) == 15
    (tmp_path / "laws" / "law-text.json").write_text('{"floor": 1}')
    with pytest.raises(LiuliError, match="not a law"):
        known_law("text")


def test_a_sweep_trains_every_rung_with_every_budget_and_its_plot_is_drawn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = ["river", "stone", "light", "green", "house", "seven"]
    texts = [" ".join(generator.choice(words, 300)) for _ in range(60)]
    tokenizer = Tokenizer.train(texts, 300)
    rows = make_rows([Document(text) for text in texts], tokenizer, 64, tmp_path / "rows")
    rungs = [(1, 32), (2, 64)]
    runs = sweep(rows, tokenizer, minutes=0.01, rungs=rungs)
    assert [(run.layers, run.width) for run in runs] == rungs * 3
    assert all(0 < run.bits < 8 for run in runs)
    drawn = ET.fromstring(isoflop_svg(fit_law(runs, "test"), runs))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == len(runs)


@pytest.mark.parametrize("place", ["rows", "run/rows/pretrain"])
def test_rows_are_fitted_with_the_tokenizer_beside_them_or_in_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    tokenizer = Tokenizer.train(["one line"] * 3, 300)
    tokenizer.save(tmp_path / ("tokenizer" if place == "rows" else "run/tokenizer"))
    make_rows([Document("word " * 100)], tokenizer, 64, tmp_path / place)
    found: list[int] = []

    def no_sweep(rows: object, tokenizer: Tokenizer, **_: object) -> list[Run]:
        found.append(tokenizer.vocab_size)
        return runs_of(KNOWN)

    monkeypatch.setattr(planning, "sweep", no_sweep)
    monkeypatch.setattr(plan, "FITTED", tmp_path / "laws")
    planning.fit_here(tmp_path / place, minutes=1, preset="qwen3", context=64, out=tmp_path / "law")
    assert found == [tokenizer.vocab_size] and known_law("text").source.startswith("fitted on")
