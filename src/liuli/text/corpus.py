"""From documents to rows, and what a corpus is made of: the steps of this room put together.

In: documents and a tokenizer. Out: a rows folder; figures by language (documents, bytes, tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuli.text.rows import Rows, pack_documents
from liuli.text.sources import Document
from liuli.text.tokenizer import Tokenizer

BATCH = 4_000_000  # characters encoded at once; enough to keep all cores busy, little enough for any memory

Figures = dict[str, dict[str, int]]
"""{language: {"documents", "bytes", "tokens"}}; `bytes_per_token` makes a ratio of it."""


def make_rows(
    documents: Iterable[Document], tokenizer: Tokenizer, T: int, out: str | Path, *, replace: bool = False
) -> Rows:
    """Encode and pack documents into a rows folder (see `pack_documents`), with figures by language in its index."""
    figures: Figures = {}
    token_lists = encode_documents(documents, tokenizer, figures)
    return pack_documents(token_lists, T, out, vocab_size=tokenizer.vocab_size, languages=figures, replace=replace)


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, figures: Figures | None = None
) -> Iterator[NDArray[np.uint32]]:
    """Yield each document's tokens, `<|bos|>` first, in order. figures: filled as it goes."""
    figures = figures if figures is not None else {}
    for batch in _batches(documents):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            part = figures.setdefault(document.language, {"documents": 0, "bytes": 0, "tokens": 0})
            part["documents"] += 1
            part["bytes"] += len(document.text.encode("utf-8", "replace"))
            part["tokens"] += len(ids)
            yield np.array([tokenizer.bos, *ids], dtype=np.uint32)


def count_tokens(documents: Iterable[Document], tokenizer: Tokenizer) -> Figures:
    """Documents, bytes and tokens by language."""
    figures: Figures = {}
    for _ in encode_documents(documents, tokenizer, figures):
        pass
    return figures


def bytes_per_token(figures: Figures) -> dict[str, float]:
    """How many bytes of text one token stands for, by language and for all ("all"): higher is shorter."""
    whole = {name: sum(part[name] for part in figures.values()) for name in ("bytes", "tokens")}
    parts = {**figures, "all": whole}
    return {name: part["bytes"] / part["tokens"] for name, part in parts.items() if part["tokens"]}


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held
