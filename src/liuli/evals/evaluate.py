"""One call that measures everything and writes it down.

Comes in: a model folder, the curriculum's folder, held-out text, and how much time there is. Goes out: one dict, also
as `eval.json`, in the shape that `liuli eval`, the report and the page read:

`model` `bits` `bits_before` `bits_rival` (by language) `versus` (against an earlier model) `skills` (a row a cell)
`headline` (the figures a build is judged by) `talk` (by language) `speed` `examples` `mistakes` (conversations) `asked`
`seconds` `machine` `versions`; what was not measured is missing.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from liuli.curriculum import seed_of
from liuli.engine import Engine, Model
from liuli.errors import UsageError
from liuli.evals.bits import bits_by_language
from liuli.evals.headline import HEADLINES, LANGUAGES, family, headline
from liuli.evals.skills import Item, Result, ask_all, deal, table
from liuli.evals.speed import speed
from liuli.evals.talk import talk
from liuli.evals.versus import compare
from liuli.files import folder_hash, read_lines, write_json
from liuli.model import parameter_count
from liuli.text import Document, read_documents, render

TEXT_BYTES = 1_000_000  # of each language, enough for the third digit of bits per byte
TALKS = 48  # prompts of each language for the talk figures
SHOWN = 8  # conversations kept as examples, and as mistakes
GREETINGS = {"en": ("Hello!", "Tell me a story.", "Who are you?"), "zh": ("你好！", "讲一个故事。", "你是谁？")}
Progress = Callable[[str, int, int], None]


def evaluate(
    model_folder: str | Path,
    *,
    curriculum: str | Path | None = None,
    texts: Sequence[str | Path | Document] = (),
    before: str | Path | None = None,
    rival: str | Path | None = None,
    limit: int | None = None,
    seconds: float | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure a model; see the file's head for what comes back.

    curriculum: folder with `eval.jsonl`. texts: held-out documents or where to read them. before: the folder of the
    model that this one was tuned from, read on the same texts: tuning forgets. rival: a model to be compared with,
    answer by answer (evals/versus.py). limit: items of a cell (skill, language, split). seconds: for everything
    together; of each part as much is measured as there is time for, but a little of it in any case. out: folder for
    `eval.json`.
    """
    began, folder = time.monotonic(), Path(model_folder)
    budget = math.inf if seconds is None else seconds

    def left() -> float:
        return budget - (time.monotonic() - began)

    engine = Model(folder, device).engine
    items = read_items(curriculum) if curriculum else []
    figures: dict[str, Any] = {"model": describe(folder, engine)}
    progress("speed", 0, 1)
    figures["speed"] = speed(engine, seconds=min(3.0, 0.1 * budget))
    if texts:
        progress("text", 0, 1)
        figures["bits"] = read_aloud(engine, texts, 0.15 * budget)
        if before is not None:
            figures["bits_before"] = read_aloud(Model(before, device).engine, texts, 0.1 * budget)
        if rival is not None:
            figures["bits_rival"] = read_aloud(Model(rival, device).engine, texts, 0.1 * budget)
    if rival is not None:
        progress("versus", 0, 1)
        classroom, count = seed_of(Path(curriculum)) if curriculum else 0, int(max(2, min(12, budget / 4)))
        figures["versus"] = compare(Model(rival, device).engine, engine, count=count, classroom=classroom)
    progress("talk", 0, 1)
    figures["talk"] = talk_by_language(engine, items, min(left(), 0.15 * budget) if items else left())
    if items:
        results = ask_all(
            engine, items, limit=limit, seconds=left(), progress=lambda done, total: progress("skills", done, total)
        )
        figures["skills"] = table(results)
        figures["headline"] = headline(figures["skills"])
        figures["examples"], figures["mistakes"] = examples(results), mistakes(results)
        figures["asked"] = {"asked": len(results), "of": len(items)}
    figures |= {"seconds": round(time.monotonic() - began, 2), "machine": machine(engine), "versions": versions()}
    if out is not None:
        write_json(Path(out) / "eval.json", figures)
    return figures


