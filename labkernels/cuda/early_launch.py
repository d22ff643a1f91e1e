"""Programmatic dependent launch (Hopper and newer): a kernel begins before the kernel launched before it on the stream has ended."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.errors import LaunchError

Shape = tuple[int, int, int]


def can_launch_early(device: torch.device) -> bool:
    """Is it a GPU that knows such launches?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_early(kernel: Kernel, device: torch.device, grid: Shape, block: Shape, args: Sequence, shared_mem: int = 0, cluster: Shape | None = None) -> None:
    """Launch on torch's current stream of this GPU, without waiting for the kernel before. Raises ArgumentError, LaunchError.

    All that the kernel may not do before that one has ended must stand behind its grid_dependency_wait() (include/fence.cuh).
    """
    from cuda.bindings import driver

    loaded = kernel._loaded.get(device.index) or kernel._load(device.index)
    if shared_mem > loaded._shared_allowed:
        loaded._allow_shared(shared_mem)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        config = _config(grid, block, shared_mem, stream, cluster)
        memory = loaded._memory.fill(loaded.pack(args, device))
        (error,) = driver.cuLaunchKernelEx(config, driver.CUfunction(loaded._function.ptr), memory, 0)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise LaunchError(f"{kernel.name}: the GPU refuses the early launch: {error.name}")


@functools.lru_cache(maxsize=256)
def _config(grid, block, shared_mem: int, stream: int, cluster):
    from cuda.bindings import driver

    early = driver.CUlaunchAttribute()
    early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    early.value.programmaticStreamSerializationAllowed = 1
    attributes = [early]
    if cluster is not None:
        clusters = driver.CUlaunchAttribute()
        clusters.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        clusters.value.clusterDim.x, clusters.value.clusterDim.y, clusters.value.clusterDim.z = cluster
        attributes.append(clusters)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes = shared_mem
    config.hStream = stream
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config
