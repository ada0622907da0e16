"""Keys and values of earlier tokens: `KeyValueCache` for answers being written, `PrefixCache` for what may come again.

The first is the desk: each row is one answer, a token's slot is its position in the row, and rows in use are always
0..n-1, so a batch is a slice and attention reads it where it lies. The second is the shelf: blocks of 16 tokens of all
that was read or written, found again by the tokens themselves; a new prompt copies what it shares with earlier ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liuli.model import ModelConfig

BLOCK = 16  # tokens
ALIGNED = 64  # bytes: a line of the processor's cache, where torch's own tensors begin


class KeyValueCache:
    """The cache that `Transformer.forward` is handed; `begin` or `follow` says what is fed next.

    rows, slots: how many answers and how many tokens of each fit. Memory: layers * 2 * rows * slots * K * E numbers.
    """

    positions_BT: Tensor
    previous_B1: Tensor

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
        # (B, K, S, E) is the order in which attention multiplies, so what it reshapes is a view. One tensor each: a
        # compiler copies what it must write into if two of its inputs share memory.
        shape = (rows, kv_heads, slots, head_size)
        self.pairs_L = [(_unwritten(shape, dtype, device), _unwritten(shape, dtype, device)) for _ in range(layers)]
        self.slots_S = torch.arange(slots, device=device)
        self.heads_BK = torch.arange(rows * kv_heads, device=device).view(rows, kv_heads) * slots
        self.first_row = self.batch = self.first_slot = self.seen = 0
        self.index: Tensor | None = None

    @classmethod
    def of(cls, config: ModelConfig, **more: Any) -> KeyValueCache:
        """One for a model."""
        return cls(layers=config.layers, kv_heads=config.kv_heads, head_size=config.head_size, **more)

    def begin(self, row: int, batch: int, T: int, start: int = 0, previous_B1: Tensor | None = None) -> None:
        """Next come T tokens each of `batch` new rows from `row` on, at positions start..start+T-1 (padded right).

        A query looks at no later position, so what stands in the padding is never seen by a real token. previous_B1:
        the tokens before, int64; None at the start of a text.
        """
        self.first_row, self.batch, self.first_slot, self.seen, self.index = row, batch, start, start + T, None
        slots = self.slots_S[: self.seen]
        self.positions_BT = slots[start:].expand(batch, T)
        self.previous_B1 = slots.new_full((batch, 1), -1) if previous_B1 is None else previous_B1

    def follow(self, positions_B1: Tensor, previous_B1: Tensor, lengths: list[int], T: int = 1) -> None:
        """Next come T tokens for each of the rows 0..B-1. lengths: tokens already stored, equal to positions_B1."""
        self.first_row, self.batch, self.first_slot, self.seen = 0, len(lengths), lengths[0], max(lengths) + T
        self.previous_B1 = previous_B1
        self.positions_BT = positions_B1 if T == 1 else positions_B1 + self.slots_S[:T]
        self.index = None
        if min(lengths) + T < self.seen or T > 1:  # else all stand at one position: one slot to write, nothing to hide
            # of the (row, head, slot) lines in the order (B, T, K)
            self.index = (self.heads_BK[: self.batch, None, :] + self.positions_BT[:, :, None]).view(-1)

    @property
    def mask_BTS(self) -> Tensor:
        """Which slots a token may look at: its own and those before; one mask for all rows where they stand alike."""
        positions_BT = self.positions_BT if self.index is not None else self.positions_BT[:1]
        return self.slots_S[: self.seen] <= positions_BT.unsqueeze(-1)

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the tokens fed; return keys and values of all slots seen, (B, S, K, E)."""
        seen = []
        rows = slice(self.first_row, self.first_row + self.batch)
        for pair_RKSE, new_BTKE in zip(self.pairs_L[layer], (k_BTKE, v_BTKE), strict=True):
            pair_BKSE = pair_RKSE[rows, :, : self.seen]
            if self.index is None:
                pair_BKSE[:, :, self.first_slot :] = new_BTKE.transpose(1, 2)
            else:
                lines_NE = pair_RKSE.view(-1, pair_RKSE.shape[-1])
                lines_NE.index_copy_(0, self.index, new_BTKE.reshape(-1, new_BTKE.shape[-1]))
            seen.append(pair_BKSE.transpose(1, 2))
        return seen[0], seen[1]

    def copy(self, sources: Sequence[int], target: int, length: int) -> None:
        """Copy the first `length` slots of these rows over as many rows from `target` on, in all layers.

        Rows are read before any is written, so both may be the same in part.
        """
        rows = torch.tensor(sources, device=self.slots_S.device)
        for pair in self.pairs_L:
            for store_RKSE in pair:
                store_RKSE[target : target + len(sources), :, :length] = store_RKSE[:, :, :length].index_select(0, rows)

    def read(self, row: int, start: int, end: int) -> Tensor:
        """Keys and values of a row's slots start..end-1, (L, 2, K, S, E)."""
        return torch.stack([torch.stack([store[row, :, start:end] for store in pair]) for pair in self.pairs_L])

    def write(self, row: int, line_LPKSE: Tensor) -> None:
        """Put keys and values into the first slots of a row."""
        for pair, line_PKSE in zip(self.pairs_L, line_LPKSE, strict=True):
            for store_RKSE, line_KSE in zip(pair, line_PKSE, strict=True):
                store_RKSE[row, :, : line_KSE.shape[1]] = line_KSE


