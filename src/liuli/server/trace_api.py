"""The microscope's questions: which steps of reinforcement learning were traced, and what happened to their tokens.

In: the traces and the log of a run folder that another process may be writing (`liuli.train.trace`). Out: plain values
for the page. It only reads; a step that is pruned while someone looks at it is a 404.

    GET /api/traces                          the stages: their traced steps, their figures step by step
    GET /api/traces/STAGE/STEP               the step's answers: ?sort=score&order=down&offset=0&limit=50
    GET /api/traces/STAGE/STEP/SEQUENCE      the tokens of one answer, and its prompt's answers then and now
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request

from liuli.errors import DamagedError, LiuliError
from liuli.server.errors import ApiError
from liuli.server.runs import POINTS_AT_MOST, LineReader, thin
from liuli.train.trace import TOKENS, read_tables, read_trace, traced_steps

FIGURES = (
    *("score", "true_score", "kl", "entropy", "length"),
    *("stop_rate", "explained_variance", "clip_fraction", "beta"),
)
SORTS = ("sequence", "score", "length", "kl")
LIMIT = 200  # answers a request
T = TypeVar("T")
HELD = 8  # steps in memory: those that are being looked at


def trace_routes(run: Path | None) -> APIRouter:
    """The routes under /api/traces of a run folder; of a model folder (None) they hold nothing."""
    routes = APIRouter(prefix="/api/traces")
    figures = StepFigures(LineReader(run / "log.jsonl")) if run else None

    @routes.get("")
    async def stages() -> dict[str, Any]:
        steps = traced_steps(run) if run else {}
        points = figures.read() if figures else {}
        names = [*points, *(name for name in steps if name not in points)]
        return {"stages": [{"name": n, "steps": steps.get(n, []), "figures": points.get(n, [])} for n in names]}

    @routes.get("/{stage}/{step}")
    def answers(stage: str, step: str, request: Request) -> dict[str, Any]:
        traced = _traced(run, stage, step)
        asked = request.query_params
        sort, order = _choice(asked.get("sort", "sequence"), SORTS), _choice(asked.get("order", "up"), ("up", "down"))
        offset, limit = _number(asked.get("offset", "0"), "offset"), _number(asked.get("limit", "50"), "limit")
        known = [answer for answer in traced.answers if answer[sort] is not None]
        unknown = [answer for answer in traced.answers if answer[sort] is None]
        ordered = sorted(known, key=lambda answer: answer[sort], reverse=order == "down") + unknown
        shown = ordered[offset : offset + min(limit, LIMIT)]
        return {"total": len(ordered), "offset": offset, "answers": shown, "scales": traced.scales}

    @routes.get("/{stage}/{step}/{sequence}")
    def tokens(stage: str, step: str, sequence: str) -> dict[str, Any]:
        traced, number = _traced(run, stage, step), _number(sequence, "sequence")
        answer = next((each for each in traced.answers if each["sequence"] == number), None)
        if answer is None or run is None:
            raise ApiError(404, f"Step {step} has no sequence {number}.")
        columns = _clear(lambda: read_trace(run, stage, int(step), number)["tokens"])
        columns = {name: [_short(value) for value in values] for name, values in columns.items()}
        return {"answer": answer, "tokens": columns, "same_prompt": _same_prompt(run, stage, answer["prompt"])}

    return routes


# --- a traced step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """answers: rows of SEQUENCES and the kl of the whole answer, in nats. scales: the usual range of each figure."""

    answers: list[dict[str, Any]]
    scales: dict[str, tuple[float, float]]


def _traced(run: Path | None, stage: str, step: str) -> Traced:
    number = _number(step, "step")
    if run is None or number not in traced_steps(run).get(stage, []):
        raise ApiError(404, f"Step {step} of {stage} is not traced, or no longer kept.", code="not_traced")
    written = run / "traces" / stage / f"{number:08d}.sequences.parquet"
    return _clear(lambda: _load(run, stage, number, written.stat().st_mtime_ns))


@functools.lru_cache(maxsize=HELD)
def _load(run: Path, stage: str, step: int, written: int) -> Traced:
    """written: when, so that a step that a resumed run did again is read again."""
    tokens, sequences = read_tables(run, stage, step)
    drawn = tokens.filter(tokens["drawn"])
    sums = drawn.select(["sequence", "kl"]).group_by("sequence").aggregate([("kl", "sum")]).to_pydict()
    kl = dict(zip(sums["sequence"], sums["kl_sum"], strict=True))
    answers = [{key: _short(value) for key, value in row.items()} for row in sequences.to_pylist()]
    numbers = [column.name for column in TOKENS if column.type == pa.float32()]
    scales = {name: scale for name in numbers if (scale := _scale(drawn[name])) is not None}
    return Traced([answer | {"kl": _short(kl.get(answer["sequence"]))} for answer in answers], scales)


def _scale(column: pa.ChunkedArray) -> tuple[float, float] | None:
    """The range of all but the outermost values, so that one of them does not pale the others."""
    values = column.drop_null().to_numpy()
    values = values[np.isfinite(values)]
    return (_short(float(np.quantile(values, 0.02))), _short(float(np.quantile(values, 0.98)))) if len(values) else None


def _same_prompt(run: Path, stage: str, prompt: str) -> list[dict[str, Any]]:
    """The answers to a prompt at the first and at the newest traced step, where it was asked there."""
    steps = traced_steps(run).get(stage, [])
    found = []
    for step in sorted({*steps[:1], *steps[-1:]}):
        answers = [each for each in _traced(run, stage, str(step)).answers if each["prompt"] == prompt]
        found += [{"step": step, "answers": answers}] if answers else []
    return found


def _clear(read: Callable[[], T]) -> T:
    """What `read` returns; the page gets its errors without the paths of this machine."""
    try:
        return read()
    except FileNotFoundError:
        raise ApiError(404, "This step is no longer kept.", code="not_traced") from None
    except DamagedError as error:
        raise ApiError(500, f"This step cannot be read: {error.what}.", code="damaged") from None
    except LiuliError as error:
        raise ApiError(404, f"{error.what}.") from None


def _short(value: Any) -> Any:
    """Six digits are enough for eyes; what JSON cannot hold is not defined."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise ApiError(400, f"{name!r} must be a whole number, not {text!r}.", param=name)
    return int(text)


def _choice(text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise ApiError(400, f"Known are {', '.join(known)}; not {text!r}.")
    return text


# --- figures ---------------------------------------------------------------------------------------------------------


@dataclass
class StepFigures:
    """The figures of the stages that learn from rewards, read on as the log grows. A step done again counts once."""

    log: LineReader
    stages: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """{stage: points}, each with its step and FIGURES, None where one is missing."""
        lines, anew = self.log.read()
        if anew:
            self.stages.clear()
        for line in lines:
            point = {name: _figure(line.get(name)) for name in ("step", *FIGURES)}
            if "event" not in line and point["step"] is not None and (point["score"], point["kl"]) != (None, None):
                self.stages.setdefault(str(line.get("stage", "")), {})[int(point["step"])] = point
        ordered = {stage: [points[step] for step in sorted(points)] for stage, points in self.stages.items()}
        return {stage: thin(points, POINTS_AT_MOST) for stage, points in ordered.items()}


def _figure(value: Any) -> Any:
    return _short(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None
