"""The Transformer: tokens in, logits out. It knows nothing of training, devices in the plural, batching or text.

Shapes live in the names; one letter an axis:
    B batch   T time (tokens fed)   S slots looked at (T, or the cache's)   D width   V vocabulary
    H heads   K key/value heads     E head size                             F feed-forward width

Weights are held in float32 (or whatever they were loaded in) and cast to `compute_dtype` where they are used, so that
training keeps float32 masters and there is no autocast to reason about. `trace(name, tensor)`, if given, is called with
each named activation; if not, it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liuli.model.config import GATE_CHANNELS, ModelConfig
from liuli.model.ops import (
    attention,
    cap,
    causal_attention,
    causal_mask,
    fused_attention,
    norm_and_rotate,
    rms_norm,
    rotary_table,
    rotate,
)

Trace = Callable[[str, Tensor], None]
Turn = tuple[Tensor, Tensor]  # of rotary embedding: cos and sin


class Cache(Protocol):
    """Where keys and values of earlier tokens live; the engine implements it."""

    positions_BT: Tensor  # int64: position of each token fed now
    previous_B1: Tensor  # int64: the token before the first one fed, -1 for none

    @property
    def mask_BTS(self) -> Tensor:
        """True where a query may look."""

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return those of all S slots, (B, S, K, E) each."""


class Branches(NamedTuple):
    """Texts of a row that go on from another one of it, as several answers from one prompt; (B, T) int64 each.

    parents_BT: the document that a token's own goes on from, -2 for none. positions_BT: tokens of its text before it.
    before_BT: where in the row the last of these stands, -1 for none.
    """

    parents_BT: Tensor
    positions_BT: Tensor
    before_BT: Tensor


