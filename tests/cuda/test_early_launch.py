"""`k(..., early=True)`: a kernel that waits itself for the kernel before it sees all that one wrote, wherever it runs."""

import pytest
import torch

import labkernels as lk

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NEXT = """
    #include "fence.cuh"
    extern "C" __global__ void next(const int* from, int* to, int n) {
        grid_dependency_launch();
        grid_dependency_wait();
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) to[i] = from[(i + 1) % n] + 1;
    }"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_chain_of_early_kernels_is_in_order(device):
    """Each element comes from the neighbour's, which another block wrote: a kernel that did not wait would find old numbers."""
    n, steps = (1 << 16, 50) if device == "cuda" else (300, 4)
    kernel = lk.Kernel(NEXT, "next")
    a, b = torch.arange(n, dtype=torch.int32, device=device), torch.zeros(n, dtype=torch.int32, device=device)
    for _ in range(steps):
        kernel(-(-n // 128), 128, (a, b, n), early=True)
        a, b = b, a
    assert torch.equal(a.cpu(), (torch.arange(n) + steps).remainder(n).int() + steps)


@pytest.mark.gpu
def test_an_early_kernel_can_have_clusters():
    kernel = lk.Kernel(NEXT, "next")
    a, b = torch.arange(1024, dtype=torch.int32, device="cuda"), torch.zeros(1024, dtype=torch.int32, device="cuda")
    kernel(8, 128, (a, b, 1024), 0, 2, early=True)
    assert torch.equal(b.cpu(), (torch.arange(1024) + 1).remainder(1024).int() + 1)
