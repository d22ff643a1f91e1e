"""Compiled kernels loaded and launched on a GPU, with CuPy, on torch's current stream."""

from __future__ import annotations

import ctypes
import functools
import threading

import torch

from labkernels.cuda.arguments import ArgumentPacker
from labkernels.cuda.compile import Cubin
from labkernels.errors import ArgumentError, LaunchError, ToolchainError

_WITHOUT_OPT_IN = 48 * 1024  # bytes of shared memory that a launch may ask for without saying so before
_LIVES_IN_SHARED = 32 * 1024  # bytes of shared memory a block from which a kernel works out of it, and less out of L1
_REQUIRED_CLUSTER = (11, 12, 13)  # CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH, _HEIGHT, _DEPTH
_POISONED = ("ILLEGAL_ADDRESS", "MISALIGNED_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT", "ILLEGAL_INSTRUCTION", "HARDWARE_STACK")


@functools.cache
def available() -> bool:
    """Whether kernels can run on a GPU here: torch sees one, and CuPy is there and sees it too."""
    if not torch.cuda.is_available():
        return False
    try:
        import cupy
    except ImportError:
        return False
    return cupy.cuda.is_available()


def crash() -> str:
    """What a kernel did for which the GPU refuses this process any more work; nothing if it did nothing of the kind."""
    if not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def arch(index: int) -> str:
    """The architecture of GPU `index`, like `sm_90`."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


class LoadedKernel:
    """A kernel in the memory of one GPU. `pack` turns Python arguments into what `launch` takes."""

    def __init__(self, cubin: Cubin, name: str, device_index: int):
        """Load `cubin` on GPU `device_index`. Raises ToolchainError without CuPy, LaunchError if the GPU refuses."""
        cupy = _cupy()
        self.name = name
        self.pack = ArgumentPacker(name, cubin.signature)
        self._device_index = device_index
        self._driver = cupy.cuda.driver
        self._is_hopper = torch.cuda.get_device_capability(device_index) >= (9, 0)  # or newer: it knows clusters and early launches
        try:
            with torch.cuda.device(device_index), cupy.cuda.Device(device_index):
                self._raw = cupy.RawModule(path=str(cubin.path)).get_function(cubin.symbol)
                self._function = self._raw.kernel
                self._max_threads = self._raw.max_threads_per_block
                self._static_shared = self._raw.shared_size_bytes
                self._registers = self._raw.num_regs
                self.cluster = self._declared_cluster()
                self._memory = _ArgumentMemory(tuple(p.size for p in cubin.signature), device_index)
        except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
            raise _launch_error(name, "cannot be loaded", error) from error
        self._shared_limit = torch.cuda.get_device_properties(device_index).shared_memory_per_block_optin - self._static_shared
        self._shared_allowed = _WITHOUT_OPT_IN - self._static_shared
        self._prefers_shared = False

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        values: list[bytes],
        shared_mem: int,
        cluster: tuple | None = None,
        early: bool = False,
    ) -> None:
        """Launch on torch's current stream, without waiting. Raises ArgumentError, LaunchError.

        `cluster` is for kernels that have no cluster of their own: see the attribute `cluster`, the shape that `__cluster_dims__` say.
        `early` is for kernels that wait themselves for the kernel before; GPUs before Hopper wait anyway.
        """
        if torch.cuda.current_device() != self._device_index:
            with torch.cuda.device(self._device_index):
                return self.launch(grid, block, values, shared_mem, cluster, early)
        if block[0] * block[1] * block[2] > self._max_threads:
            raise ArgumentError(
                f"{self.name}: block {block} has {block[0] * block[1] * block[2]} threads; with {self._registers} registers a "
                f"thread it can have {self._max_threads} on this GPU (see __launch_bounds__)"
            )
        if shared_mem > self._shared_allowed:
            self._allow_shared(shared_mem)
        if early and not self._prefers_shared and self._static_shared + shared_mem >= _LIVES_IN_SHARED:
            self._prefer_shared()
        stream = torch.cuda.current_stream(self._device_index).cuda_stream
        if cluster is not None or early and self._is_hopper:
            return self._launch_with_attributes(grid, block, values, shared_mem, stream, cluster, early)
        try:
            self._driver.launchKernel(self._function.ptr, *grid, *block, shared_mem, stream, self._memory.fill(values), 0)
        except self._driver.CUDADriverError as error:
            raise _launch_error(self.name, "the GPU refuses the launch", error) from error

    def _launch_with_attributes(self, grid, block, values, shared_mem, stream: int, cluster: tuple | None, early: bool) -> None:
        if not self._is_hopper:
            name = torch.cuda.get_device_name(self._device_index)
            raise ArgumentError(f"{self.name}: clusters run on GPUs of compute capability 9.0 and newer; this one is {name}")
        from cuda.bindings import driver

        config = _launch_config(grid, block, shared_mem, stream, cluster, early)
        (error,) = driver.cuLaunchKernelEx(config, driver.CUfunction(self._function.ptr), self._memory.fill(values), 0)
        if error != driver.CUresult.CUDA_SUCCESS:
            how = f" in clusters of {cluster}" if cluster else ""
            raise _launch_error(self.name, f"the GPU refuses the {'early ' if early else ''}launch{how}", error.name)

    def _declared_cluster(self) -> tuple[int, int, int] | None:
        if not self._is_hopper:
            return None
        shape = tuple(self._driver.funcGetAttribute(attribute, self._function.ptr) for attribute in _REQUIRED_CLUSTER)
        return shape if shape[0] else None

    def _allow_shared(self, shared_mem: int) -> None:
        if shared_mem > self._shared_limit:
            raise ArgumentError(
                f"{self.name}: shared_mem is {shared_mem} bytes, this GPU gives a block at most {self._shared_limit}"
                + (f" beside the kernel's {self._static_shared} static ones" if self._static_shared else "")
            )
        with _cupy().cuda.Device(self._device_index):
            self._raw.max_dynamic_shared_size_bytes = self._shared_limit
        self._shared_allowed = self._shared_limit

    def _prefer_shared(self) -> None:
        """All of an SM's memory as shared memory: kernels that ask for other shares of it cannot run beside each other, which is what early ones do.

        Not for kernels that use little of it: what they read again comes out of L1, the rest of that memory.
        """
        with _cupy().cuda.Device(self._device_index):
            self._raw.preferred_shared_memory_carveout = 100
        self._prefers_shared = True


class _ArgumentMemory(threading.local):
    """Where the driver reads a launch's arguments from: one place a thread, laid out once."""

    def __init__(self, sizes: tuple[int, ...], device_index: int):
        _cupy().cuda.runtime.setDevice(device_index)  # a thread that has not used this GPU yet gets its context
        offsets, end = [], 0
        for size in sizes:
            offsets.append(end)
            end += -(-size // 16) * 16
        self._buffer = (ctypes.c_char * max(end, 16))()
        self._view = memoryview(self._buffer).cast("B")
        self._slices = [slice(offset, offset + size) for offset, size in zip(offsets, sizes)]
        start = ctypes.addressof(self._buffer)
        self._pointers = (ctypes.c_void_p * max(len(sizes), 1))(*(start + offset for offset in offsets))
        self._address = ctypes.addressof(self._pointers)

    def fill(self, values: list[bytes]) -> int:
        """Write the arguments and give the address of the array of pointers to them."""
        view = self._view
        for place, value in zip(self._slices, values):
            view[place] = value
        return self._address


@functools.lru_cache(maxsize=256)
def _launch_config(grid, block, shared_mem: int, stream: int, cluster: tuple[int, int, int] | None, early: bool):
    """What cuLaunchKernelEx is told of a launch in clusters, or of one that does not wait for the kernel before."""
    from cuda.bindings import driver

    attributes = []
    if early:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    if cluster is not None:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster
        attributes.append(attribute)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes = shared_mem
    config.hStream = stream
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def _launch_error(kernel: str, what: str, error: Exception | str) -> LaunchError:
    if any(word in str(error) for word in _POISONED):
        return LaunchError(
            f"{kernel}: {what}, because a kernel that ran before has crashed ({error}). This process cannot use the GPU any more: "
            "restart it, and run the kernels under lk.sanitize, on cpu tensors, to find the one that crashed"
        )
    return LaunchError(f"{kernel}: {what}: {error}")


def _cupy():
    try:
        import cupy
    except ImportError as error:
        raise ToolchainError("kernels run on cuda tensors with CuPy, which is missing: pip install 'labkernels[cuda13]'") from error
    return cupy