class Linear(nn.Linear):
    """A matrix without bias that is cast to its input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, RoPE and (but in Llama) normalised queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c = self.config = config
        self.layer = layer
        self.query = Linear(c.width, c.heads * c.head_size)
        self.key = Linear(c.width, c.kv_heads * c.head_size)
        self.value = Linear(c.width, c.kv_heads * c.head_size)
        self.output = Linear(c.heads * c.head_size, c.width)
        if c.preset == "qwen3":
            # half, not one: soft attention at the start finds what to copy sooner (docs/notebook.md)
            self.query_gain = nn.Parameter(torch.full((c.head_size,), 0.5))
            self.key_gain = nn.Parameter(torch.full((c.head_size,), 0.5))
        if layer in c.value_layers:
            self.value_embedding = nn.Embedding(c.vocab_size, c.kv_heads * c.head_size)
            self.value_gate = nn.Parameter(torch.zeros(c.kv_heads, GATE_CHANNELS))
        # nanochat found sharper attention (q and k times 1.2 each) to help when neither has a gain
        self.scale = c.head_size**-0.5 * (1.44 if c.preset == "racer" else 1.0)

    def forward(
        self, x_BTD: Tensor, tokens_BT: Tensor, rotary: Turn, mask_BTS: Tensor, cache: Cache | None, trace: Trace | None
    ) -> Tensor:
        c = self.config
        B, T, _ = x_BTD.shape
        qk_BTHE, v_BTKE = self.project(x_BTD)
        if self.layer in c.value_layers:
            # arXiv 2410.17897: a token's own value, through a gate of range (0, 3) read off the residual stream
            gate_BTK = 3 * torch.sigmoid(F.linear(x_BTD[..., :GATE_CHANNELS], self.value_gate.to(x_BTD.dtype)))
            own_BTKE = self.value_embedding(tokens_BT).to(x_BTD.dtype).view(B, T, c.kv_heads, c.head_size)
            v_BTKE = v_BTKE + gate_BTK.unsqueeze(-1) * own_BTKE
        if c.preset == "llama":
            qk_BTHE = rotate(qk_BTHE, *rotary)
        else:  # RMSNorm over each head keeps the scores in bounds (arXiv 2302.05442); Qwen3 with gains, racer without
            qk_BTHE = norm_and_rotate(qk_BTHE, self.gains(), *rotary, c.norm_eps)
        q_BTHE, k_BTKE = torch.split(qk_BTHE, [c.heads, c.kv_heads], dim=2)
        if cache is not None:
            k_BTKE, v_BTKE = cache.extend(self.layer, k_BTKE, v_BTKE)
        q_BHTE, k_BHSE, v_BHSE = (heads.transpose(1, 2) for heads in (q_BTHE, k_BTKE, v_BTKE))
        if c.kv_heads != c.heads:
            k_BHSE, v_BHSE = (h.repeat_interleave(c.heads // c.kv_heads, dim=1) for h in (k_BHSE, v_BHSE))
        inputs = q_BHTE, k_BHSE, v_BHSE, mask_BTS, self.scale
        if trace is None:  # with a cache alone the fused one: training and scoring must agree
            mixed_BHTE = causal_attention(*inputs) if cache is None else fused_attention(*inputs)
        else:
            mixed_BHTE, weights_BHTS = attention(*inputs)
            for name, value in (("query", q_BHTE), ("key", k_BHSE), ("value", v_BHSE), ("weights", weights_BHTS)):
                trace(f"blocks.{self.layer}.attention.{name}", value)
        made: Tensor = self.output(mixed_BHTE.transpose(1, 2).reshape(B, T, c.heads * c.head_size))
        return made

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side (B, T, H + K, E), and values (B, T, K, E), by one matrix multiplication."""
        c = self.config
        weight = torch.cat((self.query.weight, self.key.weight, self.value.weight)).to(x_BTD.dtype)
        qkv_BTHE = F.linear(x_BTD, weight).view(*x_BTD.shape[:2], c.heads + 2 * c.kv_heads, c.head_size)
        return qkv_BTHE[:, :, : c.heads + c.kv_heads], qkv_BTHE[:, :, c.heads + c.kv_heads :]

    def gains(self) -> Tensor | None:
        """The gains of queries and keys, (H + K, E), where the preset has them."""
        c = self.config
        if c.preset == "racer":
            return None
        return torch.cat((self.query_gain.expand(c.heads, -1), self.key_gain.expand(c.kv_heads, -1)))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6), or squared ReLU (arXiv 2109.08668) for racer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.preset != "racer"
        if self.gated:
            self.gate = Linear(config.width, config.ff_width)
        self.up = Linear(config.width, config.ff_width)
        self.down = Linear(config.ff_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF: Tensor = self.up(x_BTD)
        inner_BTF = F.silu(self.gate(x_BTD)) * up_BTF if self.gated else F.relu(up_BTF).square()
        made: Tensor = self.down(inner_BTF)
        return made


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        gain = config.preset != "racer"
        self.attention_gain = nn.Parameter(torch.ones(config.width)) if gain else None
        self.feed_forward_gain = nn.Parameter(torch.ones(config.width)) if gain else None

    def forward(
        self, x_BTD: Tensor, tokens_BT: Tensor, rotary: Turn, mask_BTS: Tensor, cache: Cache | None, trace: Trace | None
    ) -> Tensor:
        c = self.config
        normed = rms_norm(x_BTD, self.attention_gain, c.norm_eps)
        mixed = self.attention(normed, tokens_BT, rotary, mask_BTS, cache, trace)
        x_BTD = x_BTD + F.dropout(mixed, c.dropout, self.training)
        made = self.feed_forward(rms_norm(x_BTD, self.feed_forward_gain, c.norm_eps))
        if trace is not None:
            trace(f"blocks.{self.layer}.attention.output", mixed)
            trace(f"blocks.{self.layer}.feed_forward.output", made)
        return x_BTD + F.dropout(made, c.dropout, self.training)


class Transformer(nn.Module):
    """A decoder-only language model; `config.preset` chooses between Qwen3's parts, Llama's and the racer's."""

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.compute_dtype: torch.dtype | None = None  # None: the weights' own
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.layers))
        self.final_gain = nn.Parameter(torch.ones(c.width)) if c.preset != "racer" else None
        self.head = None if c.tied else Linear(c.width, c.vocab_size)
        if c.preset == "racer":
            # x = keep * x + again * x0 + pair * bigram before each block
            self.keep_L = nn.Parameter(torch.linspace(1.15, 1.05, c.layers))
            self.again_L = nn.Parameter(torch.linspace(0.20, 0.05, c.layers))
            self.pair_L = nn.Parameter(torch.full((c.layers,), 0.1))
            self.bigram = nn.Embedding(c.bigram_rows, c.width) if c.bigram_rows else None
        self.set_rotary()
        initialise(self)

    def set_rotary(self) -> None:
        """Compute the rotary tables; they are not part of the weights."""
        cos, sin = rotary_table(self.config.context, self.config.head_size, self.config.rope_base)
        self.register_buffer("cos_TE", cos, persistent=False)
        self.register_buffer("sin_TE", sin, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that activations have."""
        return self.compute_dtype or self.embedding.weight.dtype

    @property
    def head_VD(self) -> Tensor:
        """The matrix from the last hidden state to logits; the embedding itself where tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Logits (B, T, V) in the compute dtype. documents_BT (int): a token sees those of its own document only."""
        x_BTD = self.hidden(tokens_BT, cache, documents_BT, trace)
        return self.logits(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head alone: (..., D) to (..., V)."""
        return cap(F.linear(x_BTD, self.head_VD.to(x_BTD.dtype)), self.config.softcap)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
        trace: Trace | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """The normalised state before the head, (B, T, D). branches: which documents also see another's tokens."""
        c = self.config
        rotary, mask_BTS = self.places(tokens_BT, cache, documents_BT, branches)
        x_BTD = self.embedding(tokens_BT).to(self.dtype)
        if c.preset == "racer":
            x_BTD = start_BTD = rms_norm(x_BTD, None, c.norm_eps)
            pairs_BTD = self.pairs(tokens_BT, cache, documents_BT, branches)
        x_BTD = F.dropout(x_BTD, c.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            if c.preset == "racer":
                keep, again, pair = (p[layer].to(x_BTD.dtype) for p in (self.keep_L, self.again_L, self.pair_L))
                x_BTD = keep * x_BTD + again * start_BTD
                if pairs_BTD is not None:
                    x_BTD = x_BTD + pair * pairs_BTD
            x_BTD = block(x_BTD, tokens_BT, rotary, mask_BTS, cache, trace)
            if trace is not None:
                trace(f"blocks.{layer}.residual", x_BTD)
        x_BTD = rms_norm(x_BTD, self.final_gain, c.norm_eps)
        if trace is not None:
            trace("final", x_BTD)
        return x_BTD

    def places(
        self, tokens_BT: Tensor, cache: Cache | None, documents_BT: Tensor | None, branches: Branches | None
    ) -> tuple[Turn, Tensor]:
        """Rotary angles of the tokens fed, and the additive mask over the slots they may look at."""
        T = tokens_BT.shape[1]
        cos, sin = self.cos_TE.to(self.dtype), self.sin_TE.to(self.dtype)
        if cache is None:
            parents_BT, at = (branches.parents_BT, branches.positions_BT) if branches else (None, slice(T))
            return (cos[at], sin[at]), causal_mask(T, documents_BT, self.dtype, tokens_BT.device, parents_BT)
        seen_BTS = cache.mask_BTS
        mask = torch.zeros(seen_BTS.shape, dtype=self.dtype, device=tokens_BT.device)
        return (cos[cache.positions_BT], sin[cache.positions_BT]), mask.masked_fill_(~seen_BTS, float("-inf"))

    def pairs(
        self,
        tokens_BT: Tensor,
        cache: Cache | None,
        documents_BT: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor | None:
        """A learned vector for each pair of neighbouring tokens of a document, by a hash into the bigram table."""
        if self.bigram is None:
            return None
        before_B1 = tokens_BT.new_full((tokens_BT.shape[0], 1), -1) if cache is None else cache.previous_B1
        before_BT = torch.cat((before_B1, tokens_BT[:, :-1]), dim=1)
        if branches is not None:
            at_BT = branches.before_BT
            before_BT = torch.where(at_BT < 0, -1, tokens_BT.gather(1, at_BT.clamp_min(0)))
        elif documents_BT is not None:
            alike_BT = F.pad(documents_BT[:, 1:] == documents_BT[:, :-1], (1, 0), value=True)
            before_BT = torch.where(alike_BT, before_BT, -1)
        found_BTD: Tensor = self.bigram(pair_rows(self.config, tokens_BT, before_BT))
        return found_BTD.to(self.dtype)


def pair_rows(config: ModelConfig, tokens_BT: Tensor, before_BT: Tensor) -> Tensor:
    """The bigram table's row for each token and the one before it; -1, no token, has the last row."""
    V, rows = config.vocab_size, config.bigram_rows
    if rows > V * V:  # room for every pair: no hash needed
        index_BT = before_BT * V + tokens_BT
    else:
        index_BT = torch.bitwise_xor(36_313 * tokens_BT, 27_191 * before_BT) % (rows - 1)
    return torch.where(before_BT < 0, rows - 1, index_BT)


@torch.no_grad()
def initialise(model: Transformer) -> None:
    """Start weights: N(0, 0.02) with residual projections scaled down (GPT-2's scheme); for racer uniform inputs, zero
    residual projections, a near-zero head and zero tables, so that each block starts as the identity."""
    c = model.config
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        into_residual = name.endswith(("attention.output.weight", "down.weight"))
        if c.preset != "racer":
            nn.init.normal_(weight, std=0.02 / (2 * c.layers) ** 0.5 if into_residual else 0.02)
        elif into_residual or name.startswith("bigram") or "value_gate" in name:
            nn.init.zeros_(weight)
        elif name == "embedding.weight":
            nn.init.normal_(weight, std=0.8)
        elif name == "head.weight":
            nn.init.normal_(weight, std=0.001)
        else:
            bound = (3 / c.width) ** 0.5 * (0.5 if "feed_forward" in name else 1.0)
            nn.init.uniform_(weight, -bound, bound)
