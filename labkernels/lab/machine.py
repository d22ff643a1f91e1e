"""Where kernels run on this machine, and with what: `labkernels info`, and the first lab."""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

from labkernels.errors import ToolchainError


def describe_machine() -> dict[str, str]:
    """What kernels run on and are compiled with here, as names and values to be read by people."""
    import torch

    from labkernels.cuda import cache

    return {
        "kernels run": f"on the GPU, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "in the emulator, no NVIDIA GPU here",
        "CPU cores": str(len(os.sched_getaffinity(0))),
        "C++ compiler": _compiler(),
        "NVRTC": _nvrtc(),
        "Python": f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}",
        "PyTorch": torch.__version__,
        "compiled code": str(cache.root()),
    }


def _compiler() -> str:
    path = shutil.which("g++") or shutil.which("c++")
    if path is None:
        return "missing: the emulator needs g++ (Ubuntu, WSL2: sudo apt install g++)"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return version.splitlines()[0] if version else f"{path} does not run"


def _nvrtc() -> str:
    from labkernels.cuda.compile import nvrtc_version

    try:
        return nvrtc_version()
    except ToolchainError as error:
        return f"missing: {' '.join(str(error).split())}"  # one line, whatever NVIDIA's text has
