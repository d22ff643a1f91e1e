"""Registers, spills and shared memory from the compiler's report; occupancy against NVIDIA's own calculator."""

import itertools
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from labkernels.cuda import Kernel, occupancy
from labkernels.cuda.compile import cuda_include_dirs
from labkernels.errors import ArgumentError

TEXT = """
__constant__ float weights[100];
extern __shared__ float dynamic[];

extern "C" __global__ void shares(float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = y[threadIdx.x];
    dynamic[threadIdx.x] = y[0];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x] * weights[threadIdx.x] + dynamic[0];
}

extern "C" __global__ void stacks(float* y, int n) {
    float a[200];
    for (int i = 0; i < n; i++) a[i % 200] = y[i];
    y[0] = a[n % 7];
}

extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* y, int n) {
    float a[60];
    #pragma unroll
    for (int i = 0; i < 60; i++) a[i] = y[threadIdx.x + i * 64];
    for (int j = 0; j < n; j++) {
        #pragma unroll
        for (int i = 0; i < 60; i++) a[i] = a[i] * a[(i * 7 + 1) % 60] + 1.0f;
    }
    float sum = 0;
    #pragma unroll
    for (int i = 0; i < 60; i++) sum += a[i];
    y[threadIdx.x] = sum;
}
"""


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKERNELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_every_architecture_reports_what_the_source_asks_for(arch):
    shares = Kernel(TEXT, "shares").resources(arch)
    assert shares.arch.removesuffix("a") == arch
    assert shares.shared_bytes == 64 * 4
    assert shares.constant_bytes == 100 * 4
    assert shares.barriers == 1
    assert shares.stack_bytes == shares.spill_store_bytes == 0
    assert 4 < shares.registers < 64
    assert Kernel(TEXT, "stacks").resources(arch).stack_bytes == 200 * 4


def test_spills_are_reported_where_the_launch_bounds_leave_too_few_registers():
    spills = Kernel(TEXT, "spills").resources("sm_90")
    assert spills.registers <= 32
    assert spills.spill_store_bytes > 0 and spills.spill_load_bytes > 0
    assert spills.stack_bytes >= (60 - 32) * 4


def test_each_kernel_of_a_source_has_its_own_numbers():
    shares, stacks = (Kernel(TEXT, name).resources("sm_90") for name in ("shares", "stacks"))
    assert shares.shared_bytes == 256 and stacks.shared_bytes == 0
    assert shares.stack_bytes == 0 and stacks.stack_bytes == 800


def test_compiling_anew_reports_again_whatever_nvrtc_remembers(tmp_path, monkeypatch):
    first = Kernel(TEXT, "shares").resources("sm_90")
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path))
    assert Kernel(TEXT, "shares").resources("sm_90") == first and first.registers > 0


def test_functions_that_are_not_inlined_do_not_overwrite_the_kernels_numbers():
    text = """
    __noinline__ __device__ float deep(float* y, int n) {
        float a[300];
        for (int i = 0; i < n; i++) a[i % 300] = y[i];
        return a[n % 5];
    }
    extern "C" __global__ void f(float* y, int n) {
        float a[10];
        for (int i = 0; i < n; i++) a[i % 10] = y[i];
        y[0] = deep(y, n) + a[n % 3];
    }
    """
    assert Kernel(text, "f").resources("sm_90").stack_bytes >= 40  # the report goes on with deep's 0 bytes


def test_the_text_is_one_line_and_the_html_a_table_of_the_same_numbers():
    text = "template <class T> __global__ void f(T* x) { __shared__ T s[9]; s[*x] = 1; *x = s[3]; }"
    resources = Kernel(text, "f<int>").resources("sm_80")
    assert repr(resources).startswith(f"f<int> on sm_80: {resources.registers} registers a thread, 36 bytes static shared memory")
    assert "\n" not in repr(resources)
    html = resources._repr_html_()
    assert html.startswith("<table>") and "f&lt;int>" in html and "<td>36</td>" in html


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ArgumentError, match="sm_52"):
        Kernel(TEXT, "shares").resources("sm_52")


# ---- occupancy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks, limited_by",
    [  # worked by hand
        ("sm_90", 256, 32, 0, 8, "warps"),
        ("sm_90", 32, 32, 0, 32, "blocks"),
        ("sm_86", 32, 32, 0, 16, "blocks"),
        ("sm_90", 256, 128, 0, 2, "registers"),  # 65536 / (256 * 128)
        ("sm_90", 128, 168, 0, 3, "registers"),  # 16384 // (168 * 32) = 3 warps a partition, 12 warps
        ("sm_90", 128, 32, 100 * 1024, 2, "shared memory"),
        ("sm_90", 128, 32, 227 * 1024, 1, "shared memory"),
        ("sm_80", 128, 32, 164 * 1024, 0, "shared memory"),  # 1 KB of 164 is the system's
        ("sm_75", 1024, 64, 0, 1, "warps"),
        ("sm_80", 1024, 65, 0, 0, "registers"),
    ],
)
def test_occupancy_worked_by_hand(arch, threads, registers, shared, blocks, limited_by):
    found = occupancy.occupancy(arch, threads, registers, shared)
    assert (found.blocks_per_sm, found.limited_by) == (blocks, limited_by)
    assert found.warps_per_sm == blocks * threads // 32
    assert found.share == found.warps_per_sm / occupancy.sm_limits(arch).warps
    assert limited_by in str(found)


