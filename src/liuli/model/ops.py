"""The few tensor functions of which a Transformer consists, as pure functions.

Each is written plainly, which is what torch.compile fuses best. In eager mode a chain of small operations costs a pass
over memory each, and autograd keeps every intermediate; there the norms and the loss use hand-written gradients
(classes ending in `Eager`, tested against autograd of the plain form).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis (RMSNorm, arXiv 1910.07467, eq. 4). Any shape; gain (D,)."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
        return normed if gain is None else normed * gain.to(x.dtype)
    result: Tensor = RMSNormEager.apply(x, gain, eps)  # type: ignore[no-untyped-call]
    return result


def normed_eagerly(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) and what x was multiplied with, in as few passes over memory as plain tensor operations
    allow."""
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
    return x * scale, scale


class RMSNormEager(torch.autograd.Function):
    """RMSNorm with the gradient written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        normed, scale = normed_eagerly(x, eps)
        ctx.save_for_backward(normed, scale, gain)
        result: Tensor = normed if gain is None else normed * gain.to(x.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # with n = x * s: dx = s * (g*gain - n * mean(g * gain * n)), dgain = sum(g * n)
        (grad,) = grads
        normed, scale, gain = ctx.saved_tensors
        product = grad * normed
        width = normed.shape[-1]
        if gain is None:
            mean = product.mean(-1, keepdim=True)
            return torch.addcmul(grad, normed, mean, value=-1).mul_(scale), None, None
        gain_low = gain.to(grad.dtype)
        mean = (product @ gain_low).unsqueeze(-1).mul_(1 / width)
        grad_x = torch.addcmul(grad * gain_low, normed, mean, value=-1).mul_(scale)
        return grad_x, product.reshape(-1, width).sum(0, dtype=torch.float32), None


def rotary_table(context: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context, head_size) float32, for `rotate` (RoPE, arXiv 2104.09864, eq. 34).

    Pairs are half a head apart, as in Hugging Face's models.
    """
    frequency_E = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle_TE = torch.arange(context, dtype=torch.float32)[:, None] * frequency_E.repeat(2)[None, :]
    return angle_TE.cos(), angle_TE.sin()


def rotate(x_BTHE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+E/2}) by its position's angle. cos, sin: (T, E) or (B, T, E)."""
    cos, sin = cos_TE.unsqueeze(-2), sin_TE.unsqueeze(-2)
    half = x_BTHE.shape[-1] // 2
    # the other of each pair takes the place of the first; the sign of the turn sits in the table
    sign = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return torch.addcmul(x_BTHE * cos, x_BTHE.roll(half, dims=-1), sign)


def norm_and_rotate(x_BTHE: Tensor, gain_HE: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, eps: float) -> Tensor:
    """`rotate(rms_norm(x) * gain)` over each head: queries and keys together. gain: (H, E), or None."""
    if torch.compiler.is_compiling() or x_BTHE.device.type != "cpu":
        normed = rms_norm(x_BTHE, None, eps)
        return rotate(normed if gain_HE is None else normed * gain_HE.to(normed.dtype), cos_TE, sin_TE)
    result: Tensor = NormAndRotateEager.apply(x_BTHE, gain_HE, cos_TE, sin_TE, eps)  # type: ignore[no-untyped-call]
    return result


