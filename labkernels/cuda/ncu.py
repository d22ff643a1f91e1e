"""The same counters from Nsight Compute: a launch repeated on this machine's GPU, in a process of its own, under `ncu`.

    counters = ncu.count(kernel, grid, block, args)     # {"global_load_sectors": 2048, ...}

What `ncu` counted is kept on disk, by kernel, launch, the tensors' contents, GPU and version of `ncu`.
"""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from labkernels.cuda import cache
from labkernels.errors import LaunchError, ToolchainError

# The profile's counters, and what Nsight Compute calls them. `inst_executed` counts instructions whose lanes are all switched off too.
METRICS = {
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared_load_requests": "smsp__inst_executed_op_shared_ld.sum",
    "shared_load_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "shared_load_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_store_requests": "smsp__inst_executed_op_shared_st.sum",
    "shared_store_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
    "shared_store_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda-*/bin/ncu")
_TIME_LIMIT_S = 300


def count(kernel, grid, block, args, shared_mem: int = 0, cluster=None) -> dict[str, int]:
    """What Nsight Compute counts in one launch of `kernel`, under the profile's names.

    Tensors are copied: they stay as they are, on the CPU or on the GPU. Raises ToolchainError where there is no GPU, where `ncu` is
    not installed or may not read the GPU's counters; LaunchError where the launch fails.
    """
    if not torch.cuda.is_available():
        raise ToolchainError("Nsight Compute counts on a GPU, and there is none here; the emulator's counters need none")
    ncu = find_ncu()
    args = tuple(args)
    payload = io.BytesIO()
    launch = {"grid": grid, "block": block, "args": args, "shared_mem": shared_mem, "cluster": cluster}
    torch.save({"source": kernel.source, "name": kernel.name, **launch}, payload)
    shape = [repr(grid), repr(block), shared_mem, *([repr(cluster)] if cluster else [])]
    facts = {"ncu": _version(ncu), "gpu": torch.cuda.get_device_name(), "launch": [*shape, *map(_digest, args)]}

    def run(folder: Path) -> None:
        (folder / "counters.json").write_text(json.dumps(_run(ncu, kernel.name, payload.getvalue())))

    folder = cache.build(cache.key("ncu", kernel.source, name=kernel.name, metrics=METRICS, **facts), run)
    return json.loads((folder / "counters.json").read_text())


def find_ncu() -> str:
    """Where `ncu` is. Raises ToolchainError if it is nowhere."""
    found = shutil.which("ncu") or next((path for pattern in _PLACES for path in sorted(glob.glob(pattern), reverse=True)), None)
    if found is None:
        raise ToolchainError("ncu is not installed: it comes with NVIDIA's CUDA toolkit and as nsight-compute; put it on the PATH")
    return found


def parse(output: str) -> list[tuple[str, dict[str, int]]]:
    """The kernels in the output of `ncu --csv --page raw`, in order of launch, each with its counters under the profile's names.

    Raises ToolchainError if the output has no table, telling why where `ncu` says so.
    """
    start = output.find('"ID"')
    if start < 0:
        raise ToolchainError(_why_not(output))
    head, _units, *rows = csv.reader(io.StringIO(output[start:]))
    kernels = []
    for row in rows:
        values = dict(zip(head, row))
        counters = {name: _number(values[metric]) for name, metric in METRICS.items() if values.get(metric)}
        kernels.append((values["Kernel Name"], counters))
    return kernels


def _run(ncu: str, name: str, payload: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launch.pt"
        path.write_bytes(payload)
        command = [ncu, "--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS.values())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        try:
            finished = subprocess.run(
                [*command, sys.executable, "-m", "labkernels.cuda.ncu", str(path)], env=environment, capture_output=True, text=True,
                errors="replace", timeout=_TIME_LIMIT_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{name}: did not end under ncu within {_TIME_LIMIT_S} s") from None
    output = finished.stdout + finished.stderr
    if finished.returncode and '"ID"' not in finished.stdout and not _refusal(output):
        raise LaunchError(f"{name}: the launch failed under ncu:\n{_tail(output)}")
    kernels = parse(finished.stdout if '"ID"' in finished.stdout else output)
    if len(kernels) != 1:
        raise ToolchainError(f"{name}: ncu saw {len(kernels)} kernels where one was launched")
    return kernels[0][1]


def _launch(path: str) -> None:
    """In the process that ncu watches: launch what was saved at `path` once on the GPU."""
    from labkernels.cuda import Kernel

    saved = torch.load(path, weights_only=False)
    args = tuple(_on_gpu(value) for value in saved["args"])
    kernel = Kernel(saved["source"], saved["name"])
    _ = kernel.signature  # compiled before the counting begins
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    kernel(saved["grid"], saved["block"], args, shared_mem=saved["shared_mem"], cluster=saved["cluster"])
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def _on_gpu(value):
    """A tensor's whole storage copied, so that its strides and its alignment stay."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().cuda()
    return torch.empty(0, dtype=value.dtype, device="cuda").set_(storage, value.storage_offset(), value.shape, value.stride())


def _digest(value) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    contents = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() if value.numel() else b""
    return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.storage_offset()} {hashlib.sha256(contents).hexdigest()}"


@functools.cache
def _version(ncu: str) -> str:
    return subprocess.run([ncu, "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1:][0]


def _number(text: str) -> int:
    return round(float(text.replace(",", "")))


def _refusal(output: str) -> bool:
    return "ERR_NVGPUCTRPERM" in output or "No kernels were profiled" in output or "Failed to" in output


def _why_not(output: str) -> str:
    if "ERR_NVGPUCTRPERM" in output:
        return (
            "ncu may not read this GPU's counters: only administrators may, until the driver is loaded with "
            "NVreg_RestrictProfilingToAdminUsers=0 (https://developer.nvidia.com/ERR_NVGPUCTRPERM); in a container, --cap-add=SYS_ADMIN"
        )
    if "No kernels were profiled" in output:
        return "ncu saw no kernel"
    return f"ncu gave no table:\n{_tail(output)}"


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-6:])


if __name__ == "__main__":
    _launch(sys.argv[1])
