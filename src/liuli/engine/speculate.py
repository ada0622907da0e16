"""Speculation: tokens that may come next, so that the model can check several in one step.

A drafter is a function of a request and of how many tokens there is room for. What it drafts changes nothing in the
answer (the scheduler draws every token from the model's own distribution), only how soon it comes. Each request
remembers how many of its drafts came true; where hope is small nothing is drafted, but now and then it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from liuli.engine.cache import KeyValueCache
from liuli.model import Transformer

if TYPE_CHECKING:
    from liuli.engine.engine import Request

Drafter = Callable[["Request", int], list[int]]
MOST = 4  # tokens drafted at once
HOPE = 0.4  # drafting less often true than this costs more than it gives; a guess, not measured
RENEWED = 0.02  # hope gained by each step without a draft


def worth_drafting(request: Request, room: int) -> bool:
    """Whether to draft for a request now; hope grows back slowly while nothing is drafted."""
    if room < 1:
        return False
    if request.hope >= HOPE:
        return True
    request.hope += RENEWED
    return False


def lookup(request: Request, room: int, most: int = MOST) -> list[int]:
    """Prompt lookup: what followed the last two tokens the last time they stood side by side in this text."""
    ids, pairs = request.ids, request.pairs
    for end in range(request.looked_up, len(ids)):  # a pair is known once something follows it
        pairs[ids[end - 2], ids[end - 1]] = end
    request.looked_up = max(2, len(ids))
    if len(ids) < 2 or not worth_drafting(request, room):
        return []
    after = pairs.get((ids[-2], ids[-1]))
    return [] if after is None else ids[after : after + min(most, room)]


class DraftModel:
    """A smaller model of the same tokenizer drafts its likeliest tokens. rows: requests it remembers at once."""

    def __init__(self, model: Transformer, rows: int = 64, most: int = MOST) -> None:
        c, self.model, self.most = model.config, model.eval(), most
        self.device = model.embedding.weight.device
        self.cache = KeyValueCache.of(c, rows=rows, slots=c.context, dtype=model.dtype, device=self.device)
        self.rows: dict[Request, tuple[int, int]] = {}  # the row and how many tokens are in it; the oldest first

    @torch.inference_mode()
    def __call__(self, request: Request, room: int) -> list[int]:
        """At most `most` tokens, the likeliest one after another."""
        room = min(room, self.cache.slots - len(request.ids))
        if not worth_drafting(request, room):
            return []
        row, done = self.rows.pop(request) if request in self.rows else (self._row(), 0)
        drafted: list[int] = []
        text = list(request.ids)
        while len(drafted) < min(self.most, room):
            before = torch.tensor([[text[done - 1]]], device=self.device) if done else None
            self.cache.begin(row, 1, len(text) - done, done, before)
            x_1TD = self.model.hidden(torch.tensor([text[done:]], device=self.device), self.cache)
            done = len(text)
            drafted.append(int(self.model.logits(x_1TD[:, -1]).argmax()))
            text.append(drafted[-1])
        self.rows[request] = (row, len(request.ids))
        return drafted

    def _row(self) -> int:
        """A free row; the one not used for longest when there is none."""
        if len(self.rows) < self.cache.rows:
            return next(row for row in range(self.cache.rows) if row not in {row for row, _ in self.rows.values()})
        return self.rows.pop(next(iter(self.rows)))[0]