class NormAndRotateEager(torch.autograd.Function):
    """The gain goes into the tables of the rotation, so that norm, gain and turn take four passes instead of nine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        normed, scale = normed_eagerly(x, eps)
        half = x.shape[-1] // 2
        turn = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).unsqueeze(-2)
        stay = cos.unsqueeze(-2)
        ctx.save_for_backward(normed, scale, gain, stay, turn)
        if gain is not None:
            low = gain.to(x.dtype)
            stay, turn = stay * low, turn * low.roll(half, dims=-1)
        return torch.addcmul(normed * stay, normed.roll(half, dims=-1), turn)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad,) = grads
        normed, scale, gain, stay, turn = ctx.saved_tensors
        half = normed.shape[-1] // 2
        # the transpose of a turn is the turn back: the half-rolled gradient with the opposite sign
        back = torch.addcmul(grad * stay, grad.roll(half, dims=-1), turn, value=-1)
        grad_gain = None
        if gain is not None:
            product = back * normed
            grad_gain = product.flatten(0, -3).sum(0, dtype=torch.float32)
            back = back * gain.to(back.dtype)
            mean = (product.mul_(gain.to(back.dtype))).mean(-1, keepdim=True)
        else:
            mean = (back * normed).mean(-1, keepdim=True)
        return torch.addcmul(back, normed, mean, value=-1).mul_(scale), grad_gain, None, None, None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16 (of processors: AVX-512, SVE). Without them PyTorch
    takes a hundred times as long as in float32, a minute for a large product, so nobody should have to try."""
    if device.type != "cpu":
        return True
    has_kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_kernels and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def causal_mask(
    T: int,
    documents_BT: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    parents_BT: Tensor | None = None,
) -> Tensor:
    """Additive mask: 0 where a query may look, -inf elsewhere. (1, T, T), or (B, T, T) when documents must not mix.

    parents_BT: the document that a token's own goes on from, which it may look at as well.
    """
    allowed = torch.ones(T, T, dtype=torch.bool, device=device).tril_().unsqueeze(0)
    if documents_BT is not None:
        seen = documents_BT[:, :, None] == documents_BT[:, None, :]
        if parents_BT is not None:
            seen |= parents_BT[:, :, None] == documents_BT[:, None, :]
        allowed = allowed & seen
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