def read_aloud(engine: Engine, texts: Sequence[str | Path | Document], seconds: float) -> dict[str, Any]:
    """Bits per byte of the texts by language."""
    return bits_by_language(engine.model, engine.tokenizer, held_out(texts), context=engine.context, seconds=seconds)


def read_items(curriculum: str | Path) -> list[Item]:
    """The examination questions of a curriculum folder."""
    path = Path(curriculum) / "eval.jsonl"
    if not path.exists():
        raise UsageError("This folder holds no examination questions.", path, "Make one: liuli curriculum make OUT")
    return read_lines(path)


def read_held_out(path: str | Path) -> list[Document]:
    """The text that a build kept from its model: `rows/held_out.jsonl`."""
    return [Document(line["text"], f"{path}:{n}", language=line["language"]) for n, line in enumerate(read_lines(path))]


def held_out(texts: Sequence[str | Path | Document], most: int = TEXT_BYTES) -> Iterator[Document]:
    """The documents named or given, of each language the first `most` bytes or a little more."""
    given = [text for text in texts if isinstance(text, Document)]
    paths = [text for text in texts if not isinstance(text, Document)]
    taken: dict[str, int] = {}
    for source in (given, read_documents(paths) if paths else ()):
        for document in source:
            if taken.get(document.language, 0) < most:
                taken[document.language] = taken.get(document.language, 0) + len(document.text.encode())
                yield document


def talk_by_language(engine: Engine, items: Sequence[Item], seconds: float = math.inf) -> dict[str, Any]:
    """Talk figures by language, on questions spread over the curriculum's skills, or on a few greetings without one.

    seconds: about this long in all, shared between the languages.
    """
    figures = {}
    for language in LANGUAGES:
        first = deal(item for item in items if item["language"] == language)[:1]
        asked = [item["messages"] for one in first for item in Random(0).sample(one, min(TALKS, len(one)))]
        asked = asked or [[{"role": "user", "content": text}] for text in GREETINGS[language]]
        prompts = [render(messages, engine.tokenizer, answer=True).tokens for messages in asked]
        fitting = [prompt for prompt in prompts if len(prompt) < engine.context]
        figures[language] = talk(engine, fitting, seconds=seconds / len(LANGUAGES))
    return figures


def examples(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Right answers worth showing: of every headline skill one, languages taking turns, held-out ones first."""
    kept: list[Result] = []
    for number, one in enumerate(HEADLINES):
        right = [r for r in results if r.right and one.covers(r.item["skill"])]
        right.sort(key=lambda r: (r.item["language"] != LANGUAGES[number % 2], r.item["split"] == "train"))
        kept += right[:1]
    return [shown(result) for result in kept[:SHOWN]]


def mistakes(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Wrong answers, one of a family of skills, from the families with most of them; languages take turns."""
    wrong: dict[str, list[Result]] = {}
    for result in results:
        if not result.right:
            wrong.setdefault(family(result.item["skill"]), []).append(result)
    worst = sorted(wrong.values(), key=len, reverse=True)[:SHOWN]
    return [
        shown(min(own, key=lambda result: result.item["language"] != LANGUAGES[number % 2]))
        for number, own in enumerate(worst)
    ]


def shown(result: Result) -> dict[str, Any]:
    """A result as it stands in `eval.json`."""
    keys = ("id", "skill", "language", "split", "messages", "answer")
    return {key: result.item[key] for key in keys} | {"said": result.said, "right": result.right}


def describe(folder: Path, engine: Engine) -> dict[str, Any]:
    """Which model this is."""
    config = engine.model.config
    return {
        "name": folder.name,
        "hash": folder_hash(folder) if (folder / "manifest.json").exists() else None,
        "preset": config.preset,
        "parameters": parameter_count(config)["total"],
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "shape": {key: getattr(config, key) for key in ("layers", "width", "vocab_size", "context")},
    }


def machine(engine: Engine) -> dict[str, Any]:
    """Where it was measured."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    gpu = {"gpu": torch.cuda.get_device_name(engine.device)} if engine.device.type == "cuda" else {}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    } | gpu


def versions() -> dict[str, str]:
    """With what it was measured."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("liuli", "torch", "tokenizers")}
