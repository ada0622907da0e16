"""Packed weights: the kernels compute with the numbers that `dequantised` names, and rounding costs what it may."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.engine.quantise import GROUP, STRIDE, pack, pack_bf16, pack_int4, pack_int8, quantised_copy, rounded
from liuli.errors import UsageError
from liuli.model import Transformer, qwen3, racer

PACKS = [
    pytest.param(pack_bf16, id="bf16"),
    pytest.param(lambda w: pack_int8(w), id="int8"),
    pytest.param(lambda w: pack_int8(w, integer=True), id="int8 integer"),
    pytest.param(pack_int4, id="int4"),
]


def matrix(outputs: int = 48, inputs: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("packs", PACKS)
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
def test_the_product_is_that_of_the_dequantised_matrix(packs, rows):
    packed = packs(matrix())
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    read = x.float()
    if packed.integer:
        q, scale = rounded(x)
        read = q * scale
    made = packed.matmul(x)
    assert made.shape == (rows, 48) and made.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: the result is rounded once, and int4 kernels round each weight to it as well
    torch.testing.assert_close(made.float(), F.linear(read, packed.dequantised()), rtol=2**-7, atol=0.01)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 5).map(lambda n: 16 * n),
    groups=st.integers(1, 3),
    size=st.floats(1e-6, 1e4),
    seed=st.integers(0, 999),
)
def test_no_weight_moves_further_than_half_a_step(outputs, groups, size, seed):
    w = matrix(outputs, groups * GROUP, seed) * size
    eight = pack_int8(w).dequantised()
    step = w.abs().amax(1, keepdim=True) / 127
    assert ((eight - w).abs() <= step * (0.5 + 127 / 256)).all()  # the scale itself is rounded to 8 bits
    q, scale = rounded(w.bfloat16())
    assert ((q * scale - w.bfloat16().float()).abs() <= scale * 0.501).all()
    four, grouped = pack_int4(w).dequantised(), w.view(outputs, -1, GROUP)
    spread = (grouped.amax(-1) - grouped.amin(-1)).square() / 15**2 / 12  # mean square of plain rounding, at its usual
    error = (four - w).view_as(grouped).square().mean(-1)
    assert (error <= 3 * spread + 1e-20).all() and error.mean() <= 1.05 * spread.mean()


def test_zeros_and_lone_giants_are_kept():
    w = torch.zeros(16, GROUP)
    w[0, 0] = 3.0
    for packed in (pack_int8(w), pack_int4(w)):
        torch.testing.assert_close(packed.dequantised(), w, rtol=2**-8, atol=1e-6)
    assert pack_int8(w, integer=True).matmul(torch.zeros(2, GROUP).bfloat16()).abs().max() == 0


@pytest.mark.parametrize("packs", PACKS)
def test_a_row_does_not_depend_on_its_neighbours(packs):
    packed = packs(matrix(192, 512))
    if packed.weight.dtype == torch.float32:
        pytest.skip("no products in bfloat16 here, and those in float32 differ with the number of rows in the last bit")
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    together = packed.matmul(x)
    for rows in (1, 2, 7, 16):
        assert torch.equal(together, torch.cat([packed.matmul(few) for few in x.split(rows)]))


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 40),
    strides=st.integers(1, 90),
    spread=st.sampled_from([0.0, 0.05, 1.0]),
    size=st.floats(1e-4, 1e4),
    seed=st.integers(0, 999),
)
def test_both_kernels_of_whole_numbers_agree_to_the_last_bit(outputs, strides, spread, size, seed):
    """Up to sums at the bound: a spread of 0 makes every number as large as it gets."""
    inputs = strides * STRIDE
    w, x = 1 + spread * matrix(outputs, inputs, seed) * 20, (1 + spread * matrix(1, inputs, seed + 1) * 20) * size
    packed = replace(pack_int8(w, integer=True), widened=False)
    bound = int(packed.weight.abs().sum(1).max()) * 127
    assert pack_int8(w, integer=True).widened <= (bound < 2**24)
    if bound < 2**24:
        assert torch.equal(replace(packed, widened=True).matmul(x.bfloat16()), packed.matmul(x.bfloat16()))


@settings(max_examples=60, deadline=None)
@given(outputs=st.integers(1, 40), inputs=st.integers(2, 80), rows=st.integers(1, 5), integer=st.booleans())
def test_a_matrix_of_any_size_is_multiplied(outputs, inputs, rows, integer):
    packed, x = pack_int8(matrix(outputs, inputs), integer=integer), matrix(rows, inputs, 1).bfloat16()
    read = torch.mul(*rounded(x)) if packed.integer else x.float()
    torch.testing.assert_close(packed.matmul(x).float(), F.linear(read, packed.dequantised()), rtol=2**-7, atol=1e-5)


def test_a_scale_is_the_next_power_of_two():
    x = torch.tensor([[0.0], [127.0], [128.0], [254.0], [1.0], [3e-5]]).bfloat16()
    q, scale = rounded(x)
    assert scale[1:4, 0].tolist() == [1, 2, 2] and q[1:4, 0].tolist() == [127, 64, 127]
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5)) and (q[1:].abs() >= 63).all()


@pytest.mark.parametrize("packs", PACKS)
def test_float32_rows_are_multiplied_as_rounded_ones_and_come_back_in_float32(packs):
    packed, x = packs(matrix()), matrix(5, 64, 1)
    made = packed.matmul(x)
    assert made.dtype == torch.float32
    assert torch.equal(made, packed.matmul(x.bfloat16()).float()) or packed.weight.dtype == torch.float32


def test_without_products_in_bfloat16_what_is_rounded_to_it_is_held_in_float32(monkeypatch):
    monkeypatch.setattr("liuli.engine.quantise.multiplies_bfloat16", lambda _: False)
    packed, x = pack_bf16(matrix()), matrix(5, 64, 1)
    assert packed.weight.dtype == torch.float32 and torch.equal(packed.dequantised(), matrix().bfloat16().float())
    assert torch.equal(packed.matmul(x), F.linear(x, packed.dequantised()))


@pytest.mark.parametrize("pays", [False, True])
def test_a_compiled_step_multiplies_whole_numbers_only_where_that_is_sooner(monkeypatch, pays):
    monkeypatch.setattr("liuli.engine.quantise.widening_pays", lambda rows=1: pays)
    assert pack(matrix(), "int8", compiled=True).integer is not pays


def test_what_int4_kernels_refuse_stays_int8():
    for shape in ((48, 40), (24, 64)):
        assert pack(matrix(*shape), "int4").kind == "int8"
        with pytest.raises(UsageError, match="int4"):
            pack_int4(matrix(*shape))
    assert pack(matrix(), "int4").kind == "int4"
    with pytest.raises(UsageError, match="int5"):
        pack(matrix(), "int5")  # type: ignore[arg-type]


def test_memory_is_a_quarter_and_a_sixth_of_float32():
    w = matrix(512, 512)
    assert pack_int8(w).nbytes <= w.nbytes / 3.97 and pack_int4(w).nbytes <= w.nbytes / 6.3


@pytest.mark.parametrize("packs", [partial(pack_bf16, ordered=False), *PACKS[1:]])  # what a compiled step asks for
def test_a_compiler_gives_the_same_product(packs):
    packed, x = packs(matrix()), torch.randn(2, 64).bfloat16()
    compiled = torch.compile(lambda packed, x: packed.matmul(x) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed, x), packed.matmul(x) * 2)


@pytest.mark.parametrize("config", [qwen3(256, 64, 2), qwen3(256, 64, 2, tied=True), racer(256, 64, 2)])
def test_the_copy_is_the_model_with_rounded_matrices(config):
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    tokens = torch.randint(0, 256, (2, 30))
    copy = quantised_copy(model, "int8")
    assert torch.equal(copy.embedding.weight, model.embedding.weight)
    assert torch.equal(copy.head_VD, pack_int8(model.head_VD).dequantised())
    block, own = copy.blocks[1].feed_forward, model.blocks[1].feed_forward
    assert torch.equal(block.down.weight, pack_int8(own.down.weight).dequantised())
    with torch.no_grad():
        plain, eight, four = model(tokens), copy(tokens), quantised_copy(model, "int4")(tokens)
    linear = F.linear

    def of_rounded_rows(x, weight):
        q, scale = rounded(x)
        return linear((q * scale).to(x.dtype), weight)

    with patch.object(F, "linear", of_rounded_rows), torch.no_grad():
        integer = copy(tokens)
    apart = [float((other - plain).norm() / plain.norm()) for other in (eight, integer, four)]
    assert 0 < apart[0] < apart[1] < 0.05 and apart[1] < apart[2] < 0.3
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("packs", PACKS)
def test_a_gpu_multiplies_the_same_numbers(packs):
    w = matrix(64, 256)
    packed, x = packs(w.cuda()), torch.randn(3, 256).bfloat16()
    torch.testing.assert_close(packed.dequantised().cpu(), packs(w).dequantised(), rtol=2**-7, atol=1e-3)
    made = packed.matmul(x.cuda()).float().cpu()
    torch.testing.assert_close(made, F.linear(x.float(), packs(w).dequantised()), rtol=2**-6, atol=0.03)
