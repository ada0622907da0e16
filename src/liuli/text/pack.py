"""Best fit: which pieces go into which row. Pure functions on lengths; they know nothing of tokens or files.

The plan is made once, over all pieces, and is the same on every machine. For each row the longest piece that still
fits is taken until none does (best fit decreasing; Johnson 1973), first come first served among equal lengths.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SHORTEST_TAIL = 32
"""Tokens: what is left of a document cut at a row's end goes on in another row if it is at least this long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Pieces in the order they are laid down, all int64 arrays of one length.

    row: the row it goes to. column: where in it. head: stream index of its first token (a document's `<|bos|>`).
    body: stream index of its second token. length: tokens, head included. rows: how many rows there are.
    cropped: tokens of the documents, `<|bos|>` not counted, that no row holds.
    """

    row: Ints
    column: Ints
    head: Ints
    body: Ints
    length: Ints
    rows: int
    cropped: int


class Shelf:
    """Pieces by length, with the longest that fits found by one bit operation."""

    def __init__(self) -> None:
        self._by_length: defaultdict[int, deque[int]] = defaultdict(deque)
        self._present = 0  # bit n is set when a piece of length n is there

    def add(self, piece: int, length: int) -> None:
        self._by_length[length].append(piece)
        self._present |= 1 << length

    def take(self, room: int) -> tuple[int, int] | None:
        """Remove and return (piece, length) of the longest piece no longer than room, or None."""
        length = (self._present & ((1 << (room + 1)) - 1)).bit_length() - 1
        if length < 0:
            return None
        pieces = self._by_length[length]
        piece = pieces.popleft()
        if not pieces:
            self._present ^= 1 << length
        return piece, length


def plan_text(lengths: Ints, width: int) -> Plan:
    """Fill every row of `width` tokens to its last place with documents laid end to end in one stream.

    lengths: (N,) tokens of each document, its `<|bos|>` included. A document longer than a row fills whole rows, each
    behind the document's own `<|bos|>`, and its rest is a piece like any other. When no piece fits the room that is
    left, the longest one is cut: its rest goes on in another row, or is cropped if it is under SHORTEST_TAIL tokens.
    What is left for the last row if it cannot be filled is cropped too.
    """
    head, body, size = _cut(lengths, width)
    heads, bodies = head.tolist(), body.tolist()
    shelf = Shelf()
    for piece, length in enumerate(size.tolist()):
        shelf.add(piece, length)
    rows: list[list[tuple[int, int, int]]] = []  # of (head, body, length)
    while True:
        row, room = list[tuple[int, int, int]](), width
        while room and (found := shelf.take(room) or shelf.take(width)):
            piece, length = found
            placed = min(length, room)
            row.append((heads[piece], bodies[piece], placed))
            room -= placed
            rest = length - placed + 1  # +1: it gets the document's `<|bos|>` again
            if rest >= SHORTEST_TAIL or (placed == 1 and length > 1):
                heads.append(heads[piece])
                bodies.append(bodies[piece] + placed - 1)
                shelf.add(len(heads) - 1, rest)
        if room:
            break
        rows.append(row)
    kept = sum(length - 1 for row in rows for _, _, length in row)
    return _plan(rows, cropped=int((lengths - 1).sum()) - kept)


def plan_whole(lengths: Ints, width: int) -> Plan:
    """Lay pieces of at most `width` tokens into rows without cutting any; what stays free is padding."""
    ends = np.cumsum(lengths)
    heads = (ends - lengths).tolist()
    shelf = Shelf()
    for piece, length in enumerate(lengths.tolist()):
        shelf.add(piece, length)
    rows: list[list[tuple[int, int, int]]] = []
    while found := shelf.take(width):
        row, room = list[tuple[int, int, int]](), width
        while found:
            piece, length = found
            row.append((heads[piece], heads[piece] + 1, length))
            room -= length
            found = shelf.take(room)
        rows.append(row)
    return _plan(rows, cropped=0)


def _cut(lengths: Ints, width: int) -> tuple[Ints, Ints, Ints]:
    """(head, body, length) of the pieces of each document, in order; each piece at most `width` long."""
    heads = np.cumsum(lengths) - lengths
    pieces = np.maximum(-(-(lengths - 1) // (width - 1)), 1)  # every piece holds width - 1 tokens of the document
    owner = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    body = heads[owner] + 1 + number * (width - 1)
    size = np.minimum(heads[owner] + lengths[owner] - body, width - 1) + 1
    return heads[owner], body, size


def _plan(rows: list[list[tuple[int, int, int]]], cropped: int) -> Plan:
    """The plan as arrays."""
    flat = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 3)
    row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    length = flat[:, 2]
    ends = np.cumsum(length) - length
    first = np.searchsorted(row, row)  # the first piece of the same row
    return Plan(row, ends - ends[first] if len(row) else ends, flat[:, 0], flat[:, 1], length, len(rows), cropped)


def lay_out(plan: Plan, width: int, rows_at_once: int = 16384) -> Iterator[Ints]:
    """Yield index_RW int64 of blocks of rows: where in the stream each place comes from; -1: padding."""
    for first in range(0, plan.rows, rows_at_once):
        count = min(rows_at_once, plan.rows - first)
        start, stop = np.searchsorted(plan.row, [first, first + count])
        length, column = plan.length[start:stop], plan.column[start:stop]
        place = (plan.row[start:stop] - first) * width + column  # of each piece's first token in the block
        offset = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        index = np.full(count * width, -1, dtype=np.int64)
        index[np.repeat(place, length) + offset] = np.repeat(plan.body[start:stop] - 1, length) + offset
        index[place] = plan.head[start:stop]
        yield index.reshape(count, width)
