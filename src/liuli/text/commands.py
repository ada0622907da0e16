"""What `liuli data …` and `liuli tokenizer` do: the steps of this room with progress, for people and machines."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from liuli.errors import LiuliError, UsageError
from liuli.files import new_folder, write_json
from liuli.text.chat import Rendered, render_many
from liuli.text.clean import CleanReport, Rules, as_json, clean_documents
from liuli.text.corpus import bytes_per_token, count_tokens, make_rows
from liuli.text.dedup import DedupReport, deduplicate
from liuli.text.formats import read_conversations
from liuli.text.rows import Rows, pack_conversations
from liuli.text.sources import Document, ReadReport, read_documents
from liuli.text.tokenizer import TRAINING_CHARACTERS, Sample, Tokenizer

ESTIMATE_VOCABULARY, ESTIMATE_CHARACTERS = 4096, 1_000_000  # of the tokenizer that `stats` makes if it is given none
T_ = TypeVar("T_")


@contextmanager
def counted(what: str, read: ReadReport) -> Iterator[Callable[[Iterable[T_]], Iterator[T_]]]:
    """Give a function that passes items through and shows, on a terminal, how far the reading has come."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def through(items: Iterable[T_]) -> Iterator[T_]:
            for number, item in enumerate(items):
                if number % 100 == 0:
                    size = f"{read.bytes / 1e6:,.1f} MB, " if read.bytes else ""  # unknown of conversations
                    done = f"{read.documents:,} documents, {size}{read.files:,} files"
                    bar.update(task, description=f"{what}: {done}")
                yield item

        yield through


def tokenizer_here(
    sources: list[str], out: Path, vocab_size: int, digits: int, field: str, skip_bad: bool, as_json_: bool
) -> None:
    """The command `liuli tokenizer`."""
    read, sample = ReadReport(), Sample(TRAINING_CHARACTERS)
    by_language: dict[str, Sample] = {}
    sizes = Counter[str]()
    _must_be_new(out)
    with counted("reading", read) as through:
        for document in through(read_documents(sources, field, skip_bad, read)):
            sample.add(document.text)
            sizes[document.language] += len(document.text.encode())
            by_language.setdefault(document.language, Sample(ESTIMATE_CHARACTERS)).add(document.text)
    with counted("learning merges", read):
        tokenizer = Tokenizer.train(sample.kept, vocab_size, digits=digits)
        ratios = _ratios(by_language, tokenizer)
        # of the samples, which are equally long, "all" would be the mean
        ratios["all"] = round(sizes.total() / sum(size / ratios[name] for name, size in sizes.items()), 3)
    with new_folder(out) as stage:
        tokenizer.save(stage)
    figures = {"vocab_size": tokenizer.vocab_size, "bytes_per_token": ratios, "skipped": read.skipped}
    if as_json_:
        print(json.dumps({"out": str(out), **figures}, ensure_ascii=False))
        return
    few = f" (the text offers no more of the {vocab_size:,} asked)" if tokenizer.vocab_size < vocab_size else ""
    print(f"{out}: {tokenizer.vocab_size:,} tokens{few}")
    print("bytes per token: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    _say_skipped(read)


def stats_here(sources: list[str], tokenizer: Path | None, field: str, skip_bad: bool, as_json_: bool) -> None:
    """The command `liuli data stats`. Without a tokenizer, tokens are estimated with one made from a sample."""
    read = ReadReport()
    figures: dict[str, dict[str, float]] = {}
    by_language: dict[str, Sample] = {}
    with counted("reading", read) as through:
        documents = through(read_documents(sources, field, skip_bad, read))
        if tokenizer is not None:
            figures = {name: dict(part) for name, part in count_tokens(documents, Tokenizer.load(tokenizer)).items()}
        else:
            for document in documents:
                part = figures.setdefault(document.language, {"documents": 0, "bytes": 0})
                part["documents"] += 1
                part["bytes"] += len(document.text.encode())
                by_language.setdefault(document.language, Sample(ESTIMATE_CHARACTERS)).add(document.text)
            sampled = [text for sample in by_language.values() for text in sample.kept]
            ratios = _ratios(by_language, Tokenizer.train(sampled, ESTIMATE_VOCABULARY))
            for name, part in figures.items():
                part["tokens"] = round(part["bytes"] / ratios[name])
    if as_json_:
        whole = {"files": read.files, "skipped": read.skipped, "estimated": tokenizer is None, "languages": figures}
        print(json.dumps(whole, ensure_ascii=False))
        return
    table = Table("language", "documents", "bytes", "tokens", "bytes per token")
    for name, part in sorted(figures.items(), key=lambda item: -item[1]["bytes"]):
        cells = [f"{part[key]:,}" for key in ("documents", "bytes", "tokens")]
        table.add_row(name, *cells, f"{part['bytes'] / max(part['tokens'], 1):.2f}")
    Console().print(table)
    if tokenizer is None:
        print(f"Tokens are estimated, with a vocabulary of {ESTIMATE_VOCABULARY:,} made from a sample of this text;")
        print("--tokenizer FOLDER counts them with yours.")
    _say_skipped(read)


def clean_here(sources: list[str], out: Path, rules: Rules, field: str, skip_bad: bool, as_json_: bool) -> None:
    """The command `liuli data clean`."""
    read, report = ReadReport(), CleanReport()
    with counted("cleaning", read) as through:
        documents = through(read_documents(sources, field, skip_bad, read))
        _write(_some(clean_documents(documents, rules, report), report), out, report)
    if as_json_:
        print(json.dumps({"skipped": read.skipped, **dataclasses.asdict(report)}, ensure_ascii=False))
        return
    removed = sum(part.documents for part in report.removed.values())
    print(f"{out}: {report.kept:,} of {report.kept + removed:,} documents kept ({report.bytes / 1e6:,.1f} MB)")
    for reason, part in sorted(report.removed.items(), key=lambda item: -item[1].documents):
        print(f"  {part.documents:,} removed, {part.bytes / 1e6:,.2f} MB: {reason}")
        for name, beginning in part.examples:
            print(f"      {name}: {beginning}")
    _say_skipped(read)


def _some(documents: Iterable[Document], report: CleanReport) -> Iterator[Document]:
    """The documents; an error where there is not one, for no later step can read an empty corpus."""
    yield from documents
    if not report.kept:
        why = ", ".join(f"{part.documents:,} {reason}" for reason, part in report.removed.items())
        raise LiuliError(f"no document is left: {why}", fix="loosen the rule that removed them (data clean --help)")


def dedup_here(
    sources: list[str], out: Path, threshold: float | None, field: str, skip_bad: bool, as_json_: bool
) -> None:
    """The command `liuli data dedup`."""
    read, report = ReadReport(), DedupReport()
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"a similarity of {threshold} does not exist", "--threshold", "above 0, at most 1")
    with counted("comparing", read) as through:
        documents = through(read_documents(sources, field, skip_bad, read))
        _write(deduplicate(documents, threshold, report=report), out, report)
    if as_json_:
        print(json.dumps({"skipped": read.skipped, **dataclasses.asdict(report)}, ensure_ascii=False))
        return
    print(f"{out}: {report.kept:,} documents kept ({report.bytes / 1e6:,.1f} MB); removed {report.equal:,} equal and")
    print(f"  {report.near:,} nearly equal ones ({report.removed_bytes / 1e6:,.2f} MB)")
    for name, like, similarity in report.examples:
        print(f"      {name} is like {like} ({similarity:.2f})")
    _say_skipped(read)