def test_a_kernels_occupancy_counts_static_and_dynamic_shared_memory():
    resources = Kernel(TEXT, "shares").resources("sm_90")
    assert resources.occupancy(64).blocks_per_sm == 32
    assert resources.occupancy((8, 8)) == resources.occupancy(64)
    found = resources.occupancy(64, shared_mem=60 * 1024)
    assert found.blocks_per_sm == 3 and found.limited_by == "shared memory"
    with pytest.raises(ArgumentError, match="1 to 1024 threads, got 2048"):
        resources.occupancy((64, 32))


CALCULATOR = """
#include <cuda_occupancy.h>
#include <climits>
#include <cstdio>
int main() {
    int arch, warps, per_sm, reserved, threads, registers, shared, barriers;
    while (scanf("%d %d %d %d %d %d %d %d", &arch, &warps, &per_sm, &reserved, &threads, &registers, &shared, &barriers) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = arch / 10, device.computeMinor = arch % 10;
        device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = warps * 32;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32, device.numSms = 1;
        device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = per_sm;
        device.sharedMemPerBlockOptin = per_sm - reserved, device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = INT_MAX, kernel.numRegs = registers, kernel.numBlockBarriers = barriers;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = per_sm;
        cudaOccDeviceState state;
        cudaOccResult result;
        int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
        printf("%d\\n", status ? -status : result.activeBlocksPerMultiprocessor);
    }
}
"""


def test_occupancy_agrees_with_nvidias_calculator(tmp_path):
    folder = next((Path(d) for d in cuda_include_dirs() if (Path(d) / "cuda_occupancy.h").exists()), None)
    if folder is None or not shutil.which("g++"):
        pytest.skip("needs cuda_occupancy.h and g++")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    subprocess.run(["g++", f"-I{folder}", tmp_path / "calculator.cpp", "-o", tmp_path / "calculator"], check=True)
    random.seed(1)
    cases = []
    for arch, _ in itertools.product(occupancy.SM_LIMITS, range(400)):
        shared = random.choice([0, random.randrange(0, 4096), random.randrange(0, occupancy.SM_LIMITS[arch].shared_bytes + 4096)])
        barriers = 1 if arch == 103 else random.choice([0, 1, 1, 2, 5, 16])  # before CUDA 13.5 it counted sm_103's barriers twice
        cases.append((arch, random.randint(1, 1024), random.randint(1, 255), shared, barriers))
    lines = []
    for arch, threads, registers, shared, barriers in cases:
        limits = occupancy.SM_LIMITS[arch]
        device = f"{arch} {limits.warps} {limits.shared_bytes} {limits.shared_bytes_reserved}"
        lines.append(f"{device} {threads} {registers} {shared} {barriers}\n")
    output = subprocess.run([tmp_path / "calculator"], input="".join(lines), capture_output=True, text=True, check=True).stdout
    theirs = [int(n) for n in output.split()]
    ours = [occupancy.occupancy(f"sm_{arch}", *rest).blocks_per_sm for arch, *rest in cases]
    wrong = [(case, our, their) for case, our, their in zip(cases, ours, theirs, strict=True) if our != their]
    assert not wrong, wrong[:5]
    assert len(set(theirs)) > 10


def test_limits_agree_with_cccls_table():
    table = next((p for d in cuda_include_dirs() for p in Path(d).glob("**/cuda/__device/arch_traits.h")), None)
    if table is None:
        pytest.skip("this CCCL has no table of architectures")
    text = table.read_text()
    for arch, limits in occupancy.SM_LIMITS.items():
        if arch in (103, 121):  # given there by reference to another
            continue
        body = text.split(f"arch_traits<arch_id::sm_{arch}>() noexcept")[1].split("return")[0]
        for field, expected in [
            ("max_blocks_per_multiprocessor", f"{limits.blocks}"),
            ("max_threads_per_multiprocessor", f"{limits.warps * 32}"),
            ("max_shared_memory_per_multiprocessor", f"{limits.shared_bytes // 1024} * 1024"),
        ]:
            assert re.search(rf"{field}\s*=\s*{re.escape(expected)};", body), (arch, field)


@pytest.mark.gpu
def test_occupancy_and_resources_agree_with_the_driver():
    import cupy

    kernel = Kernel(TEXT, "shares")
    resources = kernel.resources()
    kernel._load(0)
    raw = kernel._loaded[0]._raw
    assert raw.num_regs == resources.registers
    assert raw.shared_size_bytes == resources.shared_bytes
    assert raw.local_size_bytes == resources.stack_bytes
    raw.max_dynamic_shared_size_bytes = 60 * 1024
    for threads, shared_mem in itertools.product((32, 64, 96, 256, 1024), (0, 1000, 20000, 60 * 1024)):
        theirs = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(raw.kernel.ptr, threads, shared_mem)
        assert resources.occupancy(threads, shared_mem).blocks_per_sm == theirs
