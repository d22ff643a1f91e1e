"""Packing and formats of quantised weights: what is stored where, and which parts do not fit together."""

from dataclasses import replace

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.quant import quantize
from labkernels.quant.formats import NF4, QuantizedWeight, pack4, padded_columns, unpack4

SCHEMES = [("int4", 32), ("int4", 64), ("int4", 128), ("nf4", 32), ("nf4", 128), ("int8", None), ("fp8", None)]


def weight(n=5, k=70, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) + 0.3


def test_packing_is_undone_by_unpacking():
    numbers = torch.randint(0, 16, (7, 64), generator=torch.Generator().manual_seed(1))
    assert pack4(numbers).shape == (7, 8)
    assert torch.equal(unpack4(pack4(numbers)), numbers.to(torch.uint8))


def test_one_shift_and_one_mask_give_two_neighbours():
    numbers = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 8]])
    word = pack4(numbers).item() & 0xFFFFFFFF
    for i in range(4):
        pair = word >> 4 * i & 0x000F000F
        assert (pair & 0xFFFF, pair >> 16) == (numbers[0, 2 * i], numbers[0, 2 * i + 1])


def test_numbers_that_are_no_multiple_of_eight_are_refused():
    with pytest.raises(ArgumentError, match=r"pack4: numbers has shape \(2, 12\)"):
        pack4(torch.zeros(2, 12, dtype=torch.int32))


@pytest.mark.parametrize("scheme, group_size", SCHEMES)
def test_dequantize_is_the_definition(scheme, group_size):
    w = weight()
    q = quantize(w, scheme, group_size)
    numbers, got = q.numbers(), q.dequantize(torch.float64)
    for row, col in ((0, 0), (4, 69), (2, 33)):
        number = numbers[row, col].double()
        if group_size is None:
            want = number * q.scales[row]
        elif scheme == "int4":
            scale, zero = q.scales[col // group_size, row].double()
            want = scale * (number - zero)
        else:
            want = NF4[int(number)] * q.scales[col // group_size, row].double()
        torch.testing.assert_close(got[row, col], want.double(), rtol=1e-6, atol=0)
    assert (got - w).norm() < 0.12 * w.norm() and not torch.equal(got.float(), w)


@pytest.mark.parametrize("scheme, group_size", SCHEMES)
def test_rows_are_padded_to_whole_groups_of_16_bytes(scheme, group_size):
    for k in (1, 31, 64, 70, 129):
        q = quantize(weight(3, k), scheme, group_size)
        assert q.shape == (3, k) and q.dequantize().shape == (3, k)
        columns = padded_columns(k, scheme, group_size)
        assert columns >= k and columns - k < (group_size or 16)
        assert q.packed.shape[1] * q.packed.element_size() % 16 == 0


def test_bytes_and_bits():
    q = quantize(weight(64, 256), "int4", 128)
    assert q.bytes == 64 * 256 // 2 + 2 * 64 * 4 and q.bits_per_weight == 4.25
    assert quantize(weight(64, 256), "int8").bytes == 64 * 256 + 64 * 4


def test_it_moves_and_saves():
    q = quantize(weight(), "nf4", 32)
    saved = q.state_dict("layer.")
    assert set(saved) == {"layer.packed", "layer.scales", "layer.codebook"}
    again = QuantizedWeight("nf4", q.shape, *(saved[f"layer.{name}"] for name in ("packed", "scales")), 32, saved["layer.codebook"])
    assert torch.equal(again.dequantize(), q.to("cpu").dequantize())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"scheme": "int5"}, "scheme is 'int5'; it must be one of int4, nf4, codebook, int8, fp8"),
        ({"group_size": 48}, "group_size is 48; for int4 it must be one of 32, 64, 128"),
        ({"shape": (5, 200)}, r"packed has shape \(5, 12\); for int4 of shape \(5, 200\) it must be \(5, 28\)"),
        ({"packed": torch.zeros(5, 12)}, "packed is torch.float32; for int4 it must be torch.int32"),
        ({"scales": torch.zeros(3, 5, dtype=torch.bfloat16)}, "scales has shape"),
        ({"codebook": torch.zeros(16)}, "codebook is given; int4 has none"),
        ({"packed": torch.zeros(12, 5, dtype=torch.int32).t()}, "packed has strides"),
        ({"scheme": "nf4"}, "nf4 needs a codebook of 16 numbers"),
        ({"scheme": "int8"}, "group_size is 32; int8 has one scale a row and takes None"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, words):
    with pytest.raises(ArgumentError, match=words):
        replace(quantize(weight(), "int4", 32), **change)
