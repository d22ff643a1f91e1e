"""Thread block clusters (sm_90): blocks that run together and reach into each other's shared memory. What a launch may ask for."""

from __future__ import annotations

import math

from labkernels.errors import ArgumentError

MAX_CLUSTER_BLOCKS = 8  # that every GPU with clusters can run


def cluster_shape(kernel: str, grid: tuple[int, int, int], asked: tuple | None, declared: tuple | None) -> tuple[int, int, int]:
    """The blocks of a cluster along x, y and z: those that the launch asks for or that the kernel's `__cluster_dims__` say, else one.

    Raises ArgumentError where the two differ, where a cluster has too many blocks, and where the grid is no multiple of it.
    """
    if asked and declared and asked != declared:
        raise ArgumentError(f"{kernel}: the launch asks for clusters of {asked}, the kernel's __cluster_dims__ say {declared}")
    shape = asked or declared or (1, 1, 1)
    blocks = math.prod(shape)
    if blocks > MAX_CLUSTER_BLOCKS:
        raise ArgumentError(f"{kernel}: cluster {shape} has {blocks} blocks, a cluster has at most {MAX_CLUSTER_BLOCKS}")
    for axis, size, count in zip("xyz", shape, grid):
        if count % size:
            raise ArgumentError(f"{kernel}: grid {grid} is no multiple of the cluster {shape}: {count} blocks along {axis}, in clusters of {size}")
    return shape
