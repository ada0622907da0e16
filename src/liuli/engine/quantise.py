"""Weights in 16, 8 or 4 bits: packed for the fastest products that torch has, and unpacked again to measure by.

In: a matrix (O outputs, I inputs). Out: a `Packed` one that multiplies rows. It knows nothing of models but
`quantised_copy`, which gives a Transformer with the rounded numbers in it, so that their cost in bits can be measured.

    bf16   rounded to bfloat16, in the order in which oneDNN multiplies, which else is made anew for each product; held
           in float32 where a processor is no faster in bfloat16 (without AVX-512 it is a hundred times slower)
    int8   one scale for each output: w = scale_O * q, q from -127 to 127; 1 byte a weight
    int4   a scale and a zero for each 32 inputs of an output: w = scale * (q - 8) + zero, q from 0 to 15; 0.625 bytes

With `integer` the activations of an int8 product are rounded to 8 bits too, row by row, and the sums are whole numbers:
exact, so a row's result depends neither on its neighbours nor on the kernel, and a single row goes through whichever
kernel this machine is faster with. Measured (docs/benchmarks.md): once torch.compile has fused the rounding it is the
fastest for one row and from 16 rows on, where a processor has instructions for it; without a compiler the rounding
costs 9 µs and more, and weights alone in 8 bits are faster for a few rows.
"""

from __future__ import annotations

import timeit
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from liuli.errors import UsageError
from liuli.model import Transformer
from liuli.model.ops import multiplies_bfloat16
from liuli.model.transformer import Linear

