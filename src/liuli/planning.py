"""`liuli plan`: a plan for people and machines, and the sweep that fits its law to this machine and data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from liuli.plan import Plan, fit_law, make_plan, save_law, sweep
from liuli.text import Rows, Tokenizer, pack_documents, read_documents

FIT_BYTES = 20_000_000  # of text that a sweep reads at the most
FIT_VOCABULARY = 2048


def show(minutes: float, *, preset: str, context: int, kind: str, as_json: bool) -> None:
    plan = make_plan(minutes, preset=preset, context=context, kind=kind)
    if as_json:
        print(json.dumps(asdict(plan)))
        return
    table = Table(title=f"What {minutes:g} minutes of training buy here", show_header=False)
    for name, value in lines(plan):
        table.add_row(name, value)
    Console().print(table)


def lines(plan: Plan) -> list[tuple[str, str]]:
    m = plan.machine
    return [
        ("machine", f"{m['name']}, {m['threads']} threads, {m['device']}"),
        ("matmul peak", f"{m['bfloat16_rate'] / 1e9:,.0f} GFLOP/s bfloat16, {m['float32_rate'] / 1e9:,.0f} float32"),
        ("model", f"{plan.preset}, {plan.layers} layers of {plan.width}, {plan.parameters / 1e6:.2f}M parameters"),
        ("vocabulary", f"{plan.vocab_size:,} (head: {plan.head_share:.0%} of the FLOPs)"),
        ("context, batch", f"{plan.context} tokens, {plan.batch_tokens:,} a step"),
        ("speed", f"{plan.tokens_per_s:,.0f} tokens/s{', compiled' if plan.compile else ''}"),
        ("training", f"{plan.tokens / 1e6:.1f}M tokens, {plan.flops:.2e} FLOPs, {plan.minutes:g} minutes"),
        ("expected", f"{plan.bpb:.2f} bits per byte (law: {plan.law})"),
    ]


def fit_here(data: Path, *, minutes: float, preset: str, context: int, out: Path) -> str:
    """Re-fit the law on a folder of rows (its tokenizer beside it, or in the run) or on text; the kind of its data."""
    console = Console(stderr=True)
    if (data / "index.json").exists():
        places = [folder / "tokenizer" for folder in list(data.resolve().parents)[:2]]
        beside = next((place for place in places if place.exists()), places[0])
        rows, tokenizer = Rows.open(data), Tokenizer.load(beside)
    else:
        rows, tokenizer = rows_of(data, context, out)
    with Progress(console=console) as bar:
        task = bar.add_task("sweep", total=1)

        def progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=f"sweep {text}")

        runs = sweep(rows, tokenizer, preset=preset, minutes=minutes, progress=progress)
    law = fit_law(runs, f"fitted on {data.name}, {preset}, context {context}")
    kind = "curriculum" if lessons_beside(data) else "text"
    save_law(law, runs, out, kind)
    console.print(f"law and plot: {out / 'law.json'}, {out / 'isoflop.svg'}; plans for {kind} use it from now on")
    return kind


def lessons_beside(data: Path) -> bool:
    """Whether these are lessons of the classroom, or rows that a build made of them."""
    return any(
        (folder / "curriculum").is_dir() or (folder / "about.json").is_file() for folder in (data, *data.parents)
    )


def rows_of(data: Path, context: int, out: Path) -> tuple[Rows, Tokenizer]:
    texts, size = [], 0
    for document in read_documents([data]):
        texts.append(document.text)
        size += len(document.text.encode())
        if size > FIT_BYTES:
            break
    tokenizer = Tokenizer.train(texts, FIT_VOCABULARY)
    rows = pack_documents(
        tokenizer.encode_batch(texts), context, out / "rows", vocab_size=tokenizer.vocab_size, replace=True
    )
    return rows, tokenizer
