"""Quality filters: which documents are too short, too repetitive or mostly symbols, and why each was removed.

In: documents. Out: those kept, and a report with counts and examples of each reason. The measures are the repetition
and symbol rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1), with a Han character counted as half a
word where they are most.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from liuli.errors import UsageError
from liuli.text.sources import Document

_WORD = re.compile("[\u3400-\u9fff]|[^\\W\u3400-\u9fff]+")
_HAN = re.compile("[\u3400-\u9fff]")
_SYMBOL = re.compile("[^\\w\\s.,;:!?'\"()\\-\u3000-\u303f\uff00-\uff65\u2010-\u2027]")
EXAMPLES = 3  # kept of each reason


@dataclass(frozen=True, slots=True)
class Rules:
    """When a document is removed. Shares are of its characters unless said otherwise; 1.0 switches a rule off."""

    shortest: int = 30  # characters; a Han character counts as two
    longest: int = 10_000_000  # characters
    symbols: float = 0.25  # neither letters, digits, spaces nor common punctuation; source code stays below 0.2
    repeated_lines: float = 0.30  # in lines that stand earlier in the same document
    repeated_phrase: float = 0.16  # of the words: the most frequent run of four of them
    repeated_passages: float = 0.40  # of the words: in runs of ten that stand earlier in the same document

    def __post_init__(self) -> None:
        for name in _REASONS:
            share = getattr(self, name)
            if not 0 <= share <= 1:
                option = f"--{name.removeprefix('repeated_')}"
                raise UsageError(f"a share of {share} does not exist", option, "from 0 to 1; 1 switches the rule off")


@dataclass(slots=True)
class Removed:
    """What one reason removed. examples: (id, beginning of the text)."""

    documents: int = 0
    bytes: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, document: Document) -> None:
        self.documents += 1
        self.bytes += len(document.text.encode())
        if len(self.examples) < EXAMPLES:
            self.examples.append((document.id, " ".join(document.text[:200].split())[:80]))


@dataclass(slots=True)
class CleanReport:
    """kept: documents. removed: by reason."""

    kept: int = 0
    bytes: int = 0
    removed: dict[str, Removed] = field(default_factory=dict)


def clean_documents(
    documents: Iterable[Document], rules: Rules | None = None, report: CleanReport | None = None
) -> Iterator[Document]:
    """Yield the documents that no rule removes, in order. report: filled as it goes."""
    rules = rules or Rules()
    report = report if report is not None else CleanReport()
    for document in documents:
        reason = reason_to_remove(document.text, rules)
        if reason:
            report.removed.setdefault(reason, Removed()).add(document)
            continue
        report.kept += 1
        report.bytes += len(document.text.encode())
        yield document


def reason_to_remove(text: str, rules: Rules) -> str | None:
    """The first rule that the text breaks, in words; None for a good text."""
    size = len(text.strip())
    if size < rules.shortest and size + len(_HAN.findall(text)) < rules.shortest:
        return f"shorter than {rules.shortest} characters"
    if size > rules.longest:
        return f"longer than {rules.longest} characters"
    figures = measure(text)
    for name, what in _REASONS.items():
        limit = getattr(rules, name)
        if figures[name] > limit:
            return f"{what} (over {limit:.0%})"
    return None


_REASONS = {
    "symbols": "mostly symbols",
    "repeated_lines": "the same lines again and again",
    "repeated_phrase": "one phrase again and again",
    "repeated_passages": "the same passages again and again",
}


def measure(text: str) -> dict[str, float]:
    """The shares that the rules look at, each from 0 to 1."""
    words = _WORD.findall(text)
    long = 2 if 2 * len(_HAN.findall(text)) > len(words) else 1  # four characters are a term, as four words are not
    symbols = [sign for sign in _SYMBOL.findall(text) if unicodedata.category(sign)[0] != "M"]  # vowels of Hindi, say
    return {
        "symbols": len(symbols) / max(len(text), 1),
        "repeated_lines": _repeated_lines(text),
        "repeated_phrase": _most_frequent(words, 4 * long),
        "repeated_passages": _repeated_share(words, 10 * long),
    }


def _repeated_lines(text: str) -> float:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    again = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    return again / max(sum(map(len, lines)), 1)


def _runs(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _most_frequent(words: list[str], size: int) -> float:
    """Share of the words taken by the most frequent run of `size`; one that comes under five times is no habit."""
    counts = Counter(_runs(words, size))
    count = max(counts.values(), default=0)
    return min(count * size / len(words), 1.0) if count >= 5 else 0.0


def _repeated_share(words: list[str], size: int) -> float:
    """Share of the words that lie in a run of `size` seen before in this text."""
    if len(words) < 2 * size:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered = end = 0
    for start, run in enumerate(_runs(words, size)):
        if run in seen:
            covered += start + size - max(end, start)
            end = start + size
        seen.add(run)
    return covered / len(words)


def as_json(document: Document) -> dict[str, Any]:
    """A document as a line of `text.jsonl`, which `read_documents` reads back."""
    return {"text": document.text, "id": document.id, "source": document.source, "language": document.language}
