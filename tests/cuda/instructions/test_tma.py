"""Bulk copies: boxes of tensors of 1 to 5 axes, swizzles, edges, additions, and what happens to those who do not wait."""

import itertools
import math

import numpy
import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.cuda.tensor_map import tensor_map
from labkernels.errors import ArgumentError, LaunchError

NAMES = ["x0", "x1", "x2", "x3", "x4"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8]

# Loads one box and shows the bytes of shared memory; then stores (or adds) the same bytes elsewhere.
COPY = r"""
    #include "tma.cuh"
    template <class... At> __device__ void ignore(const TensorMap&, const void*, At...) {}
    extern "C" __global__ void copy(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to, unsigned char* seen,
                                    int bytes, int x0, int x1, int x2, int x3, int x4) {
        __shared__ __align__(1024) unsigned char tile[16384];
        __shared__ Mbarrier full;
        if (threadIdx.x == 0) {
            mbarrier_init(&full, 1);
            fence_mbarrier_init();
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect_tx(&full, bytes);
            tma_load(tile, from, &full, AT);
        }
        if (WAIT) mbarrier_wait(&full, 0);
        for (int i = threadIdx.x; i < bytes; i += blockDim.x) seen[i] = tile[i];
        if (threadIdx.x == 0) {
            PUT(to, tile, AT);
            tma_commit();
            tma_wait<0>();
        }
    }"""


def copy(rank: int, put: str = "tma_store", wait: int = 1) -> Kernel:
    return Kernel(COPY, "copy", defines={"AT": ", ".join(NAMES[:rank]), "PUT": put, "WAIT": wait})


