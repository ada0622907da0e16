"""Duplicates: of equal and of nearly equal documents the first one stays.

In: documents. Out: those kept, and a report with counts and examples. Equal means equal but for spaces. Nearly equal
means that the sets of their runs of five words overlap (Jaccard) by at least a threshold, estimated by MinHash
(Broder 1997) and found by banding (Leskovec et al., Mining of Massive Datasets, chapter 3), both from `datasketch`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from liuli.text.sources import Document

# Words, and signs that are no punctuation: 12 + 7 and 12 - 7 are two texts, "it barks." and "it barks" one.
_WORD = re.compile("[\u3400-\u9fff]|[^\\W\u3400-\u9fff]+|[^\\w\\s.,;:!?'\"()\u3000-\u303f\uff00-\uff65\u2010-\u2027]")
RUN = 5  # words of a shingle
EXAMPLES = 5
PERMUTATIONS = 128  # the standard error of a similarity s is sqrt(s (1 - s) / 128): 0.035 at 0.8


@dataclass(slots=True)
class DedupReport:
    """kept, equal, near: documents; equal and near ones were removed. examples: (removed, like, similarity)."""

    kept: int = 0
    bytes: int = 0
    equal: int = 0
    near: int = 0
    removed_bytes: int = 0
    examples: list[tuple[str, str, float]] = field(default_factory=list)


def deduplicate(
    documents: Iterable[Document],
    threshold: float | None = 0.8,
    report: DedupReport | None = None,
) -> Iterator[Document]:
    """Yield the first of each group of equal or similar documents, in order. report: filled as it goes.

    threshold: Jaccard similarity from which two documents are near duplicates; None: only equal ones are removed.
    """
    report = report if report is not None else DedupReport()
    seen: dict[bytes, str] = {}
    index = _Index(threshold) if threshold is not None else None
    for document in documents:
        digest = hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=16).digest()
        like, similarity = seen.get(digest), 1.0
        if like is None:
            seen[digest] = document.id
            if index is not None:
                like, similarity = index.find_or_add(document)
            report.near += like is not None
        else:
            report.equal += 1
        size = len(document.text.encode())
        if like is None:
            report.kept += 1
            report.bytes += size
            yield document
            continue
        report.removed_bytes += size
        if len(report.examples) < EXAMPLES:
            report.examples.append((document.id, like, round(similarity, 3)))


class _Index:
    """The kept documents' signatures."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        # Above 0.9 too few bands are left to find all that is similar; the comparison below is with the threshold.
        self.bands = MinHashLSH(threshold=min(threshold, 0.9), num_perm=PERMUTATIONS)
        self.signatures: list[tuple[str, MinHash]] = []
        self.empty = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)  # copied: drawing permutations takes long

    def find_or_add(self, document: Document) -> tuple[str | None, float]:
        """(id of a similar document, similarity), or (None, 0) after adding this one."""
        words = _WORD.findall(document.text.lower()) or [document.text]
        runs = list({" ".join(words[start : start + RUN]).encode() for start in range(max(len(words) - RUN + 1, 1))})
        signature = self.empty.copy()
        for start in range(0, len(runs), 1000):  # all at once takes a kilobyte for each
            signature.update_batch(runs[start : start + 1000])
        candidates = [self.signatures[key] for key in self.bands.query(signature)]
        if candidates:
            similar = [(signature.jaccard(other), name) for name, other in candidates]
            similarity, name = max(similar)
            if similarity >= self.threshold:
                return name, float(similarity)
        self.bands.insert(len(self.signatures), signature)
        self.signatures.append((document.id, signature))
        return None, 0.0
