"""What only a GPU can show of `Kernel`: streams, graphs, shared memory beyond 48 KB, threads, and crashes."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from labkernels.cuda import Kernel, emulator
from labkernels.errors import ArgumentError, LaunchError

pytestmark = pytest.mark.gpu

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
"""


def gpu_args(n=33):
    return torch.randn(n, device="cuda"), torch.full((n,), float("nan"), device="cuda"), 2.5, n


def test_cuda_tensors_run_on_the_gpu():
    x, y, factor, n = gpu_args(100_001)
    Kernel(SCALE, "scale")(-(-n // 256), 256, (x, y, factor, n))
    assert torch.equal(y, x * 2.5)


def test_the_gpu_path_needs_no_emulator(monkeypatch):
    monkeypatch.setattr(emulator, "build", None)
    scale = Kernel(SCALE, "scale")
    assert [p.name for p in scale.signature] == ["x", "y", "factor", "n"]
    scale(1, 64, gpu_args())


def test_without_tensors_it_runs_on_the_gpu(monkeypatch):
    monkeypatch.setattr(emulator, "run", None)
    Kernel(SCALE, "scale")(1, 32, (None, None, 1.0, 0))
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, lambda: torch.randn(33), r"args\[1\], float\* y: the tensor is on cuda:0, others are on cpu"),
        (1, lambda: torch.empty(33), r"args\[1\], float\* y: the tensor is on cpu, others are on cuda:0"),
        (0, lambda: torch.randn(33, dtype=torch.float64, device="cuda"), r"args\[0\], const float\* x: takes float32, got a tensor of float64"),
        (3, lambda: 2**40, r"args\[3\], int n: 1099511627776 is out of range for int"),
    ],
)
def test_a_refused_launch_leaves_the_gpu_usable(position, value, message):
    args = list(gpu_args())
    args[position] = value()
    scale = Kernel(SCALE, "scale")
    with pytest.raises(ArgumentError, match=message):
        scale(1, 64, args)
    x, y, factor, n = gpu_args()
    scale(1, 64, (x, y, factor, n))
    torch.cuda.synchronize()
    assert torch.equal(y, x * 2.5)


DYNAMIC = """
extern __shared__ float memory[];
extern "C" __global__ void reverse(const float* x, float* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) memory[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = memory[n - 1 - i];
}
"""


@pytest.mark.parametrize("kilobytes", [1, 48, 64, 100])
def test_more_than_48_kilobytes_of_shared_memory(kilobytes):
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    if kilobytes * 1024 > limit:
        pytest.skip(f"this GPU has {limit} bytes")
    n = kilobytes * 256
    x, y = torch.randn(n, device="cuda"), torch.empty(n, device="cuda")
    Kernel(DYNAMIC, "reverse")(1, 256, (x, y, n), shared_mem=n * 4)
    assert torch.equal(y, x.flip(0))


def test_more_shared_memory_than_the_gpu_has_is_refused_with_both_numbers():
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    x = torch.randn(4, device="cuda")
    reverse = Kernel(DYNAMIC, "reverse")
    with pytest.raises(ArgumentError, match=f"reverse: shared_mem is {limit + 4} bytes, this GPU gives a block at most {limit}"):
        reverse(1, 32, (x, x.clone(), 4), shared_mem=limit + 4)
    reverse(1, 32, (x, y := torch.empty_like(x), 4), shared_mem=limit)
    assert torch.equal(y, x.flip(0))


def test_a_block_too_large_for_the_kernels_registers_is_refused():
    text = 'extern "C" __global__ void __launch_bounds__(128) f(int* x) { x[threadIdx.x] = 1; }'
    with pytest.raises(ArgumentError, match=r"block \(256, 1, 1\) has 256 threads; .* it can have 128"):
        Kernel(text, "f")(1, 256, (torch.zeros(256, dtype=torch.int32, device="cuda"),))


def test_it_runs_on_torchs_current_stream():
    slow = 'extern "C" __global__ void slow(float* x, long long cycles) { long long t = clock64(); while (clock64() - t < cycles); x[0] += 1; }'
    kernel = Kernel(slow, "slow")
    x = torch.zeros(1, device="cuda")
    kernel(1, 1, (x, 1))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        kernel(1, 1, (x, 200_000_000))
    assert not stream.query() and torch.cuda.current_stream().query()
    stream.synchronize()
    assert x.item() == 2


@pytest.mark.parametrize("loaded_before", [True, False])
def test_it_is_captured_in_a_cuda_graph(loaded_before):
    scale = Kernel(SCALE.replace("x[i] *", "x[i] * 1.0f *" if loaded_before else "1.0f * x[i] *"), "scale")
    x, y, factor, n = gpu_args()
    if loaded_before:
        scale(1, 64, (x, y, factor, n))
    torch.cuda.synchronize()
    y.fill_(float("nan"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scale(1, 64, (x, y, factor, n))
    torch.cuda.synchronize()
    assert y.isnan().all()  # captured, not run
    x.copy_(torch.arange(n))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, torch.arange(n, device="cuda") * 2.5)


def test_threads_launch_side_by_side_without_mixing_their_arguments():
    scale = Kernel(SCALE, "scale")
    results = {}

    def work(number):
        x, y, _, n = gpu_args()
        for _ in range(200):
            scale(1, 64, (x, y, float(number), n))
        torch.cuda.synchronize()
        results[number] = torch.equal(y, x * number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(1, 5), True)


def test_tensors_on_the_second_gpu_run_there():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    scale = Kernel(SCALE, "scale")
    x = torch.randn(33, device="cuda:1")
    y = torch.empty_like(x)
    scale(1, 64, (x, y, 2.5, 33))
    assert torch.equal(y, x * 2.5) and torch.cuda.current_device() == 0
    with pytest.raises(ArgumentError, match="the tensor is on cuda:0, others are on cuda:1"):
        scale(1, 64, (x, y.to("cuda:0"), 2.5, 33))


def test_a_launch_costs_little_host_time():
    scale, args = Kernel(SCALE, "scale"), gpu_args()
    scale(1, 64, args)
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            scale(1, 64, args)
        best = min(best, time.perf_counter() - start)
        torch.cuda.synchronize()
    print(f"\na launch takes {best * 1e4:.1f} us of host time")
    assert best / 100 < 20e-6


CRASH = """
import pytest, torch
from labkernels.cuda import Kernel
from labkernels.errors import LaunchError
bad = Kernel('extern "C" __global__ void bad(int* x) { x[1l << 40] = 1; }', "bad")
x = torch.zeros(1, dtype=torch.int32, device="cuda")
bad(1, 1, (x,))
with pytest.raises(Exception, match="illegal"):
    torch.cuda.synchronize()
with pytest.raises(LaunchError, match="bad: .* because a kernel that ran before has crashed .*lk.sanitize"):
    bad(1, 1, (x,))
"""


def test_after_a_crash_the_message_says_what_happened():
    result = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_errors_of_the_driver_name_the_kernel():
    too_much = Kernel('extern "C" __global__ void __launch_bounds__(32) f(int n) {}', "f")
    too_much(1, 32, (1,))
    too_much._loaded[0]._max_threads = 1024
    with pytest.raises(LaunchError, match="f: the GPU refuses the launch: CUDA_ERROR_"):
        too_much(1, 64, (1,))