def values(shape, dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def boxed(x: torch.Tensor, corner, box) -> torch.Tensor:
    """The box at `corner` (in the order of the axes), 0 outside the tensor: element by element, as one would explain it."""
    out = torch.zeros(box, dtype=x.dtype)
    for index in itertools.product(*map(range, box)):
        place = tuple(c + i for c, i in zip(corner, index))
        if all(0 <= p < s for p, s in zip(place, x.shape)):
            out[index] = x[place]
    return out


def swizzled(data: numpy.ndarray, width: int) -> numpy.ndarray:
    """Bytes as a swizzle of `width` bytes leaves them: piece p of 16 bytes in the row of 128 bytes r goes to p ^ r (mod width / 16)."""
    if not width:
        return data
    out = numpy.zeros_like(data)
    for piece in range(len(data) // 16):
        target = piece ^ (piece // 8 % (width // 16))
        out[16 * target : 16 * target + 16] = data[16 * piece : 16 * piece + 16]
    return out


@pytest.mark.parametrize(
    "shape, box, corner, swizzle, dtype",
    [
        ((100,), (32,), (12,), 0, torch.float32),
        ((100,), (64,), (80,), 0, torch.int32),
        ((40, 72), (16, 64), (8, 8), 128, torch.bfloat16),
        ((40, 72), (16, 32), (32, 56), 64, torch.float16),
        ((9, 32), (16, 32), (-3, -5), 32, torch.uint8),
        ((9, 24), (11, 20), (-1, 8), 0, torch.float32),
        ((5, 6, 16), (2, 3, 8), (3, 4, 12), 32, torch.float32),
        ((3, 4, 5, 16), (2, 2, 2, 16), (1, 3, 2, 0), 64, torch.float32),
        ((2, 3, 4, 5, 64), (2, 2, 1, 3, 64), (0, 2, 3, 4, 16), 128, torch.bfloat16),
    ],
)
def test_boxes_of_one_to_five_axes_come_and_go(shape, box, corner, swizzle, dtype, device):
    loads_only = min(corner) < 0  # a store there is an illegal instruction
    if loads_only and device == "cuda":
        pytest.skip("boxes that begin before the tensor: an H200 takes some of these loads, and calls others illegal")
    x = values(shape, dtype).to(device)
    y = values(shape, dtype, 1).to(device)
    before = y.clone()
    want = boxed(x.cpu(), corner, box)
    data = want.view(torch.uint8).numpy().reshape(-1) if dtype != torch.uint8 else want.numpy().reshape(-1)
    seen = torch.zeros(len(data), dtype=torch.uint8, device=device)
    maps = tensor_map(x, box, swizzle), tensor_map(y, box, swizzle)
    at = (*corner[::-1], 0, 0, 0, 0)[:5]
    copy(len(shape), put="ignore" if loads_only else "tma_store")(1, 64, (*maps, seen, len(data), *at))
    padded = numpy.concatenate([data, numpy.zeros(-len(data) % 1024, numpy.uint8)])
    assert numpy.array_equal(seen.cpu().numpy(), swizzled(padded, swizzle)[: len(data)])
    if not loads_only:
        inside = tuple(slice(c, c + b) for c, b in zip(corner, box))
        before[inside] = x[inside]
    assert torch.equal(y, before)


def test_a_store_that_begins_before_the_tensor_is_refused_as_a_gpu_does():
    x, y = values((9, 24), torch.float32), torch.zeros(9, 24)
    maps = tensor_map(x, (8, 20)), tensor_map(y, (8, 20))
    with pytest.raises(LaunchError, match="negative"):
        copy(2)(1, 64, (*maps, torch.zeros(640, dtype=torch.uint8), 640, 0, -1, 0, 0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_reduce_add_adds(dtype, device):
    x, y = values((24, 40), dtype).to(device), values((24, 40), dtype, 1).to(device)
    want = y.clone()
    want[4:20, 8:40] = (y[4:20, 8:40].double() + x[4:20, 8:40].double()).to(dtype)
    seen = torch.zeros(16 * 32 * x.element_size(), dtype=torch.uint8, device=device)
    maps = tensor_map(x, (16, 32)), tensor_map(y, (16, 32))
    copy(2, "tma_reduce_add")(1, 64, (*maps, seen, len(seen), 8, 4, 0, 0, 0))
    assert torch.equal(y, want)


def test_copies_that_are_waited_for_are_clean_and_others_are_races():
    x = values((16, 64), torch.float32)
    y, seen = torch.zeros_like(x), torch.zeros(16 * 32 * 4, dtype=torch.uint8)
    args = (tensor_map(x, (16, 32), 128), tensor_map(y, (16, 32), 128), seen, len(seen), 32, 0, 0, 0, 0)
    report = sanitize(copy(2), 1, 64, args)
    assert report.clean, report
    report = sanitize(copy(2, wait=0), 1, 64, args)
    assert report.findings[0].kind == "race" and report.findings[0].array == "tile", report
    assert "asynchronous copy" in report.findings[0].text


def test_a_box_larger_than_its_buffer_is_out_of_bounds():
    x = values((256, 64), torch.float32)
    args = (tensor_map(x, (256, 32)), tensor_map(x, (16, 32)), torch.zeros(4096, dtype=torch.uint8), 256 * 32 * 4, 0, 0, 0, 0, 0)
    (finding,) = sanitize(copy(2), 1, 64, args).findings
    assert finding.kind == "out_of_bounds" and finding.array == "tile", finding


def test_plain_bytes_come_and_go(device):
    kernel = Kernel(
        r"""
        #include "tma.cuh"
        extern "C" __global__ void plain(const float* x, float* y, int bytes) {
            __shared__ __align__(16) float tile[256];
            __shared__ Mbarrier full;
            if (threadIdx.x == 0) {
                mbarrier_init(&full, 1);
                fence_mbarrier_init();
                mbarrier_arrive_expect_tx(&full, bytes);
                bulk_load(tile, x, bytes, &full);
            }
            __syncthreads();
            mbarrier_wait(&full, 0);
            tile[threadIdx.x] *= 2;
            fence_proxy_async();
            __syncthreads();
            if (threadIdx.x == 0) {
                bulk_store(y, tile, bytes);
                tma_commit();
                tma_wait_read<0>();
            }
        }""",
        "plain",
    )
    x = values((256,), torch.float32).to(device)
    y = torch.full_like(x, math.nan)
    kernel(1, 256, (x, y, 1024))
    assert torch.equal(y, 2 * x)
    if device == "cpu":
        report = sanitize(kernel, 1, 256, (x, y, 1024))
        assert report.clean, report


@pytest.mark.parametrize(
    "tensor, box, swizzle, words",
    [
        (torch.zeros(8, 8), (8,), 0, "box has 1 axes, the tensor 2"),
        (torch.zeros(8, 8), (8, 3), 0, "12 bytes, which is no multiple of 16"),
        (torch.zeros(8, 8), (512, 8), 0, "1 to 256 elements, one is 512"),
        (torch.zeros(8, 64), (8, 64), 128, "has that many, this one 256"),
        (torch.zeros(8, 8), (8, 8), 100, "0, 32, 64 or 128"),
        (torch.zeros(8, 7), (8, 4), 0, "strides in bytes must be multiples of 16, one is 28"),
        (torch.zeros(8, 8).t(), (8, 8), 0, "last axis must be dense"),
        (torch.zeros(80)[1:65], (8,), 0, "begin on a multiple of 16"),
        (torch.zeros(8, dtype=torch.complex64), (8,), 0, "complex64 tensors cannot"),
    ],
)
def test_a_tensor_map_that_cannot_be_is_refused(tensor, box, swizzle, words):
    with pytest.raises(ArgumentError, match=words):
        tensor_map(tensor, box, swizzle)


@pytest.mark.parametrize("put", ["tma_store", "tma_reduce_add"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_compiles_for_hopper(rank, put):
    assert copy(rank, put).resources("sm_90a").stack_bytes == 0
