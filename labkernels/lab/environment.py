"""Where and with what a figure was measured: the columns that every recorded row carries."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]


@cache
def environment() -> dict[str, str]:
    """`gpu, driver, cuda, torch, commit, date` of this process; needs a GPU."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] or "unknown",
        "cuda": torch.version.cuda or "unknown",
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def commit() -> str:
    """The commit of this package: LABKERNELS_COMMIT where it is set, as on a machine that got a copy of the files; else from the repository, with
    a `+` when files differ from it; else `unknown`."""
    if named := os.environ.get("LABKERNELS_COMMIT"):
        return named
    if (REPOSITORY / ".git").exists():
        name = _output_of("git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD")
        if name:
            return name + ("+" if _output_of("git", "-C", str(REPOSITORY), "status", "--porcelain", "--", "labkernels") else "")
    return "unknown"


def _output_of(*command: str) -> str:
    """What a program prints, or nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""
