"""What variants read off their tensors: how wide a load may be, and the bytes of strides."""

import struct

import pytest
import torch

from labkernels.cuda.variants import ceil_div, kernel, strides, vector_width
from labkernels.errors import ArgumentError


def test_vector_width_is_full_where_every_row_is_aligned():
    x = torch.randn(3, 4, 8)
    assert vector_width(4, x) == 4
    assert vector_width(4, x, x.transpose(0, 1)) == 4
    assert vector_width(8, x.bfloat16()) == 8
    assert vector_width(4, torch.randn(1, 5, 4)[:, :1]) == 4  # an axis of length 1 takes no step


@pytest.mark.parametrize(
    "x, why",
    [
        (torch.randn(3, 6), "6 is no multiple of 4"),
        (torch.randn(3, 9)[:, :8], "rows 9 apart"),
        (torch.randn(3, 12)[:, 1:9], "begins 4 bytes after an aligned address"),
        (torch.randn(8, 8).t(), "columns apart"),
        (torch.randn(2, 5, 8, 8)[..., ::2], "every second"),
    ],
)
def test_vector_width_is_one_where_a_row_is_not(x, why):
    assert vector_width(4, x) == 1, why
    assert vector_width(4, torch.randn(4, 4), x) == 1, why


def test_strides_are_the_three_that_kernels_need():
    q = torch.randn(2, 7, 3, 16).transpose(1, 2)
    assert struct.unpack("<3q", strides(q)) == (7 * 3 * 16, 16, 3 * 16)


def test_kernels_are_made_once_and_take_dtypes_as_template_arguments(tmp_path):
    file = tmp_path / "copy.cu"
    file.write_text("template <class T, int N> __global__ void copy(const T* x, T* y) { y[threadIdx.x % N] = x[threadIdx.x % N]; }")
    copy = kernel(file, "copy", torch.float32, 4)
    assert copy.name == "copy<float, 4>" and copy is kernel(file, "copy", torch.float32, 4)
    x, y = torch.randn(4), torch.zeros(4)
    copy(1, 32, (x, y))
    assert torch.equal(x, y)
    with pytest.raises(ArgumentError, match="torch.float32, torch.bfloat16, torch.float16, got torch.float64"):
        kernel(file, "copy", torch.float64, 4)


def test_ceil_div():
    assert [ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
