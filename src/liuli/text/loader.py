"""Rows to batches: the same rows in the same order on any number of processes, with one integer for a state.

In: rows. Out: numpy batches. Row number p of the training run (p = 0, 1, …, without end) is fixed by the seed alone:
epoch p // len(rows) has its own permutation. A global batch is R consecutive ones; each process takes its share of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuli.errors import UsageError
from liuli.text.rows import Rows


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a global batch: B = R / world rows.

    tokens_BT, targets_BT: int64; targets are the tokens one place on. weights_BT: float32, 1 where the target counts.
    position: the loader's state after this batch; a loader made with it deals the next one.
    """

    tokens_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    weights_BT: NDArray[np.float32]
    position: int


class Loader:
    """Deal batches for ever. batch_rows: R, rows of a global batch over all processes; position: rows dealt before.

    replay, share: part of every batch comes from other rows, those of an earlier stage, so that it is not forgotten.
    """

    def __init__(
        self,
        rows: Rows,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        replay: Rows | None = None,
        share: float = 0.0,
    ) -> None:
        again = round(share * batch_rows) if replay is not None else 0
        if share and replay is not None and not 0 < again < batch_rows:
            what = f"a share of {share} of a batch of {batch_rows} rows is {again} of them"
            raise UsageError(what, "replay", "give another share, or larger batches")
        if batch_rows < 1 or batch_rows % world or again % world:
            parts = f"{batch_rows} rows" + (f", {again} of them replayed," if again else "")
            fix = "make batch_tokens, and what is replayed, a multiple of them"
            raise UsageError(f"a batch of {parts} cannot be shared by {world} processes", fix=fix)
        if not 0 <= rank < world:
            raise UsageError(f"process {rank} of {world} does not exist", fix="ranks count from 0")
        if replay is not None and replay.T != rows.T:
            raise UsageError(
                f"rows of {replay.T} tokens cannot be dealt beside rows of {rows.T}", fix="pack them alike"
            )
        self.rows, self.batch_rows, self.seed, self.rank, self.world = rows, batch_rows, seed, rank, world
        self.position = position
        self._decks = [(_Deck(rows, seed), (batch_rows - again) // world)]
        if again and replay is not None:
            self._decks.append((_Deck(replay, seed), again // world))

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        # of all rows dealt before, each deck has dealt its share
        dealt = [
            deck.deal(self.position * count * self.world // self.batch_rows + self.rank * count, count)
            for deck, count in self._decks
        ]
        self.position += self.batch_rows
        tokens, weights = (np.concatenate(parts) for parts in zip(*dealt, strict=True))
        return Batch(tokens[:, :-1], tokens[:, 1:], weights, self.position)


class _Deck:
    """Rows in an order of chance, a new one each epoch."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)

    def deal(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens (count, T+1) and weights (count, T) of the rows dealt as these numbers since training began."""
        numbers = np.array([self._row(first + n) for n in range(count)])
        tokens = self.rows.tokens[numbers].astype(np.int64)
        if self.rows.weights is None:
            return tokens, np.ones(tokens[:, 1:].shape, np.float32)
        return tokens, self.rows.weights[numbers, 1:].astype(np.float32)

    def _row(self, number: int) -> int:
        """The row dealt as that number since the beginning of training."""
        epoch, place = divmod(number, len(self.rows))
        if epoch != self._epoch:
            # RandomState's stream is frozen for ever (NEP 19); a new Generator's is not, and resume must be exact.
            self._order = np.random.RandomState([self.seed & 0xFFFFFFFF, epoch]).permutation(len(self.rows))
            self._epoch = epoch
        return int(self._order[place])
