"""`liuli eval`: measure with a progress bar, print, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from liuli.evals.evaluate import evaluate, read_held_out
from liuli.evals.show import show

DOING = {
    "text": "Reading held-out text",
    "speed": "Timing",
    "talk": "Listening to it talk",
    "skills": "Asking questions",
}


def eval_with_progress(
    model: Path,
    curriculum: Path | None,
    texts: Sequence[str],
    limit: int | None,
    seconds: float | None,
    out: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run `evaluate`, with the curriculum and the held-out text of the model's run where none are given.

    Written only where `out` says: a run's own eval.json belongs to its report, and may hold more than was asked now.
    """
    run = model.resolve().parent
    if curriculum is None and (run / "curriculum" / "eval.jsonl").exists():
        curriculum = run / "curriculum"
    held = run / "rows" / "held_out.jsonl"
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("Loading", total=None)
        figures = evaluate(
            model,
            curriculum=curriculum,
            texts=texts or (read_held_out(held) if held.exists() else ()),
            limit=limit,
            seconds=seconds,
            out=out,
            device=device,
            progress=lambda what, done, total: bar.update(task, description=DOING[what], completed=done, total=total),
        )
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    show(figures, Console())
    print(f"Written to {out / 'eval.json'}" if out else "Not written to a file: --out FOLDER writes FOLDER/eval.json.")
