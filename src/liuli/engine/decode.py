"""The step that writes: one token for each row. The same numbers as `Transformer.forward`, in half the time.

With one token a row there is little to compute and much to start: small operations and weights read from memory cost
more than the products. So weights that meet the same input are laid side by side once, transposed as the product of a
vector reads them, residuals are added inside the products, and there is no time axis. Prompts are read by the
Transformer itself; a test holds the two equal for both presets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liuli.engine.cache import KeyValueCache
from liuli.model import Transformer

MOST_BYTES = 2**29  # a larger model is left alone: its second copy would hurt, and its products dominate anyway


@dataclass(frozen=True)
class _Layer:
    """Weights of one block, (inputs, outputs) each."""

    attention_gain: Tensor | None
    qkv_DN: Tensor  # N = (H + 2K) * E
    qk_gain_HE: Tensor  # (H + K, E), the scale of the scores in the query's part
    output_ND: Tensor
    feed_forward_gain: Tensor | None
    up_DF: Tensor  # gate and up side by side, or up alone
    down_FD: Tensor
    value_table: Tensor | None
    value_gate_GK: Tensor | None


class Decoder:
    """One token a row through a model. Weights are copied; `fresh` says whether the model's are still the same."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.versions = _versions(model)
        with torch.no_grad():
            self.layers = [self._prepare(block) for block in model.blocks]
            self.head_DV = self._laid(model.head_VD)

    @staticmethod
    def pays(model: Transformer) -> bool:
        """Whether a model is small enough to hold a second copy of its matrices."""
        return sum(weight.nbytes for weight in model.parameters()) <= MOST_BYTES

    def fresh(self) -> bool:
        """False once a weight was changed or replaced, by an optimizer for example."""
        return self.versions == _versions(self.model)

    def _laid(self, *weights: Tensor) -> Tensor:
        """Matrices that meet the same input side by side, (inputs, outputs), in the compute dtype."""
        together_OI = torch.cat([weight.detach() for weight in weights]).to(self.model.dtype)
        # measured: float32 vectors are multiplied faster by the transpose laid out in memory, bfloat16 by the original
        return together_OI.t().contiguous() if together_OI.dtype == torch.float32 else together_OI.t()

    def _prepare(self, block: Any) -> _Layer:
        c, attention, feed = self.config, block.attention, block.feed_forward
        low = self.model.dtype
        gains = torch.ones(c.heads + c.kv_heads, c.head_size, device=self.model.head_VD.device)
        if c.preset == "qwen3":
            gains = torch.cat((attention.query_gain.expand(c.heads, -1), attention.key_gain.expand(c.kv_heads, -1)))
        gains = gains.detach().clone()
        gains[: c.heads] *= attention.scale
        has_values = attention.layer in c.value_layers
        return _Layer(
            attention_gain=_low(block.attention_gain, low),
            qkv_DN=self._laid(attention.query.weight, attention.key.weight, attention.value.weight),
            qk_gain_HE=gains.to(low),
            output_ND=self._laid(attention.output.weight),
            feed_forward_gain=_low(block.feed_forward_gain, low),
            up_DF=self._laid(feed.gate.weight, feed.up.weight) if feed.gated else self._laid(feed.up.weight),
            down_FD=self._laid(feed.down.weight),
            value_table=_low(attention.value_embedding.weight, low) if has_values else None,
            value_gate_GK=self._laid(attention.value_gate) if has_values else None,
        )

    def __call__(self, tokens_B1: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, V) after one token for each of the cache's rows, which `cache.follow` was told of."""
        c, model = self.config, self.model
        low, tokens_B = model.dtype, tokens_B1[:, 0]
        x_BD = torch.nn.functional.embedding(tokens_B, model.embedding.weight).to(low)
        pairs_BD: Tensor | None = None
        start_BD = x_BD
        if c.preset == "racer":
            x_BD = start_BD = _norm(x_BD, None, c.norm_eps)
            if (pairs_B1D := model.pairs(tokens_B1, cache)) is not None:
                pairs_BD = pairs_B1D[:, 0]
        turn = _angles(model, cache)
        closed = _closed(cache, c.kv_heads, low)
        for number, layer in enumerate(self.layers):
            if c.preset == "racer":
                keep, again, pair = (p[number].to(low) for p in (model.keep_L, model.again_L, model.pair_L))
                x_BD = (x_BD * keep).addcmul_(start_BD, again)
                if pairs_BD is not None:
                    x_BD = x_BD.addcmul_(pairs_BD, pair)
            x_BD = self._attend(number, layer, x_BD, tokens_B, turn, closed, cache)
            h_BF = torch.mm(_norm(x_BD, layer.feed_forward_gain, c.norm_eps), layer.up_DF)
            if c.preset == "qwen3":
                gate_BF, up_BF = torch.split(h_BF, c.ff_width, dim=1)
                h_BF = torch.nn.functional.silu(gate_BF).mul_(up_BF)
            else:
                h_BF = h_BF.relu_().square_()
            x_BD = torch.addmm(x_BD, h_BF, layer.down_FD)
        logits_BV = torch.mm(_norm(x_BD, _low(model.final_gain, low), c.norm_eps), self.head_DV)
        return logits_BV.div_(c.softcap).tanh_().mul_(c.softcap) if c.softcap else logits_BV

    def _attend(
        self,
        number: int,
        layer: _Layer,
        x_BD: Tensor,
        tokens_B: Tensor,
        turn: tuple[Tensor, Tensor],
        closed: Tensor | None,
        cache: KeyValueCache,
    ) -> Tensor:
        """x + attention(norm(x)); closed: additive mask (B * K, 1, S), None when every slot may be seen."""
        c = self.config
        B, K, E = len(x_BD), c.kv_heads, c.head_size
        normed_BD = _norm(x_BD, layer.attention_gain, c.norm_eps)
        qkv_BNE = torch.mm(normed_BD, layer.qkv_DN).view(B, -1, E)
        qk_BNE, v_BKE = torch.split(qkv_BNE, [c.heads + K, K], dim=1)
        if layer.value_table is not None and layer.value_gate_GK is not None:
            gate_BK = torch.mm(normed_BD[:, : layer.value_gate_GK.shape[0]], layer.value_gate_GK).sigmoid_().mul_(3)
            own_BKE = torch.nn.functional.embedding(tokens_B, layer.value_table).view(B, K, E)
            v_BKE = torch.addcmul(v_BKE, gate_BK.unsqueeze(-1), own_BKE)
        qk_BNE = _norm(qk_BNE, layer.qk_gain_HE, c.norm_eps)
        cos_B1E, sin_B1E = turn
        qk_BNE = (qk_BNE * cos_B1E).addcmul_(qk_BNE.roll(E // 2, -1), sin_B1E)
        q_BHE, k_BKE = torch.split(qk_BNE, [c.heads, K], dim=1)
        k_BKSE, v_BKSE = cache.append(number, k_BKE, v_BKE)
        # queries that share a key/value head are rows of one product
        q_NGE = q_BHE.reshape(B * K, c.heads // K, E)
        k_NES = k_BKSE.view(B * K, -1, E).transpose(1, 2)
        scores_NGS = torch.bmm(q_NGE, k_NES) if closed is None else torch.baddbmm(closed, q_NGE, k_NES)
        mixed_NGE = torch.bmm(torch.softmax(scores_NGS, dim=-1), v_BKSE.view(B * K, -1, E))
        return torch.addmm(x_BD, mixed_NGE.view(B, -1), layer.output_ND)


def _norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467, eq. 4) in the fewest operations that keep float32 inside."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    normed = x * scale.to(x.dtype)
    return normed if gain is None else normed.mul_(gain)


def _angles(model: Transformer, cache: KeyValueCache) -> tuple[Tensor, Tensor]:
    """cos and sin of each row's position, (B, 1, E), sin with the sign that a half turn of the pairs needs."""
    cos_BE, sin_BE = (table[cache.positions_BT[:, 0]] for table in (model.cos_TE, model.sin_TE))
    sin_BE[:, : sin_BE.shape[1] // 2].neg_()
    return cos_BE.to(model.dtype).unsqueeze(1), sin_BE.to(model.dtype).unsqueeze(1)


def _closed(cache: KeyValueCache, kv_heads: int, dtype: torch.dtype) -> Tensor | None:
    if cache.index is None:
        return None
    closed_BS = torch.zeros(cache.mask_BTS.shape[0], cache.seen, dtype=dtype, device=cache.mask_BTS.device)
    closed_BS.masked_fill_(~cache.mask_BTS[:, 0], float("-inf"))
    return closed_BS.repeat_interleave(kv_heads, dim=0).unsqueeze(1)


def _low(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.detach().to(dtype)


def _versions(model: Transformer) -> list[tuple[int, int]]:
    """Changes whenever a weight is written to or replaced; torch counts the writes of each tensor."""
    return [(weight.data_ptr(), weight._version) for weight in model.parameters()]
