"""Keys and values of all earlier tokens, in one allocation made once.

Each row is one answer being written; a token's slot is its position in that row. Rows in use are always 0..n-1, so a
batch is a slice and never a gather: when one ends, the last row moves into its place (`move`).
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """The cache that `Transformer.forward` is handed; `begin` or `follow` says what is fed next.

    rows, slots: how many answers and how many tokens of each fit. Memory: layers * 2 * rows * slots * K * E numbers.
    """

    positions_BT: Tensor
    previous_B1: Tensor
    mask_BTS: Tensor

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        slots: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows, self.slots = rows, slots
        # zeros, not empty: a slot that is masked still takes part as 0 * value, and 0 * NaN would be NaN.
        # (B, K, S, E) is the order in which attention multiplies, so what it reshapes is a view.
        self.store_LPBKSE = torch.zeros(layers, 2, rows, kv_heads, slots, head_size, dtype=dtype, device=device)
        self.pairs_L = [(layer[0], layer[1]) for layer in self.store_LPBKSE]
        self.flat_L = [(k.view(-1, head_size), v.view(-1, head_size)) for k, v in self.pairs_L]
        self.slots_S = torch.arange(slots, device=device)
        self.heads_BK = torch.arange(rows * kv_heads, device=device).view(rows, kv_heads) * slots
        self.first_row = self.batch = self.first_slot = self.seen = 0
        self.index: Tensor | None = None

    def begin(self, row: int, batch: int, T: int, start: int = 0, previous_B1: Tensor | None = None) -> None:
        """Next come T tokens each of `batch` new rows from `row` on, at positions start..start+T-1 (padded right).

        A query looks at no later position, so what stands in the padding is never seen by a real token. previous_B1:
        the tokens before, int64; None at the start of a text.
        """
        self.first_row, self.batch, self.first_slot, self.seen, self.index = row, batch, start, start + T, None
        slots = self.slots_S[: self.seen]
        self.positions_BT = slots[start:].expand(batch, T)
        self.previous_B1 = slots.new_full((batch, 1), -1) if previous_B1 is None else previous_B1
        self.mask_BTS = (slots[None, :] <= slots[start:, None]).unsqueeze(0)

    def follow(self, positions_B1: Tensor, previous_B1: Tensor, lengths: list[int]) -> None:
        """Next comes one token for each of the rows 0..B-1. lengths: tokens already stored, equal to positions_B1."""
        self.first_row, self.batch, self.first_slot, self.seen = 0, len(lengths), lengths[0], max(lengths) + 1
        self.positions_BT, self.previous_B1 = positions_B1, previous_B1
        if min(lengths) + 1 == self.seen:  # all rows at one position: one slot to write, nothing to hide
            self.index = None
            self.mask_BTS = self.slots_S.new_ones((1, 1, self.seen), dtype=torch.bool)
        else:
            self.index = (self.heads_BK[: self.batch] + positions_B1).view(-1)
            self.mask_BTS = (self.slots_S[: self.seen] <= positions_B1).unsqueeze(1)

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the tokens fed; return keys and values of all slots seen, (B, S, K, E)."""
        if self.index is not None:
            k_BKSE, v_BKSE = self.append(layer, k_BTKE[:, 0], v_BTKE[:, 0])
        else:
            rows = slice(self.first_row, self.first_row + self.batch)
            k_BKSE, v_BKSE = (pair[rows, :, : self.seen] for pair in self.pairs_L[layer])
            k_BKSE[:, :, self.first_slot :] = k_BTKE.transpose(1, 2)
            v_BKSE[:, :, self.first_slot :] = v_BTKE.transpose(1, 2)
        return k_BKSE.transpose(1, 2), v_BKSE.transpose(1, 2)

    def append(self, layer: int, k_BKE: Tensor, v_BKE: Tensor) -> tuple[Tensor, Tensor]:
        """`extend` for one token a row, in the cache's own order: (B, K, S, E), a view."""
        seen = []
        for pair_RKSE, flat, new_BKE in zip(self.pairs_L[layer], self.flat_L[layer], (k_BKE, v_BKE), strict=True):
            pair_BKSE = pair_RKSE[: self.batch, :, : self.seen]
            if self.index is None:
                pair_BKSE[:, :, -1] = new_BKE
            else:
                flat.index_copy_(0, self.index, new_BKE.reshape(-1, new_BKE.shape[-1]))
            seen.append(pair_BKSE)
        return seen[0], seen[1]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of a row over another row, in all layers."""
        self.store_LPBKSE[:, :, target, :, :length] = self.store_LPBKSE[:, :, source, :, :length]
