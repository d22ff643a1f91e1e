"""Tensor maps: what the copy engine TMA must know of a tensor, made from a torch tensor.

    a = tensor_map(x, box=(64, 64), swizzle=128)        # x (rows, columns), loaded 64 rows by 64 columns at a time
    kernel(grid, block, (a, ...))                       # const __grid_constant__ TensorMap a, see include/tma.cuh
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch

from labkernels.errors import ArgumentError, ToolchainError

_MAGIC = 0x4C4B544D  # shim/lk_async.h
_KINDS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.int32: 4}  # lk::ElementKind, what can be added
_DRIVER_TYPES = {
    torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float64: "FLOAT64", torch.int32: "INT32",
    torch.int64: "INT64", torch.uint8: "UINT8", torch.int8: "UINT8", torch.bool: "UINT8", torch.int16: "UINT16",
    torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64", torch.float8_e4m3fn: "UINT8", torch.float8_e5m2: "UINT8",
}  # fmt: skip
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}


class TensorMap(ctypes.Structure):
    """128 bytes, passed to a kernel by value. `tensor` is the tensor it was made of, which must live as long as the map is used."""

    _align_ = 64  # what cuTensorMapEncodeTiled and a kernel's parameter ask for
    _fields_ = [("opaque", ctypes.c_uint64 * 16)]
    tensor: torch.Tensor


class _Emulated(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64), ("stride_bytes", ctypes.c_uint64 * 4), ("size", ctypes.c_uint32 * 5), ("box", ctypes.c_uint32 * 5),
        ("rank", ctypes.c_uint32), ("element_bytes", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("swizzle_bytes", ctypes.c_uint32),
        ("magic", ctypes.c_uint32), ("unused", ctypes.c_uint32 * 7),
    ]  # fmt: skip


def tensor_map(tensor: torch.Tensor, box: Sequence[int], swizzle: int = 0) -> TensorMap:
    """A tensor map of `tensor` (1 to 5 axes, the last one dense) for boxes of shape `box`, in the order of the tensor's axes.

    `swizzle` is 0, 32, 64 or 128: the bytes within which 16-byte pieces change places; a box's last axis has that many.
    An axis that is repeated (`.expand()`: a stride of 0, which a tensor map does not have) is copied first: such a map is for reading.
    For a tensor on a GPU the driver encodes it (Hopper or newer); for one on the CPU it is the emulator's. Raises ArgumentError.
    """
    if 0 in tensor.stride()[:-1] and any(stride == 0 and size > 1 for stride, size in zip(tensor.stride()[:-1], tensor.shape)):
        tensor = tensor.contiguous()
    sizes = tensor.shape[::-1]
    strides = [stride if size > 1 else 16 for stride, size in zip(tensor.stride()[::-1], sizes)]  # where there is one, none is taken
    strides[0] = tensor.stride(-1) if tensor.dim() else 1
    box = tuple(box)[::-1]
    item = tensor.element_size()
    _check(tensor, sizes, strides, box, item, swizzle)
    stride_bytes = tuple(stride * item for stride in strides[1:])
    made = TensorMap.from_buffer_copy(
        _encoded(tensor.data_ptr(), tensor.dtype, tensor.device.index, tuple(sizes), stride_bytes, box, swizzle)
        if tensor.is_cuda
        else _emulated(tensor, sizes, stride_bytes, box, swizzle)
    )
    made.tensor = tensor
    return made


def _check(tensor, sizes, strides, box, item, swizzle) -> None:
    if tensor.dtype not in _DRIVER_TYPES:
        raise ArgumentError(f"tensor_map: {str(tensor.dtype).removeprefix('torch.')} tensors cannot be copied by TMA")
    if not 1 <= tensor.dim() <= 5:
        raise ArgumentError(f"tensor_map: a tensor has 1 to 5 axes, this one {tensor.dim()}")
    if len(box) != tensor.dim():
        raise ArgumentError(f"tensor_map: box has {len(box)} axes, the tensor {tensor.dim()}")
    if swizzle not in _SWIZZLES:
        raise ArgumentError(f"tensor_map: swizzle is 0, 32, 64 or 128 bytes, got {swizzle!r}")
    if not tensor.numel():
        raise ArgumentError("tensor_map: the tensor is empty")
    if strides[0] != 1 and sizes[0] != 1:
        raise ArgumentError(f"tensor_map: the last axis must be dense, its stride is {strides[0]}; .contiguous() makes it so")
    if bad := [stride * item for stride in strides[1:] if stride * item % 16 or stride < 0]:
        raise ArgumentError(f"tensor_map: the strides in bytes must be multiples of 16, one is {bad[0]}")
    if tensor.data_ptr() % 16:
        raise ArgumentError("tensor_map: the tensor's data must begin on a multiple of 16 bytes (a slice? .clone() moves it)")
    if bad := [size for size in box if not 1 <= size <= 256]:
        raise ArgumentError(f"tensor_map: each side of the box is 1 to 256 elements, one is {bad[0]}")
    if box[0] * item % 16:
        raise ArgumentError(f"tensor_map: the box's last axis has {box[0] * item} bytes, which is no multiple of 16")
    if swizzle and box[0] * item != swizzle:
        raise ArgumentError(f"tensor_map: with a swizzle of {swizzle} bytes the box's last axis has that many, this one {box[0] * item}")


def _emulated(tensor, sizes, stride_bytes, box, swizzle) -> _Emulated:
    made = _Emulated(
        address=tensor.data_ptr(), rank=tensor.dim(), element_bytes=tensor.element_size(), kind=_KINDS.get(tensor.dtype, 0),
        swizzle_bytes=swizzle, magic=_MAGIC,
    )  # fmt: skip
    made.size[: len(sizes)], made.box[: len(box)], made.stride_bytes[: len(stride_bytes)] = sizes, box, stride_bytes
    return made


@functools.lru_cache(4096)  # the driver takes 60 us, and a model's tensors lie where they lay in the step before
def _encoded(address: int, dtype: torch.dtype, device: int, sizes: tuple, stride_bytes: tuple, box: tuple, swizzle: int) -> bytes:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise ToolchainError("tensor_map needs cuda.bindings: pip install 'labkernels[cuda13]'") from error
    if torch.cuda.get_device_capability(device) < (9, 0):
        raise ArgumentError(f"tensor_map: {torch.cuda.get_device_name(device)} has no copy engine TMA; Hopper and newer have")
    wide = driver.cuuint64_t
    with torch.cuda.device(device):
        error, made = driver.cuTensorMapEncodeTiled(
            getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_DRIVER_TYPES[dtype]}"),
            len(sizes),
            address,
            [wide(size) for size in sizes],
            [wide(stride) for stride in stride_bytes] or [wide(16)],  # one axis has no stride; the driver wants a pointer all the same
            [driver.cuuint32_t(size) for size in box],
            [driver.cuuint32_t(1)] * len(sizes),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{_SWIZZLES[swizzle]}"),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    if error != driver.CUresult.CUDA_SUCCESS:
        raise ArgumentError(f"tensor_map: the driver refuses shape {sizes[::-1]}, box {box[::-1]}: {error.name}")
    return b"".join(int(word).to_bytes(8, "little") for word in made.opaque)
