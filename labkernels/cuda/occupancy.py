"""How many blocks of a kernel fit on one multiprocessor (SM) at a time, and what limits them.

From the limits that NVIDIA publishes for each compute capability (CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"), and the granularity in which registers and shared memory are handed out. Nothing here asks a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkernels.errors import ArgumentError

WARP_SIZE = 32
MAX_THREADS_PER_BLOCK = 1024
MAX_REGISTERS_PER_THREAD = 255
REGISTERS_PER_SM = 65536
REGISTER_UNIT = 256  # a warp's registers are rounded up to this many
SM_PARTITIONS = 4  # each has a quarter of the registers, and a warp lives in one
KB = 1024


@dataclass(frozen=True)
class SMLimits:
    """What one multiprocessor of an architecture holds at a time. Shared memory in bytes."""

    warps: int
    blocks: int
    shared_bytes: int
    shared_bytes_reserved: int  # taken by the system from each block
    shared_unit: int  # a block's shared memory is rounded up to this many bytes
    barriers: int  # for __syncthreads and named barriers, of all blocks together; before sm_90 16 for each, so no limit

    @property
    def shared_bytes_per_block(self) -> int:
        """The most that one block can have, dynamic and static together."""
        return self.shared_bytes - self.shared_bytes_reserved


SM_LIMITS = {
    75: SMLimits(warps=32, blocks=16, shared_bytes=64 * KB, shared_bytes_reserved=0, shared_unit=256, barriers=256),
    80: SMLimits(warps=64, blocks=32, shared_bytes=164 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=512),
    86: SMLimits(warps=48, blocks=16, shared_bytes=100 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=256),
    87: SMLimits(warps=48, blocks=16, shared_bytes=164 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=256),
    89: SMLimits(warps=48, blocks=24, shared_bytes=100 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=384),
    90: SMLimits(warps=64, blocks=32, shared_bytes=228 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=64),
    100: SMLimits(warps=64, blocks=32, shared_bytes=228 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=64),
    103: SMLimits(warps=64, blocks=32, shared_bytes=228 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=32),
    120: SMLimits(warps=48, blocks=24, shared_bytes=100 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=24),
    121: SMLimits(warps=48, blocks=24, shared_bytes=100 * KB, shared_bytes_reserved=KB, shared_unit=128, barriers=24),
}


@dataclass(frozen=True)
class Occupancy:
    """How full one multiprocessor can be. `limited_by` is warps, blocks, registers, shared memory or barriers.

    `share` is `warps_per_sm` over the most warps that the multiprocessor can hold. No block fits where `blocks_per_sm` is 0.
    """

    blocks_per_sm: int
    warps_per_sm: int
    share: float
    limited_by: str

    def __str__(self) -> str:
        if not self.blocks_per_sm:
            return f"no block fits: too much for one multiprocessor's {self.limited_by}"
        return (
            f"{self.blocks_per_sm} block{'s' if self.blocks_per_sm > 1 else ''}, {self.warps_per_sm} warps a multiprocessor: "
            f"{self.share:.0%} occupancy, limited by {self.limited_by}"
        )


def sm_limits(arch: str) -> SMLimits:
    """The limits of `arch`, like `sm_90` or `sm_90a`. Raises ArgumentError for one that the table lacks."""
    match = re.fullmatch(r"sm_(\d+)a?", arch)
    if not match or int(match.group(1)) not in SM_LIMITS:
        raise ArgumentError(f"no limits known for {arch}; known are {', '.join(f'sm_{n}' for n in SM_LIMITS)}")
    return SM_LIMITS[int(match.group(1))]


def occupancy(arch: str, threads_per_block: int, registers: int, shared_bytes: int, barriers: int = 1) -> Occupancy:
    """The occupancy of a kernel on `arch`.

    `registers` are per thread; `shared_bytes` and `barriers` per block, shared memory static and dynamic together.
    """
    if not 1 <= threads_per_block <= MAX_THREADS_PER_BLOCK:
        raise ArgumentError(f"a block has 1 to {MAX_THREADS_PER_BLOCK} threads, got {threads_per_block}")
    limits = sm_limits(arch)
    warps = -(-threads_per_block // WARP_SIZE)
    fits = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": _blocks_by_registers(warps, registers),
        "shared memory": _blocks_by_shared_memory(limits, shared_bytes),
        "barriers": limits.barriers // max(barriers, 1),
    }
    limited_by = min(fits, key=fits.get)
    blocks = fits[limited_by]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limited_by)


def _blocks_by_registers(warps: int, registers: int) -> int:
    if registers > MAX_REGISTERS_PER_THREAD:
        return 0
    registers_per_warp = _round_up(max(registers, 1) * WARP_SIZE, REGISTER_UNIT)
    warps_per_partition = REGISTERS_PER_SM // SM_PARTITIONS // registers_per_warp
    return warps_per_partition * SM_PARTITIONS // warps


def _blocks_by_shared_memory(limits: SMLimits, shared_bytes: int) -> int:
    if shared_bytes > limits.shared_bytes_per_block:
        return 0
    per_block = _round_up(shared_bytes + limits.shared_bytes_reserved, limits.shared_unit)
    return limits.shared_bytes // per_block if per_block else limits.shared_bytes


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
