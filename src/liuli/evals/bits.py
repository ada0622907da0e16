"""Bits per byte: how well a model predicts text it has never seen, whatever its tokenizer.

bits per byte = sum over predicted text tokens of -log2 p(token | the tokens before it) / UTF-8 bytes of those tokens.

The documents of one language, each opened by `<|bos|>`, stand in one stream that is cut end to end into windows of the
context length, so every token is predicted exactly once. Special tokens (here: the `<|bos|>` that ends a document) are
no text and have no bytes: their bits are kept apart, so that a corpus of short documents is not charged for where
somebody happened to cut it, and the figure compares with those of other projects. `per_byte_with_ends` adds them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.text import Document, Tokenizer

LOGITS_AT_ONCE = 2**24  # float32 numbers: 64 MiB, small enough for a laptop and large enough to keep its cores busy


@dataclass(frozen=True)
class Bits:
    """Sums over held-out text. bits, bytes, tokens: of text; end_bits, ends: of the special tokens between them."""

    bits: float = 0.0
    bytes: int = 0
    tokens: int = 0
    end_bits: float = 0.0
    ends: int = 0

    def __add__(self, other: Bits) -> Bits:
        return Bits(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def figures(self) -> dict[str, float | int]:
        """What is written down: the ratios and what they were made from."""
        size = max(self.bytes, 1)
        return {
            "per_byte": self.bits / size,
            "per_byte_with_ends": (self.bits + self.end_bits) / size,
            "per_token": self.bits / max(self.tokens, 1),
            "per_end": self.end_bits / max(self.ends, 1),
            "bytes": self.bytes,
            "tokens": self.tokens,
            "ends": self.ends,
        }


def windows(stream: Sequence[int], T: int) -> Iterator[list[int]]:
    """Cut a stream end to end: windows of at most T + 1 tokens; the last token of one is the first of the next."""
    for start in range(0, len(stream) - 1, T):
        yield list(stream[start : start + T + 1])


def count_bits(logits_BTV: Tensor, targets_BT: Tensor, bytes_per_id: Tensor) -> Bits:
    """Bits of the targets under the logits. A target of -1 is padding; one of zero bytes is an end, not text."""
    nats_BT = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=-1, reduction="none")
    real = targets_BT.flatten() >= 0
    size = bytes_per_id[targets_BT.flatten().clamp(min=0)] * real
    text = size > 0
    bits = nats_BT.double() / math.log(2)
    ends = real & ~text
    return Bits(
        bits=float(bits[text].sum()),
        bytes=int(size.sum()),
        tokens=int(text.sum()),
        end_bits=float(bits[ends].sum()),
        ends=int(ends.sum()),
    )


@torch.inference_mode()
def stream_bits(
    model: Transformer,
    stream: Sequence[int],
    bytes_per_id: Sequence[int] | np.ndarray,
    T: int,
    bos: int,
    seconds: float = math.inf,
) -> Bits:
    """Bits of one stream of tokens in windows of T, in batches; no batch is begun after `seconds`.

    A document, which begins with a bos, does not see those before it in its window, as in training.
    """
    began = time.monotonic()
    device = next(model.parameters()).device
    sizes = torch.as_tensor(np.asarray(bytes_per_id), device=device, dtype=torch.long)
    at_once = max(1, LOGITS_AT_ONCE // (T * len(sizes)))
    cut = list(windows(stream, T))
    total = Bits()
    for start in range(0, len(cut), at_once):
        if start and time.monotonic() - began > seconds:
            break
        batch = cut[start : start + at_once]
        longest = max(len(w) for w in batch)
        inputs = torch.tensor([w[:-1] + [0] * (longest - len(w)) for w in batch], device=device)
        targets = torch.tensor([w[1:] + [-1] * (longest - len(w)) for w in batch], device=device)
        logits = model.forward(inputs, documents_BT=(inputs == bos).cumsum(1))
        total += count_bits(logits, targets, sizes)
    return total


def bits_by_language(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    context: int,
    seconds: float | None = None,
) -> dict[str, dict[str, float | int]]:
    """Language -> figures of its documents, plus "all" when there is more than one language.

    context: window length in tokens. seconds: about this long in all, shared between the languages; what was not
    reached is left out whole windows at a time, and the figures say how many bytes they rest on.
    """
    streams: dict[str, list[int]] = {}
    known = [document for document in documents if document.text]
    for document, tokens in zip(known, tokenizer.encode_batch([d.text for d in known]), strict=True):
        streams.setdefault(document.language, []).extend([tokenizer.bos, *tokens])
    if not streams:
        raise LiuliError("There is no held-out text to measure bits per byte on.", fix="Name a file with text.")
    each = math.inf if seconds is None else seconds / len(streams)
    result = {
        language: stream_bits(model, stream, tokenizer.bytes_per_id, context, tokenizer.bos, each)
        for language, stream in sorted(streams.items())
    }
    if len(result) > 1:
        result["all"] = sum(result.values(), Bits())
    return {language: bits.figures() for language, bits in result.items()}
