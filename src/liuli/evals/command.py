"""`liuli eval`: measure with a progress bar, print, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from liuli.evals.evaluate import evaluate
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
    """Run `evaluate`, with the run folder's curriculum and place for `eval.json` where none are given."""
    run = model.resolve().parent
    if curriculum is None and (run / "curriculum" / "eval.jsonl").exists():
        curriculum = run / "curriculum"
    target = out or (run if (run / "status.json").exists() else Path())
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
            texts=texts,
            limit=limit,
            seconds=seconds,
            out=target,
            device=device,
            progress=lambda what, done, total: bar.update(task, description=DOING[what], completed=done, total=total),
        )
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    show(figures, Console())
    print(f"Written to {target / 'eval.json'}")
