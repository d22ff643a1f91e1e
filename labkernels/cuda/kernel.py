"""`Kernel`: one `__global__` function of a CUDA C++ source, ready to be launched where its arguments live."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from labkernels.cuda import gpu
from labkernels.cuda.arguments import ArgumentPacker
from labkernels.cuda.cluster import MAX_CLUSTER_BLOCKS, cluster_shape
from labkernels.cuda.compile import DEFAULT_ARCH, Cubin, base_name, compile_kernel
from labkernels.cuda.occupancy import MAX_THREADS_PER_BLOCK
from labkernels.cuda.resources import Resources, read_resources
from labkernels.cuda.signature import Parameter, parse_signature
from labkernels.cuda.source import Source
from labkernels.errors import ArgumentError

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)


class Kernel:
    """One kernel of a CUDA C++ source.

        scale = Kernel(\"\"\"
            extern "C" __global__ void scale(float* x, float factor, int n) {
                int i = blockIdx.x * blockDim.x + threadIdx.x;
                if (i < n) x[i] *= factor;
            }\"\"\", "scale")
        scale(grid=4, block=256, args=(x, 2.0, x.numel()))

    `source` is CUDA C++ text, the path of a file, or a `Source`. `name` is the function's, or a template's instantiation such as
    `"copy<float, 4>"`. `defines` are preprocessor definitions. `filename` and `first_line` are what messages call the source.
    Nothing is compiled before the kernel is used; what is compiled is kept on disk.

    Raises ArgumentError if a file cannot be read or the name is empty.
    """

    def __init__(
        self,
        source: str | Path | Source,
        name: str,
        defines: Mapping[str, object] | None = None,
        filename: str | None = None,
        first_line: int = 1,
    ):
        if not isinstance(name, str) or not base_name(name):
            raise ArgumentError(f"a kernel's name is the name of a __global__ function, got {name!r}")
        self.name = name.strip()
        self.source = _source(source, defines, filename, first_line)
        self._cubins: dict[str, Cubin] = {}
        self._loaded: dict[int, gpu.LoadedKernel] = {}
        self._interface: _Interface | None = None

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence,
        shared_mem: int = 0,
        cluster: int | Sequence[int] | None = None,
        early: bool = False,
    ) -> None:
        """Launch `grid` blocks of `block` threads each: on the GPU for `cuda` tensors, in the emulator for `cpu` tensors.

        `grid` and `block` are ints or up to three of them. `args` are tensors, None for a null pointer, and Python numbers: see
        labkernels.cuda.arguments. `shared_mem` is dynamic shared memory in bytes a block. `cluster` is how many blocks along each
        axis run together as a cluster (sm_90), at most 8 in all, where the kernel has no `__cluster_dims__`. On a GPU the launch goes
        to torch's current stream and does not wait. Without any tensor it runs on the GPU if there is one.

        `early` lets it begin before the kernel launched before it on the stream has ended (programmatic dependent launch, sm_90): all that it
        may not do before that stands behind its grid_dependency_wait() (include/fence.cuh). Elsewhere it is a launch like any other.

        Raises ArgumentError before the launch if it cannot work; CompileError if the source does not compile; LaunchError.
        """
        grid, block, shared_mem = self._checked(grid, block, args, shared_mem)
        device = self._device(args)
        if device.type == "cuda":
            loaded = self._loaded.get(device.index) or self._load(device.index)
            if cluster is not None or loaded.cluster is not None:
                shape = self._cluster(grid, cluster, loaded.cluster)
                cluster = None if loaded.cluster else shape
            loaded.launch(grid, block, loaded.pack(args, device), shared_mem, cluster, early)
        else:
            from labkernels.cuda import emulator

            known = self._known(emulator.compiled_as())
            emulator.run(self, grid, block, args, known.packer(args, device), shared_mem, self._cluster(grid, cluster, known.cluster))

    def prepare(self, grid, block, args: Sequence, shared_mem: int = 0, cluster=None, mode=None) -> tuple[tuple, tuple, list[bytes], tuple]:
        """Grid and block as triples, the arguments' bytes, and the cluster, as the emulator takes them.

        If the kernel has not been compiled yet it is now, in `mode`: None is that of a launch that nobody watches. Raises as a launch
        on CPU tensors does.
        """
        grid, block, _ = self._checked(grid, block, args, shared_mem)
        known = self._known(mode)
        return grid, block, known.packer(args, torch.device("cpu")), self._cluster(grid, cluster, known.cluster)

    @property
    def signature(self) -> tuple[Parameter, ...]:
        """The kernel's parameters, as the compiler sees them: NVRTC where there is a GPU, else the emulator's C++ compiler."""
        return self.compiled().signature if torch.cuda.is_available() else self._known().packer.parameters

    def resources(self, arch: str | None = None) -> Resources:
        """Registers, shared memory and spills on `arch`, like `"sm_80"`; without it, on this machine's GPU, or sm_90.

        Needs no GPU. Raises CompileError; ArgumentError for an architecture that NVRTC does not know.
        """
        return read_resources(self.compiled(arch), self.name)

    def compiled(self, arch: str | None = None) -> Cubin:
        """The machine code for `arch`, as for `resources`. Raises as it does."""
        arch = arch or self._gpu_arch
        if arch not in self._cubins:
            self._cubins[arch] = compile_kernel(self.source, self.name, arch)
        return self._cubins[arch]

    def __reduce__(self):
        return type(self), (self.source, self.name)  # what was compiled is on disk, what was loaded belongs to this process

    def __repr__(self) -> str:
        return f"<Kernel {self.name} of {self.source.filename}>"

    def _checked(self, grid, block, args, shared_mem) -> tuple[tuple, tuple, int]:
        """Grid and block as triples, and shared_mem, if a launch can have them and if `args` is a tuple or a list."""
        grid = _shape(self.name, "grid", grid, MAX_GRID)
        block = _shape(self.name, "block", block, MAX_BLOCK)
        threads = block[0] * block[1] * block[2]
        if threads > MAX_THREADS_PER_BLOCK:
            raise ArgumentError(f"{self.name}: block {block} has {threads} threads, a block has at most {MAX_THREADS_PER_BLOCK}")
        shared_mem = _integer(self.name, "shared_mem", shared_mem)
        if shared_mem < 0:
            raise ArgumentError(f"{self.name}: shared_mem is a number of bytes, got {shared_mem}")
        if not isinstance(args, tuple | list):
            raise ArgumentError(f"{self.name}: args is a tuple of arguments, got one {type(args).__name__}; write (x,) for one")
        return grid, block, shared_mem

    def _cluster(self, grid: tuple, cluster, declared: tuple | None) -> tuple[int, int, int]:
        asked = None if cluster is None else _shape(self.name, "cluster", cluster, (MAX_CLUSTER_BLOCKS,) * 3)
        return cluster_shape(self.name, grid, asked, declared)

    def _device(self, args: Sequence) -> torch.device:
        for position, value in enumerate(args):
            value = getattr(value, "tensor", value)  # of a tensor map
            if isinstance(value, torch.Tensor):
                if value.device.type not in ("cpu", "cuda"):
                    raise ArgumentError(f"{self.name}: args[{position}] is on {value.device}; kernels run on cuda and cpu tensors")
                return value.device
        return torch.device("cuda", torch.cuda.current_device()) if gpu.available() else torch.device("cpu")

    def _load(self, index: int) -> gpu.LoadedKernel:
        loaded = gpu.LoadedKernel(self.compiled(gpu.arch(index)), self.name, index)
        self._loaded[index] = loaded
        return loaded

    @functools.cached_property
    def emulated(self):
        """The kernel as the emulator's library, an `EmulatedKernel`. Raises CompileError, ToolchainError."""
        from labkernels.cuda import emulator

        return emulator.build(self.source, self.name)

    def _known(self, mode=None) -> _Interface:
        """How the emulator calls the kernel, by the first library of it that was made, whichever; if none was, one is made in `mode`."""
        if self._interface is None:
            from labkernels.cuda import emulator

            library = emulator.build(self.source, self.name, mode) if mode else self.emulated
            names = self.source.kernels().get(base_name(self.name))
            parameters = parse_signature(library.signature, names, library.parameter_sizes)
            self._interface = _Interface(ArgumentPacker(self.name, parameters), library.cluster)
        return self._interface

    @property
    def _gpu_arch(self) -> str:
        return gpu.arch(torch.cuda.current_device()) if torch.cuda.is_available() else DEFAULT_ARCH


class _Interface(NamedTuple):
    packer: ArgumentPacker
    cluster: tuple[int, int, int] | None  # of `__cluster_dims__`


def _source(source: str | Path | Source, defines: Mapping | None, filename: str | None, first_line: int) -> Source:
    if isinstance(source, Source):
        if defines or filename:
            raise ArgumentError("a Source has its own defines and filename; give them to it")
        return source
    if isinstance(source, Path) or (isinstance(source, str) and "\n" not in source and "{" not in source):
        return Source.from_file(source, defines=defines, filename=filename, first_line=first_line)
    if not isinstance(source, str):
        raise ArgumentError(f"a kernel's source is CUDA C++ text or the path of a file, got {type(source).__name__}")
    return Source.from_text(source, defines=defines, filename=filename, first_line=first_line)


def _shape(kernel: str, what: str, value: int | Sequence[int], limits: tuple[int, int, int]) -> tuple[int, int, int]:
    """`value` as three ints, each at least 1 and within its limit."""
    if type(value) is int and 1 <= value <= limits[0]:
        return value, 1, 1
    given = value if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(given) <= 3:
        raise ArgumentError(f"{kernel}: {what} is an int or up to three of them, got {value!r}")
    sizes = tuple(_integer(kernel, what, size) for size in (*given, 1, 1)[:3])
    for axis, size, limit in zip("xyz", sizes, limits):
        if not 1 <= size <= limit:
            empty = " (an empty tensor? then there is nothing to launch)" if size == 0 and what == "grid" else ""
            raise ArgumentError(f"{kernel}: {what} {value!r}: {axis} must be 1 to {limit}, got {size}{empty}")
    return sizes


def _integer(kernel: str, what: str, value) -> int:
    if type(value) is int:
        return value
    if isinstance(value, float):
        raise ArgumentError(f"{kernel}: {what} is made of ints, got {value!r} (// divides ints without making a float)")
    if isinstance(value, bool | torch.Tensor) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{kernel}: {what} is made of ints, got {value!r}")
    return operator.index(value)
