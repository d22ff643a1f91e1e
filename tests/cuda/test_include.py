"""The device headers that kernels share, each function against what it says."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

REDUCE = Kernel(
    """
    #include "block.cuh"
    extern "C" __global__ void reduce(const float* x, float* results) {
        const int i = threadIdx.x + blockDim.x * threadIdx.y;
        const float value = x[i];
        results[4 * i + 0] = warp_sum(value);
        results[4 * i + 1] = warp_max(value);
        results[4 * i + 2] = block_sum(value);
        results[4 * i + 3] = block_max(value);  // right after block_sum: the two must not disturb each other
        for (int k = 0; k < 3; ++k) results[4 * i + 2] += block_sum(value);  // nor one call the next
    }""",
    "reduce",
)
COPY = """
    #include "vector.cuh"
    template <class T, int N>
    __global__ void copy(const T* x, T* y) {
        float values[N];
        load_vector(x + threadIdx.x * N, values);
        for (int i = 0; i < N; ++i) values[i] = 1.001f * values[i];
        store_vector(y + threadIdx.x * N, values);
    }"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [(32, 1), (32, 3), (48, 2), (1024, 1)])
def test_warp_and_block_reductions_give_every_thread_the_result(block, device):
    threads = block[0] * block[1]
    generator = torch.Generator().manual_seed(threads)
    x = torch.randint(-100, 0, (threads,), generator=generator).float().to(device)  # whole numbers: their sums are exact
    results = torch.full((threads, 4), float("nan"), device=device)
    REDUCE(1, block, (x, results))
    warps = x.view(-1, 32)
    want = [
        warps.sum(1, keepdim=True).expand(-1, 32).reshape(-1),
        warps.amax(1, keepdim=True).expand(-1, 32).reshape(-1),
        (4 * x.sum()).expand(threads),
        x.max().expand(threads),
    ]
    assert torch.equal(results, torch.stack(want, dim=1))


def test_warp_sum_gives_all_lanes_the_same_bits():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    results = torch.empty(64, 4)
    REDUCE(1, 64, (x, results))
    assert results.view(2, 32, 4)[..., 0].unique(dim=1).shape == (2, 1)
    assert len(results[:, 2].unique()) == 1


def test_block_reductions_are_clean_under_the_sanitizer():
    x = torch.randn(96, generator=torch.Generator().manual_seed(0))
    report = sanitize(REDUCE, 1, 96, (x, torch.empty(96, 4)))
    assert report.clean, report


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("c_type, dtype", [("float", torch.float32), ("__nv_bfloat16", torch.bfloat16), ("__half", torch.float16)])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_vectors_are_read_as_floats_and_written_rounded(c_type, dtype, width, device):
    x = torch.randn(32 * width, generator=torch.Generator().manual_seed(width)).to(device, dtype)
    y = torch.full_like(x, float("nan"))
    Kernel(COPY, f"copy<{c_type}, {width}>")(1, 32, (x, y))
    assert torch.equal(y, (x.float() * 1.001).to(dtype))  # torch rounds to nearest even, so must from_float


def test_wide_vectors_move_in_one_instruction():
    ptx_like = Kernel(COPY, "copy<float, 4>").resources("sm_80")
    assert ptx_like.stack_bytes == 0 and ptx_like.registers <= 16


def test_vector_that_does_not_lie_on_its_size_is_found_by_the_sanitizer():
    x = torch.randn(33 * 4, generator=torch.Generator().manual_seed(0))
    report = sanitize(Kernel(COPY, "copy<float, 4>"), 1, 32, (x[1:129], torch.empty(128)))
    assert [finding.kind for finding in report.findings] == ["misaligned"], report