def _unwritten(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in pages that take no memory before they are written to, as torch.zeros does at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize + ALIGNED, dtype=np.uint8))
    start = -memory.data_ptr() % ALIGNED
    return memory[start : len(memory) - ALIGNED + start].view(dtype).view(shape)


_Key = tuple["Block | str", tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Block:
    """Sixteen tokens on the shelf. place: where their keys and values lie; children: blocks that go on from it."""

    place: int
    parent: Block | None
    key: _Key
    children: int = 0


class PrefixCache:
    """Keys and values of texts that were read or written, in preallocated blocks, found by their tokens.

    A trie: a block is known by the block before it (at a text's start: by the salt) and its own 16 tokens, compared one
    by one, so nothing is ever mistaken for another, and texts of different salts share nothing. The least recently used
    block without children makes room. With `int8` a block holds one byte a number and a scale for
    each token and head: half or a quarter of the memory, and no longer exactly what was computed.
    """

    def __init__(self, desk: KeyValueCache, blocks: int, int8: bool = False) -> None:
        first = desk.pairs_L[0][0]
        _, kv_heads, _, head_size = first.shape
        shape = (blocks, len(desk.pairs_L), 2, kv_heads, BLOCK, head_size)
        self.store_NLPKSE = torch.empty(shape, dtype=torch.int8 if int8 else first.dtype, device=first.device)
        scales = (*shape[:-1], 1) if int8 else (0,)
        self.scale_NLPKS1 = torch.empty(scales, dtype=torch.float32, device=first.device)
        self.int8, self.blocks = int8, blocks
        self.free = list(range(blocks))
        self.kept: OrderedDict[_Key, Block] = OrderedDict()  # least recently used first

    @staticmethod
    def bytes_per_block(desk: KeyValueCache, int8: bool = False) -> int:
        """Memory of one block."""
        _, kv_heads, _, head_size = desk.pairs_L[0][0].shape
        per_head = head_size + 4 if int8 else head_size * desk.pairs_L[0][0].dtype.itemsize
        return len(desk.pairs_L) * 2 * kv_heads * BLOCK * per_head

    def find(self, tokens: Sequence[int], salt: str = "") -> list[Block]:
        """The longest chain of blocks that `tokens` begin with."""
        chain: list[Block] = []
        for key_tokens in _cut(tokens):
            block = self.kept.get((chain[-1] if chain else salt, key_tokens))
            if block is None:
                break
            chain.append(block)
        self._touch(chain)
        return chain

    @torch.inference_mode()
    def take(self, chain: Sequence[Block], desk: KeyValueCache, row: int) -> None:
        """Copy the blocks of a chain into the front of a row."""
        places = torch.tensor([block.place for block in chain], device=self.store_NLPKSE.device)
        found = self.store_NLPKSE[places]
        if self.int8:
            found = found * self.scale_NLPKS1[places]
        # (N, L, P, K, S, E) to (L, P, K, N * S, E)
        desk.write(row, found.permute(1, 2, 3, 0, 4, 5).flatten(3, 4))

    @torch.inference_mode()
    def keep(self, tokens: Sequence[int], desk: KeyValueCache, row: int, salt: str = "") -> None:
        """Store what a row holds of `tokens` in whole blocks, as far as it is not here and there is room."""
        chain: list[Block] = []
        new: list[Block] = []
        for key_tokens in _cut(tokens):
            key = (chain[-1] if chain else salt, key_tokens)
            block = self.kept.get(key)
            if block is None:
                if (block := self._new(key, chain)) is None:
                    break
                new.append(block)
            chain.append(block)
        self._touch(chain)
        if not new:
            return
        start = (len(chain) - len(new)) * BLOCK
        line_LPKSE = desk.read(row, start, len(chain) * BLOCK)
        L, P, K, _, E = line_LPKSE.shape
        pieces = line_LPKSE.reshape(L, P, K, len(new), BLOCK, E).permute(3, 0, 1, 2, 4, 5)
        places = torch.tensor([block.place for block in new], device=pieces.device)
        if self.int8:
            scale = pieces.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12) / 127
            self.scale_NLPKS1[places] = scale
            pieces = (pieces / scale).round_().to(torch.int8)
        self.store_NLPKSE[places] = pieces

    def clear(self) -> None:
        """Forget everything: the model has changed."""
        self.kept.clear()
        self.free = list(range(self.blocks))

    def _new(self, key: _Key, chain: list[Block]) -> Block | None:
        """A block for what is not here yet; None when all are in use."""
        if not self.free and not self._evict(set(map(id, chain))):
            return None
        parent = chain[-1] if chain else None
        block = self.kept[key] = Block(self.free.pop(), parent, key)
        if parent is not None:
            parent.children += 1
        return block

    def _evict(self, spared: set[int]) -> bool:
        for key, block in self.kept.items():
            if block.children == 0 and id(block) not in spared:
                del self.kept[key]
                self.free.append(block.place)
                if block.parent is not None:
                    block.parent.children -= 1
                return True
        return False

    def _touch(self, chain: Sequence[Block]) -> None:
        for block in reversed(chain):  # a parent stays longer than its children
            self.kept.move_to_end(block.key)


def _cut(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + BLOCK]) for at in range(0, len(tokens) - BLOCK + 1, BLOCK)]