def rows_here(
    sources: list[str], out: Path, tokenizer: Path, context: int, chat: bool, field: str, skip_bad: bool, as_json_: bool
) -> None:
    """The command `liuli data rows`."""
    if chat and field != "text":
        raise UsageError("conversations have fields of their own", f"--field {field}", "leave out --field or --chat")
    read, known = ReadReport(), Tokenizer.load(tokenizer)
    _must_be_new(out)
    with counted("packing", read) as through:
        if chat:
            conversations = through(read_conversations(sources, skip_bad, read))
            rows = pack_conversations(render_in_turn(conversations, known), context, out, vocab_size=known.vocab_size)
        else:
            rows = make_rows(through(read_documents(sources, field, skip_bad, read)), known, context, out)
    info = dataclasses.asdict(rows.info)
    if as_json_:
        print(json.dumps({"out": str(out), "skipped": read.skipped, **info}, ensure_ascii=False))
        return
    _print_rows(rows, out)
    _say_skipped(read)


def _print_rows(rows: Rows, out: Path) -> None:
    info = rows.info
    print(f"{out}: {info.rows:,} rows of {info.T} + 1 tokens, {info.tokens:,} tokens of text, {info.dtype}")
    print(f"  {info.cropped:,} tokens cropped, {info.padding:,} places padded")
    if info.kind == "chat":
        print(f"  {info.pieces:,} conversations, {info.shortened:,} lost their first turns; {info.left_out:,} left out")
        print("  (no answer to learn from, or the last turn alone is too long)")
    for name, ratio in bytes_per_token(info.languages).items():
        print(f"  {name}: {ratio:.2f} bytes per token")


def render_in_turn(conversations: Iterable[Any], tokenizer: Tokenizer, at_once: int = 1000) -> Iterator[Rendered]:
    """`render_many` of a thousand at a time, so that not all of them are held."""
    rest = iter(conversations)
    while held := list(islice(rest, at_once)):
        yield from render_many(held, tokenizer)


def _write(documents: Iterable[Document], out: Path, report: Any) -> None:
    """Documents as `text.jsonl`, and the report, in a new folder."""
    with new_folder(out) as stage:
        with (stage / "text.jsonl").open("w", encoding="utf-8") as file:  # ids hold no half surrogates: see `shown`
            for document in documents:
                file.write(json.dumps(as_json(document), ensure_ascii=False) + "\n")
        write_json(stage / "report.json", dataclasses.asdict(report))


def _ratios(samples: Mapping[str, Sample], tokenizer: Tokenizer) -> dict[str, float]:
    documents = [Document(text, language=name) for name, sample in samples.items() for text in sample.kept]  # type: ignore[arg-type]
    return {name: round(ratio, 3) for name, ratio in bytes_per_token(count_tokens(documents, tokenizer)).items()}


def _must_be_new(out: Path) -> None:
    """Say so before the work rather than after it."""
    if out.exists():
        raise UsageError("This folder exists already", out, "choose another name, or remove it first")


def _say_skipped(read: ReadReport) -> None:
    if read.skipped:
        print(read.told())
