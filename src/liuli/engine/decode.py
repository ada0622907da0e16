"""The step that writes: one token, or a few, for each row. The same numbers as `Transformer.forward`, much sooner.

With a token a row there is little to compute and much to start: small operations and weights read from memory cost
more than the products. So weights that meet the same input are laid side by side once, as floats or packed into bytes
(quantise.py), residuals are added inside the products, and a compiler fuses the rest where it is asked to. Prompts
are read by the Transformer itself; a test holds the two equal for every preset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from liuli.engine.cache import KeyValueCache
from liuli.engine.compiled import Step, ahead_of_time, just_in_time
from liuli.engine.quantise import Kind, Packed, pack
from liuli.model import Transformer
from liuli.model.config import ModelConfig
from liuli.model.transformer import pair_rows

MOST_BYTES = 2**29  # a larger model is left alone: its second copy would hurt, and its products dominate anyway
FEW = 4  # rows below which PyTorch's fused attention is faster in float32 too
Weight = Tensor | Packed


@dataclass(frozen=True)
class _Layer:
    """Weights of one block, (inputs, outputs) each."""

    attention_gain: Tensor | None
    qkv_DN: Weight  # N = (H + 2K) * E
    qk_gain_HE: Tensor  # (H + K, E), the scale of the scores in the query's part
    output_ND: Weight
    feed_forward_gain: Tensor | None
    up_DF: Weight  # gate and up side by side, or up alone
    down_FD: Weight
    value_table: Tensor | None
    value_gate_GK: Tensor | None


@dataclass(frozen=True)
class _Laid:
    """All that a step reads of a model. angles: cos and sin, (positions, E). of_3L, pairs_RD: only of a racer."""

    config: ModelConfig
    embedding_VD: Tensor
    layers: list[_Layer]
    final_gain: Tensor | None
    head_DV: Weight
    angles: tuple[Tensor, Tensor]
    of_3L: Tensor | None  # how much of itself, of the first input and of pairs of tokens each block's input holds
    pairs_RD: Tensor | None


for holder in (Packed, _Layer, _Laid):  # torch shall see the tensors in them
    pytree.register_dataclass(holder)


@dataclass(frozen=True)
class _Fed:
    """What is fed: N = B * T tokens. index: lines of the cache to write; None for one slot that all rows share, and in
    a compiled step, which finds the places by itself. seen: slots looked at, S."""

    tokens_BT: Tensor
    positions_BT: Tensor
    index: Tensor | None
    closed_BTS: Tensor | None  # additive; None when every slot may be seen
    seen: int


class Decoder:
    """A few tokens a row through a model. Weights are copied; `fresh` says whether the model's are still the same.

    weights: None keeps the model's numbers; "int8" and "int4" round them, and what they multiply to bfloat16.
    compiled: the step as machine code (compiled.py); where it was never made before, the first step takes seconds.
    """

    def __init__(self, model: Transformer, weights: Kind | None = None, compiled: bool = False) -> None:
        self.model, self.config = model, model.config
        self.weights = weights or ("bf16" if model.dtype == torch.bfloat16 else None)
        self.dtype = model.dtype
        self.versions, self.compiled = weight_versions(model), compiled
        racer = self.config.preset == "racer"
        with torch.no_grad():
            self.laid = _Laid(
                config=self.config,
                embedding_VD=model.embedding.weight.detach(),
                layers=[self._prepare(block) for block in model.blocks],
                final_gain=_low(model.final_gain, self.dtype),
                head_DV=self._side_by_side(model.head_VD),
                angles=_signed_angles(model, self.dtype),
                of_3L=_low(torch.stack((model.keep_L, model.again_L, model.pair_L)), self.dtype) if racer else None,
                pairs_RD=model.bigram.weight.detach() if racer and model.bigram is not None else None,
            )
        # compiled: for one row or for many, and so many tokens each
        self.steps: dict[tuple[bool, int], Step] = {}

    @staticmethod
    def pays(model: Transformer) -> bool:
        """Whether a model is small enough to hold a second copy of its matrices."""
        return sum(weight.nbytes for weight in model.parameters()) <= MOST_BYTES

    def fresh(self) -> bool:
        """False once a weight was changed or replaced, by an optimizer for example."""
        return self.versions == weight_versions(self.model)

    def _side_by_side(self, *weights: Tensor) -> Weight:
        """Matrices that meet the same input side by side, (inputs, outputs), in the compute dtype or packed."""
        together_OI = torch.cat([weight.detach() for weight in weights])
        if self.weights is not None:
            return pack(together_OI, self.weights, compiled=self.compiled)
        # measured: float32 vectors are multiplied faster by the transpose laid out in memory
        return together_OI.to(self.dtype).t().contiguous()

    def _prepare(self, block: Any) -> _Layer:
        c, attention, feed, low = self.config, block.attention, block.feed_forward, self.dtype
        gains = torch.ones(c.heads + c.kv_heads, c.head_size, device=self.model.head_VD.device)
        if c.preset == "qwen3":
            gains = torch.cat((attention.query_gain.expand(c.heads, -1), attention.key_gain.expand(c.kv_heads, -1)))
        gains = gains.detach().clone()
        gains[: c.heads] *= attention.scale
        has_values = attention.layer in c.value_layers
        up = (feed.gate.weight, feed.up.weight) if feed.gated else (feed.up.weight,)
        return _Layer(
            attention_gain=_low(block.attention_gain, low),
            qkv_DN=self._side_by_side(attention.query.weight, attention.key.weight, attention.value.weight),
            qk_gain_HE=gains.to(low),
            output_ND=self._side_by_side(attention.output.weight),
            feed_forward_gain=_low(block.feed_forward_gain, low),
            up_DF=self._side_by_side(*up),
            down_FD=self._side_by_side(feed.down.weight),
            value_table=_low(attention.value_embedding.weight, low) if has_values else None,
            value_gate_GK=_low(attention.value_gate, low).t() if has_values else None,  # type: ignore[union-attr]
        )

    def __call__(self, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, T, V) after each of T tokens for each of the cache's rows, which `cache.follow` was told of."""
        fed = (tokens_BT, cache.positions_BT, cache.previous_B1, cache.slots_S[: cache.seen])
        if not self.compiled:
            return self._forward(self.laid, cache.pairs_L, *fed, cache.index, alike=cache.index is None)
        shape = (len(tokens_BT) == 1, tokens_BT.shape[1])
        if shape not in self.steps:
            compile_step = ahead_of_time if self.laid.embedding_VD.device.type == "cpu" else just_in_time
            self.steps[shape] = compile_step(self._forward, self.laid, cache.pairs_L, fed)
        return self.steps[shape](cache.pairs_L, *fed)

    def _forward(
        self,
        laid: _Laid,
        pairs_L: Sequence[tuple[Tensor, Tensor]],
        tokens_BT: Tensor,
        positions_BT: Tensor,
        previous_B1: Tensor,
        slots_S: Tensor,
        index: Tensor | None = None,
        alike: bool = False,
    ) -> Tensor:
        c, low = laid.config, self.dtype
        closed_BTS = None if alike else torch.where(slots_S <= positions_BT.unsqueeze(-1), 0.0, -math.inf).to(low)
        fed = _Fed(tokens_BT, positions_BT, index, closed_BTS, slots_S.shape[0])
        B, T = tokens_BT.shape
        x_ND = F.embedding(tokens_BT.reshape(-1), laid.embedding_VD).to(low)
        pairs_ND: Tensor | None = None
        start_ND = x_ND
        if laid.of_3L is not None:
            x_ND = start_ND = _norm(x_ND, None, c.norm_eps)
        if laid.pairs_RD is not None:
            before_BT = torch.cat((previous_B1, tokens_BT[:, :-1]), dim=1)
            pairs_ND = F.embedding(pair_rows(c, tokens_BT, before_BT).view(-1), laid.pairs_RD).to(low)
        turn = tuple(table[positions_BT.reshape(-1)].unsqueeze(1) for table in laid.angles)
        closed = None if closed_BTS is None else _by_query(closed_BTS, c.heads // c.kv_heads)
        for layer, pair, number in zip(laid.layers, pairs_L, range(c.layers), strict=True):
            if laid.of_3L is not None:
                keep, again, share = laid.of_3L[:, number]
                x_ND = (x_ND * keep).addcmul_(start_ND, again)
                if pairs_ND is not None:
                    x_ND = x_ND.addcmul_(pairs_ND, share)
            x_ND = self._attend(layer, x_ND, fed, turn, closed, pair)
            h_NF = _product(_norm(x_ND, layer.feed_forward_gain, c.norm_eps), layer.up_DF)
            if c.preset != "racer":
                gate_NF, up_NF = torch.split(h_NF, c.ff_width, dim=1)
                h_NF = F.silu(gate_NF).mul_(up_NF)
            else:
                h_NF = h_NF.relu_().square_()
            x_ND = _product(h_NF, layer.down_FD, x_ND)
        logits_NV = _product(_norm(x_ND, laid.final_gain, c.norm_eps), laid.head_DV).float()
        if c.softcap:
            logits_NV = logits_NV.div_(c.softcap).tanh_().mul_(c.softcap)
        return logits_NV.view(B, T, -1)

    def _attend(
        self,
        layer: _Layer,
        x_ND: Tensor,
        fed: _Fed,
        turn: tuple[Tensor, ...],
        closed: Tensor | None,
        pair: tuple[Tensor, Tensor],
    ) -> Tensor:
        """x + attention(norm(x)); closed: additive mask (B, 1, G * T or 1, S), None when every slot may be seen."""
        c = self.config
        (B, T), K, E = fed.tokens_BT.shape, c.kv_heads, c.head_size
        normed_ND = _norm(x_ND, layer.attention_gain, c.norm_eps)
        qkv_NHE = _product(normed_ND, layer.qkv_DN).view(B * T, -1, E)
        qk_NHE, v_NKE = torch.split(qkv_NHE, [c.heads + K, K], dim=1)
        if layer.value_table is not None and layer.value_gate_GK is not None:
            gate_NK = torch.mm(normed_ND[:, : layer.value_gate_GK.shape[0]], layer.value_gate_GK).sigmoid_().mul_(3)
            own_NKE = F.embedding(fed.tokens_BT.reshape(-1), layer.value_table).view(-1, K, E)
            v_NKE = torch.addcmul(v_NKE, gate_NK.unsqueeze(-1), own_NKE)
        if c.preset == "llama":
            qk_NHE = qk_NHE * layer.qk_gain_HE
        else:
            qk_NHE = _norm(qk_NHE, layer.qk_gain_HE, c.norm_eps)
        cos_N1E, sin_N1E = turn
        qk_NHE = (qk_NHE * cos_N1E).addcmul_(qk_NHE.roll(E // 2, -1), sin_N1E)
        q_NHE, k_NKE = torch.split(qk_NHE, [c.heads, K], dim=1)
        k_BKSE, v_BKSE = (_stored(store, new, B, fed) for store, new in zip(pair, (k_NKE, v_NKE), strict=True))
        # queries that share a key/value head stand side by side: M = G * T
        q_BKME = q_NHE.reshape(B, T, K, -1, E).permute(0, 2, 3, 1, 4).reshape(B, K, -1, E)
        mixed_BKME = _mixed(q_BKME, k_BKSE, v_BKSE, closed)
        mixed_NI = mixed_BKME.reshape(B, K, -1, T, E).permute(0, 3, 1, 2, 4).reshape(B * T, -1)
        return _product(mixed_NI, layer.output_ND, x_ND)


def _mixed(q_BKME: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, closed_B1MS: Tensor | None) -> Tensor:
    """Attention of M queries of each key/value head to S slots: (B, K, M, E)."""
    if torch.compiler.is_compiling():  # fused into loops over what lies in the cache, float32 inside
        scores_BKMS = (q_BKME.unsqueeze(3).float() * k_BKSE.unsqueeze(2).float()).sum(-1)
        weights_BKMS = torch.softmax(scores_BKMS if closed_B1MS is None else scores_BKMS + closed_B1MS, dim=-1)
        return (weights_BKMS.unsqueeze(-1) * v_BKSE.unsqueeze(2).float()).sum(3).to(q_BKME.dtype)
    B, K, S, E = k_BKSE.shape
    if q_BKME.dtype != torch.float32 or B < FEW:  # up to seven times as fast in bfloat16 (measured with AMX)
        return F.scaled_dot_product_attention(q_BKME, k_BKSE, v_BKSE, closed_B1MS, scale=1.0)
    scores_NMS = torch.bmm(q_BKME.reshape(B * K, -1, E), k_BKSE.reshape(B * K, S, E).transpose(1, 2))
    if closed_B1MS is not None:
        scores_NMS.view(B, K, -1, S).add_(closed_B1MS)
    return torch.bmm(torch.softmax(scores_NMS, dim=-1), v_BKSE.reshape(B * K, S, E)).view_as(q_BKME)


def _product(x_NI: Tensor, weight: Weight, plus: Tensor | None = None) -> Tensor:
    """x W, plus the residual where there is one."""
    if isinstance(weight, Packed):
        made = weight.matmul(x_NI)
        return made if plus is None else made.add_(plus)
    return torch.mm(x_NI, weight) if plus is None else torch.addmm(plus, x_NI, weight)


def _stored(store_RKSE: Tensor, new_NKE: Tensor, B: int, fed: _Fed) -> Tensor:
    """Write the new tokens' keys or values; all that the rows hold, (B, K, S, E), a view."""
    E = new_NKE.shape[-1]
    if fed.closed_BTS is None:
        store_BKSE = store_RKSE[:B, :, : fed.seen]
        store_BKSE[:, :, -1] = new_NKE
        return store_BKSE
    if fed.index is None:  # by row, head and position: through a flat view the compiler copies the store
        K, new_BTKE = store_RKSE.shape[1], new_NKE.reshape(B, -1, *new_NKE.shape[1:])
        row_B11 = torch.arange(B, device=new_NKE.device)[:, None, None]
        head_K = torch.arange(K, device=new_NKE.device)[None, None]
        store_RKSE.index_put_((row_B11, head_K, fed.positions_BT.unsqueeze(-1)), new_BTKE)
    else:
        store_RKSE.view(-1, E).index_copy_(0, fed.index, new_NKE.reshape(-1, E))
    return store_RKSE[:B, :, : fed.seen]


def _norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467, eq. 4) in the fewest operations that keep float32 inside."""
    if torch.compiler.is_compiling():
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
        return normed if gain is None else normed * gain
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    normed = x * scale.to(x.dtype)
    return normed if gain is None else normed.mul_(gain)


def _signed_angles(model: Transformer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, (T, E), sin with the sign that a half turn of the pairs needs."""
    sin_TE = model.sin_TE.clone()
    sin_TE[:, : sin_TE.shape[1] // 2].neg_()
    return model.cos_TE.to(dtype), sin_TE.to(dtype)


def _by_query(closed_BTS: Tensor, G: int) -> Tensor:
    """The mask as attention adds it: (B, 1, G * T, S); one line for all G where T is 1."""
    B, T, S = closed_BTS.shape
    return closed_BTS.unsqueeze(1) if T == 1 else closed_BTS[:, None].expand(B, G, T, S).reshape(B, 1, G * T, S)


def _low(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.detach().to(dtype)


def weight_versions(model: Transformer) -> list[tuple[int, int]]:
    """Changes whenever a weight is written to or replaced; torch counts the writes of each tensor."""
    return [(weight.data_ptr(), weight._version) for weight in model.parameters()]