Kind = Literal["bf16", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("bf16", "int8", "int4")
GROUP = 32  # inputs that share a scale in int4; the kernels know 32, 64, 128 and 256
# inputs that the kernel which widens bytes reads at once, past the end of a row too: other widths go as `integer`
STRIDE = 16
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a group's range that are tried: cutting outliers helps the rest


@dataclass(frozen=True)
class Packed:
    """A matrix (O, I) ready to multiply. Pure functions, and but for oneDNN's order plain tensors, as a compiler wants.

    weight: int8 (O, I); bf16 and int4 as the kernel wants it. scales: bfloat16, (O,) for int8, (I / GROUP, O, 2) scale
    and zero for int4, none for bf16. integer: int8 activations too. widened: a single row is multiplied by the kernel
    that widens bytes to floats; its sums stay below 2^24, where floats hold every whole number.
    """

    kind: Kind
    outputs: int
    inputs: int
    weight: Tensor
    scales: Tensor
    integer: bool = False
    widened: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory that one product reads of it."""
        return self.weight.nbytes + self.scales.nbytes

    def matmul(self, x_BI: Tensor) -> Tensor:
        """x @ weight.T, (B, O), in x's dtype; what is multiplied and what comes of it are rounded to bfloat16, but for
        weights held in float32. The kernels for bytes are 27 times as slow for float32 rows."""
        if self.kind == "bf16" and self.weight.dtype == torch.float32:
            return F.linear(x_BI.float(), self.weight).to(x_BI.dtype)
        return self._low(x_BI.to(torch.bfloat16)).to(x_BI.dtype)

    def _low(self, x_BI: Tensor) -> Tensor:
        """The same of rows in bfloat16."""
        on_cpu = self.weight.device.type == "cpu"
        if self.kind == "bf16" and self.weight.is_mkldnn:  # what torch.compile makes of a Linear layer
            made: Tensor = torch.ops.mkldnn._linear_pointwise(x_BI, self.weight, None, "none", [], "")
        elif self.kind == "bf16":
            made = F.linear(x_BI, self.weight)
        elif self.kind == "int4":
            product = torch.ops.aten._weight_int4pack_mm_for_cpu if on_cpu else torch.ops.aten._weight_int4pack_mm
            made = product(x_BI, self.weight, GROUP, self.scales)
        elif not on_cpu:  # a compiler reads the bytes as they are and widens them in registers
            made = F.linear(x_BI, self.weight.to(x_BI.dtype)) * self.scales
        elif self.integer:
            q_BI, scale_B1 = rounded(x_BI)
            if self.widened and x_BI.shape[0] == 1:
                made = torch.ops.aten._weight_int8pack_mm(q_BI.to(x_BI.dtype), self.weight, self.scales) * scale_B1
            else:
                made = torch._int_mm(q_BI, self.weight.t()) * (scale_B1 * self.scales)
        else:
            made = torch.ops.aten._weight_int8pack_mm(x_BI, self.weight, self.scales)
        return made.to(x_BI.dtype)

    def dequantised(self) -> Tensor:
        """The matrix that this one stands for, (O, I) float32."""
        if self.kind == "bf16":
            return self.weight.to_dense().float()  # which leaves a plain one as it is
        if self.kind == "int8":
            return self.weight.float() * self.scales.float().unsqueeze(1)
        # the packed layout is the kernel's own affair: what each input alone gives is a column of the matrix
        ones_II = torch.eye(self.inputs, dtype=torch.bfloat16, device=self.weight.device)
        plain = torch.stack((torch.ones_like(self.scales[..., 0]), torch.zeros_like(self.scales[..., 1])), -1)
        made_IO = replace(self, scales=plain).matmul(ones_II).float()
        q_GIO = made_IO.view(-1, GROUP, self.outputs)
        scale_G1O, zero_G1O = self.scales.float().unsqueeze(1).unbind(-1)
        return (q_GIO * scale_G1O + zero_G1O).view(self.inputs, self.outputs).t().contiguous()


def rounded(x_BI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, each with its own scale: int8 (B, I) and float32 (B, 1); x is about their product.

    Scales are powers of two, by which a product can be multiplied before or after it is rounded to bfloat16.
    """
    peak_B1: Tensor = torch.linalg.vector_norm(x_BI, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    bits_B1 = peak_B1.mul(1 / 127).clamp_min(1e-12).view(torch.int32)
    scale_B1 = ((bits_B1 + 0x7FFFFF) & 0x7F800000).view(torch.float32)  # the exponent alone, rounded up
    return (x_BI / scale_B1).round().to(torch.int8), scale_B1


def check_kind(kind: str) -> None:
    """Raises UsageError for a kind of weights that is not known."""
    if kind not in KINDS:
        raise UsageError(f"weights cannot be packed as {kind!r}", "quantise", f"use {' or '.join(KINDS)}")


def pack(weight_OI: Tensor, kind: Kind, *, compiled: bool = False) -> Packed:
    """Pack a matrix; what int4 kernels refuse (see `fits_int4`) becomes int8.

    compiled: for a step that torch.compile fuses. Whole-number products are the fastest once it has fused the rounding
    of what they multiply; into oneDNN's order it cannot look.
    """
    check_kind(kind)
    if kind == "bf16":
        return pack_bf16(weight_OI, ordered=not compiled)
    if kind == "int4" and fits_int4(weight_OI):
        return pack_int4(weight_OI)
    return pack_int8(weight_OI, integer=compiled and not widening_pays(16))


def pack_bf16(weight_OI: Tensor, *, ordered: bool = True) -> Packed:
    """Rounded, and in oneDNN's order where it has one: a fifth to a third less time a product (measured).

    Of the orders that it knows, the one for single rows gives a row the same numbers whatever its neighbours are.
    """
    weight = weight_OI.detach().to(torch.bfloat16).contiguous()
    if not multiplies_bfloat16(weight.device):
        weight = weight.float()
    elif ordered and weight.device.type == "cpu":
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    return Packed("bf16", weight_OI.shape[0], weight_OI.shape[1], weight, torch.empty(0, dtype=torch.bfloat16))


def pack_int8(weight_OI: Tensor, *, integer: bool = False) -> Packed:
    """One scale for each output, symmetric. Weights as wide as their largest one: at 8 bits cutting gains nothing."""
    w_OI = weight_OI.detach().float()
    # in the kernel's dtype before it is used, so that rounding it costs nothing
    scales_O = (w_OI.abs().amax(1) / 127).clamp_min(1e-12).to(torch.bfloat16)
    q_OI = (w_OI / scales_O.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    whole = w_OI.shape[1] % STRIDE == 0
    widened = integer and whole and int(q_OI.abs().sum(1).max()) * 127 < 2**24 and widening_pays()
    return Packed("int8", w_OI.shape[0], w_OI.shape[1], q_OI.contiguous(), scales_O, integer or not whole, widened)


@cache
def widening_pays(rows: int = 1) -> bool:
    """Whether this machine multiplies rows sooner with bytes widened to floats than as whole numbers: it tries."""
    weight_OI, x_BI = torch.ones(1024, 512, dtype=torch.int8), torch.ones(rows, 512)
    wide_BI, bytes_BI, scales_O = x_BI.bfloat16(), x_BI.to(torch.int8), torch.ones(1024, dtype=torch.bfloat16)
    ways = (
        lambda: torch.ops.aten._weight_int8pack_mm(wide_BI, weight_OI, scales_O),
        lambda: torch._int_mm(bytes_BI, weight_OI.t()),
    )
    number = max(1, 20 // rows)
    times = [[timeit.timeit(way, number=number) for way in ways] for _ in range(10)]  # in turn: machines have moods
    widening, whole = map(min, zip(*times, strict=True))
    return bool(widening < whole)


def fits_int4(weight_OI: Tensor) -> bool:
    """Whether the int4 kernels take a matrix: whole groups of inputs, outputs in sixteens."""
    outputs, inputs = weight_OI.shape
    return inputs % (GROUP if weight_OI.device.type == "cpu" else 128) == 0 and outputs % 16 == 0


def pack_int4(weight_OI: Tensor) -> Packed:
    """A scale and a zero for each GROUP inputs of an output, those of some ranges that give the least squared error."""
    outputs, inputs = weight_OI.shape
    if not fits_int4(weight_OI):
        fix = f"inputs in groups of {GROUP}, outputs in sixteens; `pack` takes int8 for the rest"
        raise UsageError(f"a matrix of {outputs} by {inputs} cannot be packed in int4", "quantise", fix)
    w_OGN = weight_OI.detach().float().view(outputs, -1, GROUP)
    q_OGN, scales_OG2 = _best_ranges(w_OGN)
    scales = scales_OG2.transpose(0, 1).contiguous()
    q_OI = q_OGN.view(outputs, inputs)
    if weight_OI.device.type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_OI.to(torch.int32), 1)
    else:
        pairs = (q_OI[:, ::2] << 4 | q_OI[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
    return Packed("int4", outputs, inputs, packed, scales)


def _best_ranges(w_OGN: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers 0 to 15 (O, G, N), scale and zero (O, G, 2) bfloat16, the best of all pairs of SHRINK."""
    low_OG1, high_OG1 = w_OGN.amin(-1, keepdim=True), w_OGN.amax(-1, keepdim=True)
    best_OG1 = torch.full_like(low_OG1, float("inf"))
    q_OGN, scales_OG2 = torch.zeros_like(w_OGN), torch.zeros(*w_OGN.shape[:2], 2, dtype=torch.bfloat16)
    scales_OG2 = scales_OG2.to(w_OGN.device)
    for down in SHRINK:
        for up in SHRINK:
            scale = ((high_OG1 * up - low_OG1 * down) / 15).clamp_min(1e-12).to(torch.bfloat16)
            zero = (low_OG1 * down + 8 * scale.float()).to(torch.bfloat16)
            q = ((w_OGN - zero.float()) / scale.float()).round().add(8).clamp(0, 15)
            error_OG1 = ((q - 8) * scale.float() + zero.float() - w_OGN).square().sum(-1, keepdim=True)
            better_OG1 = error_OG1 < best_OG1
            best_OG1 = torch.where(better_OG1, error_OG1, best_OG1)
            q_OGN = torch.where(better_OG1, q, q_OGN)
            scales_OG2 = torch.where(better_OG1, torch.cat((scale, zero), -1), scales_OG2)
    return q_OGN.to(torch.int64), scales_OG2


# --- what it costs ---------------------------------------------------------------------------------------------------


def quantised_copy(model: Transformer, kind: Kind) -> Transformer:
    """The same Transformer with the rounded numbers in every matrix that is multiplied, float32, for measuring.

    The embedding that is looked up stays as it is; where the head shares it, the copy has a head of its own.
    """
    copy = Transformer(replace(model.config, tied=False))
    weights = {name: weight.detach().float().clone() for name, weight in model.named_parameters()}
    copy.load_state_dict(weights | {"head.weight": model.head_VD.detach().float().clone()}, strict=True)
    copy = copy.to(model.head_VD.device)
    with torch.no_grad():
        for module in copy.modules():
            if isinstance(module, Linear):
                module.weight.copy_(pack(module.weight, kind).dequantised())
    return copy.train(model.training)
