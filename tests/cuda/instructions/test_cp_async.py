"""cp.async: what is copied, when it lands, and what happens to those who do not wait."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

DEFINITIONS = r"""
    #include "cp_async.cuh"
    #define ID threadIdx.x
"""

# Each thread copies 16 bytes in pieces of `BYTES`, of which only the first `valid` of each piece count.
COPY = Kernel(
    DEFINITIONS
    + r"""
    template <int BYTES>
    __global__ void copy(const char* x, char* y, int valid) {
        __shared__ __align__(16) char tile[64 * 16];
        for (int i = 0; i < 16; i += BYTES) cp_async<BYTES>(tile + ID * 16 + i, x + ID * 16 + i, valid);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        for (int i = 0; i < 16; ++i) y[ID * 16 + i] = tile[(63 - ID) * 16 + i];
    }""",
    "copy<4>",
)

# Four groups of one copy each; after each wait, what the thread's own four words hold. seen (4, 64, 4).
GROUPS = Kernel(
    DEFINITIONS
    + r"""
    extern "C" __global__ void groups(const int* x, int* seen) {
        __shared__ __align__(16) int tile[4][64];
        for (int stage = 0; stage < 4; ++stage) {
            if (stage == 3) cp_async_l2(&tile[stage][ID * 4 % 64], x + stage * 64 + ID * 4 % 64, ID < 16 ? 16 : 0);
            else cp_async<4>(&tile[stage][ID], x + stage * 64 + ID);
            if (stage < 3) cp_async_commit();   // the last copy stays outside of all groups
        }
        #define SEE(moment) for (int stage = 0; stage < 3; ++stage) seen[(moment * 64 + ID) * 4 + stage] = tile[stage][ID];
        cp_async_wait<2>();
        SEE(0)
        cp_async_wait<1>();
        SEE(1)
        cp_async_wait<0>();
        SEE(2)
        cp_async_wait_all();
        SEE(3)
    }""",
    "groups",
)

# Each thread copies 16 bytes where its flag says so, from an address that is nowhere where it does not.
COPY_IF = Kernel(
    DEFINITIONS
    + r"""
    extern "C" __global__ void copy_if(const char* x, const bool* inside, char* y) {
        __shared__ __align__(16) char tile[64 * 16];
        cp_async_l2_if(inside[ID], tile + ID * 16, inside[ID] ? x + ID * 16 : x + (1ll << 40));
        cp_async_wait_all();
        for (int i = 0; i < 16; ++i) y[ID * 16 + i] = tile[ID * 16 + i];
    }""",
    "copy_if",
)

# A buffer used twice, with a mistake to choose: what a wait, and the barriers before and after it, are for.
PIPELINE = DEFINITIONS + r"""
    extern "C" __global__ void pipeline(const float* x, float* y, int rounds) {
        __shared__ __align__(16) float tile[128];
        for (int round = 0; round < rounds; ++round) {
            cp_async<4>(&tile[ID], x + round * 128 + ID);
            cp_async_commit();
            if (MISTAKE != 1) cp_async_wait<0>();
            if (MISTAKE != 2) __syncthreads();
            y[round * 128 + ID] = tile[127 - ID];
            if (MISTAKE != 3) __syncthreads();
        }
    }"""


def pipeline(mistake: int) -> Kernel:
    return Kernel(PIPELINE, "pipeline", defines={"MISTAKE": mistake})


def test_copy_if_fills_with_zeros_and_does_not_read(device):
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(1, 127, (64, 16), generator=generator).to(torch.int8)
    inside = torch.randint(0, 2, (64,), generator=generator).bool()
    assert 10 < inside.sum() < 54
    y = torch.full_like(x, -1).to(device)
    COPY_IF(1, 64, (x.to(device), inside.to(device), y))
    assert torch.equal(y.cpu(), x * inside[:, None])
    assert sanitize(COPY_IF, 1, 64, (x, inside, torch.full_like(x, -1))).clean


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("part", [0, 0.25, 0.5, 1])
def test_bytes_arrive_and_the_rest_is_zero(device, width, part):
    x = torch.randint(1, 127, (64, 16), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    y, valid = torch.full_like(x, -1).to(device), int(width * part)
    Kernel(COPY.source, f"copy<{width}>")(1, 64, (x.to(device), y, valid))
    want = x.clone().view(64, 16 // width, width)
    want[..., valid:] = 0
    assert torch.equal(y.cpu(), want.view(64, 16).flip(0))


def test_groups_land_one_after_another_and_not_before_the_wait():
    x = torch.arange(1, 257, dtype=torch.int32)
    seen = torch.zeros(4, 64, 4, dtype=torch.int32)
    GROUPS(1, 64, (x, seen))
    for moment, landed in enumerate([1, 2, 3, 3]):
        for stage in range(3):
            want = x[stage * 64 : stage * 64 + 64] if stage < landed else torch.full((64,), -1, dtype=torch.int32)
            assert torch.equal(seen[moment, :, stage], want), (moment, stage)


def test_pipeline_is_right_and_clean(device):
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    y = torch.full_like(x, float("nan")).to(device)
    pipeline(0)(1, 128, (x.to(device), y, 3))
    assert torch.equal(y.cpu(), x.flip(1))
    report = sanitize(pipeline(0), 1, 128, (x, torch.empty_like(x), 3))
    assert report.clean, report


def test_copies_of_an_earlier_block_do_not_land_in_a_later_one():
    x = torch.randn(1, 128, generator=torch.Generator().manual_seed(2))
    y = torch.zeros_like(x)
    pipeline(1)(64, 128, (x, y, 1))  # never waits: nothing may land, in none of the blocks
    assert y.isnan().all()


def test_missing_wait_gives_wrong_data():
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    y = torch.zeros_like(x)
    pipeline(1)(1, 128, (x, y, 3))
    assert y.isnan().all()


@pytest.mark.parametrize("mistake, rounds, kind", [(1, 1, "uninitialized"), (1, 3, "uninitialized"), (2, 1, "race"), (3, 3, "race")])
def test_mistakes_are_found(mistake, rounds, kind):
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    report = sanitize(pipeline(mistake), 1, 128, (x, torch.empty_like(x), rounds))
    assert kind in {finding.kind for finding in report.findings}, report


def test_source_and_destination_are_checked():
    x, y = torch.ones(64, 16, dtype=torch.int8), torch.zeros(64, 16, dtype=torch.int8)
    kernel = Kernel(COPY.source, "copy<16>")
    report = sanitize(kernel, 1, 64, (x[:63], y, 16))
    assert [finding.kind for finding in report.findings] == ["out_of_bounds"], report
    assert sanitize(kernel, 1, 64, (x[:0], y, 0)).clean  # nothing valid: the source is not read
    shifted = torch.ones(64 * 16 + 4, dtype=torch.int8)[4:]
    assert [finding.kind for finding in sanitize(kernel, 1, 64, (shifted, y, 16)).findings] == ["misaligned"]
    with pytest.raises(LaunchError, match="source is not a multiple"):
        kernel(1, 64, (shifted, y, 16))
    with pytest.raises(LaunchError, match="valid bytes"):
        kernel(1, 64, (x, y, 17))


def test_cudas_own_functions_are_the_same_instructions(device):
    text = PIPELINE.replace("cp_async.cuh", "cuda_pipeline_primitives.h").replace("cp_async_commit", "__pipeline_commit")
    text = text.replace("cp_async<4>(&tile[ID], x + round * 128 + ID)", "__pipeline_memcpy_async(&tile[ID], x + round * 128 + ID, 4)")
    kernel = Kernel(text.replace("cp_async_wait<0>()", "__pipeline_wait_prior(0)"), "pipeline", defines={"MISTAKE": 0})
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    y = torch.full_like(x, float("nan")).to(device)
    kernel(1, 128, (x.to(device), y, 3))
    assert torch.equal(y.cpu(), x.flip(1))
    assert kernel.resources("sm_80").spill_store_bytes == 0


def test_compiles_without_spills(arch):
    for kernel in (COPY, GROUPS, pipeline(0)):
        resources = kernel.resources(arch)
        assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