def attention(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask_BTS: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale + mask) v (arXiv 1706.03762, eq. 1): (B, H, T, E), and the weights (B, H, T, S)."""
    wide = torch.promote_types(q_BHTE.dtype, torch.float32)
    scores = (q_BHTE @ k_BHSE.transpose(-1, -2)).to(wide) * scale + mask_BTS.unsqueeze(1)
    weights = torch.softmax(scores, dim=-1).to(v_BHSE.dtype)
    return weights @ v_BHSE, weights


def query_blocks(T: int, short: int = 256) -> list[slice]:
    """Queries that look at once: all of a short text, where blocks gain nothing; four blocks, for each is compiled."""
    size = max(128, -(-T // 4)) if short < T else T
    return [slice(start, min(T, start + size)) for start in range(0, T, size)]


def causal_attention(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask_BTT: Tensor, scale: float) -> Tensor:
    """`attention` where none looks ahead, (B, H, T, E): no score is computed for what comes after a block of queries.

    Written out it is also the faster form to train with: the backward of PyTorch's fused CPU kernel takes three times
    as long at T = 256.
    """
    if torch.compiler.is_compiling() or q_BHTE.device.type != "cpu":
        mixed = []
        for own in query_blocks(q_BHTE.shape[2]):
            k, v, hidden = k_BHTE[:, :, : own.stop], v_BHTE[:, :, : own.stop], mask_BTT[:, own, : own.stop]
            mixed.append(attention(q_BHTE[:, :, own], k, v, hidden, scale)[0])
        return torch.cat(mixed, dim=2)
    result: Tensor = CausalAttentionEager.apply(q_BHTE, k_BHTE, v_BHTE, mask_BTT, scale)  # type: ignore[no-untyped-call]
    return result


class CausalAttentionEager(torch.autograd.Function):
    """Block by block with the gradient written out, so that it adds to keys and values where they lie."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        B, H, T, E = q.shape
        q, k, v = (heads.reshape(B * H, T, E) for heads in (q, k, v))
        mixed, kept = torch.empty_like(q), []
        ctx.blocks = query_blocks(T, short=128 if q.dtype == torch.float32 else 256)  # products cost more in float32
        for own in ctx.blocks:
            seen = slice(own.stop)
            keys, hidden = k[:, seen].transpose(1, 2), mask[:, own, seen]
            if len(mask) == 1:
                scores = torch.baddbmm(hidden, q[:, own], keys, alpha=scale)
            else:  # one for each row is added behind the product, or it would be copied for each head
                scores = torch.baddbmm(hidden[0, :1, :1], q[:, own], keys, beta=0, alpha=scale)
                scores.view(B, H, *scores.shape[1:]).add_(hidden.unsqueeze(1))
            weights = torch.softmax(scores, dim=-1)
            mixed[:, own] = torch.bmm(weights, v[:, seen])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return mixed.view(B, H, T, E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad, shape = grads[0].reshape(q.shape), grads[0].shape
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for own, weights in zip(ctx.blocks, kept, strict=True):
            seen = slice(own.stop)
            # d score = weight * (d weight - sum of weight * d weight)
            grad_weights = torch.bmm(grad[:, own], v[:, seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[:, own] = torch.bmm(grad_scores, k[:, seen]).mul_(ctx.scale)
            grad_k[:, seen].baddbmm_(grad_scores.transpose(1, 2), q[:, own], alpha=ctx.scale)
            grad_v[:, seen].baddbmm_(weights.transpose(1, 2), grad[:, own])
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None, None


def fused_attention(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask_BTS: Tensor, scale: float) -> Tensor:
    """`attention` by PyTorch's fused kernel, which never holds the weights: (B, H, T, E). For reading, without
    gradients: there it is up to three times as fast. T = S means a text from its start, whose mask is the causal one.
    """
    whole = q_BHTE.shape[2] == k_BHSE.shape[2]
    mask = None if whole else mask_BTS.unsqueeze(1)
    return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, mask, is_causal=whole, scale=scale)


def cap(logits: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(logits / softcap): keeps logits within (-softcap, softcap) (arXiv 2408.00118, section 2)."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def cross_entropy(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor, softcap: float = 0.0) -> Tensor:
    """Sum over N of weight * -log softmax(cap(x head^T))[target]: float32 scalar (nats).

    x (N, D) in the compute dtype, head (V, D), targets (N,) int64, weights (N,) float32.
    """
    if torch.compiler.is_compiling() or x_ND.device.type != "cpu":
        logits = cap(F.linear(x_ND, head_VD.to(x_ND.dtype)).float(), softcap)
        return (F.cross_entropy(logits, targets_N, reduction="none") * weights_N).sum()
    result: Tensor = CrossEntropyEager.apply(x_ND, head_VD, targets_N, weights_N, softcap)  # type: ignore[no-untyped-call]
    return result


class CrossEntropyEager(torch.autograd.Function):
    """Head and loss together, chunk by chunk; the gradient is formed while the logits are still in cache."""

    CHUNK = 1024

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, softcap: float) -> Tensor:
        head_low = head.to(x.dtype)
        total = torch.zeros((), dtype=torch.float32)
        wants_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_x = torch.empty_like(x) if wants_grad else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wants_grad else None
        for start in range(0, x.shape[0], CrossEntropyEager.CHUNK):
            part = slice(start, start + CrossEntropyEager.CHUNK)
            logits = (x[part] @ head_low.T).float()
            slope = _cap_in_place(logits, softcap, sloped=wants_grad)
            index = targets[part].unsqueeze(1)
            weight = weights[part].unsqueeze(1)
            probs = torch.softmax(logits, dim=1)  # six times as fast here as log_softmax or logsumexp
            chance = probs.gather(1, index)
            known = chance.min() > 1e-30  # else float32 holds too little of one of them, or nothing
            log_probs = chance.log_() if known else torch.log_softmax(logits, dim=1).gather(1, index)
            total -= (log_probs * weight).sum()
            if grad_x is None or grad_head is None:
                continue
            # d loss / d logits = weight * (softmax - onehot), times the cap's slope; weighed where it is narrow
            grad = probs.scatter_add_(1, index, torch.full_like(weight, -1.0))
            grad_low, weight_low = (grad if slope is None else grad.mul_(slope)).to(x.dtype), weight.to(x.dtype)
            grad_x[part] = (grad_low @ head_low).mul_(weight_low)
            grad_head += grad_low.T @ (x[part] * weight_low)
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad,) = grads
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad.to(grad_x.dtype), grad_head * grad, None, None, None


def token_log_probs(
    x_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    softcap: float = 0.0,
    temperature: float = 1.0,
    ban_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of p = softmax((cap(x head^T) + ban) / temperature), (N,) float32 each (nats).

    x (N, D) in the compute dtype, head (V, D), targets (N,) int64, ban (V,) 0 or -inf. No gradient through the entropy.
    """
    ban_V = torch.zeros(len(head_VD), device=x_ND.device) if ban_V is None else ban_V.float().clamp_min(-1e4)
    if torch.compiler.is_compiling() or x_ND.device.type != "cpu":
        logits = (cap(F.linear(x_ND, head_VD.to(x_ND.dtype)).float(), softcap) + ban_V) / temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        known = log_probs.detach()  # no gradient is kept for the entropy
        entropy = -(known.exp() * known).sum(-1)
        return log_probs.gather(1, targets_N.unsqueeze(1)).squeeze(1), entropy
    keep = torch.is_grad_enabled() and (x_ND.requires_grad or head_VD.requires_grad)
    made: tuple[Tensor, Tensor] = TokenLogProbsEager.apply(  # type: ignore[no-untyped-call]
        x_ND, head_VD, targets_N, softcap, temperature, ban_V, keep
    )
    return made


class TokenLogProbsEager(torch.autograd.Function):
    """Chunk by chunk, while the logits are in cache; they are kept for the gradient, in the compute dtype."""

    CHUNK = 128

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, softcap: float, temperature: float, ban: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor]:
        head_low = head.to(x.dtype)
        logits, sizes = x.new_empty(len(x) if keep else 0, len(head)), torch.empty(len(x))
        log_probs, entropy = torch.empty(len(x)), torch.empty(len(x))
        for start in range(0, len(x), TokenLogProbsEager.CHUNK):
            part = slice(start, start + TokenLogProbsEager.CHUNK)
            made = torch.mm(x[part], head_low.T, out=logits[part] if keep else None)
            wide, _ = _tempered(made, softcap, temperature, ban, sloped=False)
            top = wide.amax(1)
            probs = torch.softmax(wide, dim=1)
            size = sizes[part] = top - probs.amax(1).log_()  # log of the sum of exp(logits)
            log_probs[part] = wide.gather(1, targets[part].unsqueeze(1)).squeeze(1) - size
            entropy[part] = size - probs.mul_(wide).sum(1)
        ctx.save_for_backward(x, head, targets, ban, logits, sizes)
        ctx.settings = softcap, temperature
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, head, targets, ban, logits, sizes = ctx.saved_tensors
        head_low, (softcap, temperature) = head.to(x.dtype), ctx.settings
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(x), TokenLogProbsEager.CHUNK):
            part = slice(start, start + TokenLogProbsEager.CHUNK)
            wide, slope = _tempered(logits[part], softcap, temperature, ban, sloped=True)
            # d log p(target) / d logits = (onehot - softmax) / temperature, times the cap's slope
            weight = (grads[0][part].unsqueeze(1) / temperature).to(wide.dtype)
            grad = wide.sub_(sizes[part].unsqueeze(1)).exp_().mul_(-weight)
            grad.scatter_add_(1, targets[part].unsqueeze(1), weight)
            low = (grad if slope is None else grad.mul_(slope)).to(x.dtype)
            torch.mm(low, head_low, out=grad_x[part])
            grad_head += low.T @ x[part]
        return grad_x, grad_head, None, None, None, None, None


def _tempered(
    logits: Tensor, softcap: float, temperature: float, ban: Tensor, *, sloped: bool
) -> tuple[Tensor, Tensor | None]:
    """(cap(logits) + ban) / temperature, float32; `sloped`: and the slope of the cap where there is one."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    slope = _cap_in_place(wide, softcap, sloped=sloped)
    wide.add_(ban)
    return (wide if temperature == 1 else wide.div_(temperature)), slope


def _cap_in_place(logits: Tensor, softcap: float, *, sloped: bool) -> Tensor | None:
    """`cap`, written over the logits; `sloped`: its slope, where there is a cap."""
    if not softcap:
        return None
    logits.mul_(1 / softcap).tanh_()
    slope = logits.square().neg_().add_(1) if sloped else None
    logits.mul_(softcap)
    return slope
