"""The Makefile on machines of every kind, played by small programs that take the places of Python, pip and nvidia-smi."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = ["help", "lab", "test", "book", "bench", "gpu-test", "gpu-sanitize", "browser-test"]

# Stands for `python3` and for the environment's python: logs its arguments, "creates" environments, says it is new enough.
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c import sys;"*) exit ${OLD_PYTHON:-0} ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit ;;
esac
echo "$*" >> calls.log
case "$*" in *"pip install --no-compile -e"*) exit ${PIP_STATUS:-0} ;; *" ${BROKEN:-nothing} "*) exit 1 ;; esac
"""
NVIDIA_SMI = """#!/bin/sh
[ -n "$CUDA" ] || exit 9
echo "| NVIDIA-SMI 580.1    Driver Version: 580.1    CUDA Version: $CUDA     |"
"""


@pytest.fixture
def machine(tmp_path):
    """A folder with the Makefile and stand-ins; gives `make(*arguments, **environment) -> CompletedProcess`."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("python3", PYTHON), ("nvidia-smi", NVIDIA_SMI), ("g++", "#!/bin/sh\n")):
        program = tmp_path / "programs" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS")) and name != "CXX"}
    for name in ("PYTHON", "EXTRA", "TORCH", "VENV", "OUT", "BOOK", "FLAGS"):
        inherited.pop(name, None)

    def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
        return subprocess.run(["make", *arguments], cwd=tmp_path, env=inherited | {"PATH": path} | environment,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)

    return make


def calls(folder: Path) -> list[str]:
    """What was asked of Python since the last look."""
    log = folder / "calls.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_make_alone_lists_every_target(machine):
    listed = [line.split()[1] for line in machine().stdout.splitlines()]
    assert listed == TARGETS


@pytest.mark.parametrize("cuda, extra", [("", "cpu"), ("11.8", "cpu"), ("12.4", "cuda12"), ("13.0", "cuda13"), ("14.1", "cuda13")])
def test_the_driver_decides_what_is_installed(machine, tmp_path, cuda, extra):
    assert machine("test", CUDA=cuda).returncode == 0
    installs = [line for line in calls(tmp_path) if "pip install" in line]
    assert installs[-1] == f"-m pip install --no-compile -e .[{extra},classroom,onnx,serve,test]"
    assert (len(installs) == 2 and "torch==" in installs[0]) == (extra == "cpu")


def test_the_environment_is_built_once_and_again_when_pyproject_changes(machine, tmp_path):
    machine("test")
    assert any("pip install" in line for line in calls(tmp_path))
    machine("test")
    assert calls(tmp_path) == ["-m pytest -n 2 --dist worksteal"]
    stamp = (tmp_path / ".venv" / ".installed").stat().st_mtime
    os.utime(tmp_path / "pyproject.toml", (stamp + 10, stamp + 10))
    machine("test")
    assert any("pip install" in line for line in calls(tmp_path))


def test_an_installation_that_broke_off_is_not_trusted(machine, tmp_path):
    broken = machine("test", PIP_STATUS="1")
    assert broken.returncode != 0
    assert "-m pytest -n 2 --dist worksteal" not in calls(tmp_path)
    machine("test")
    assert calls(tmp_path)[-2:] == ["-m pip install --no-compile -e .[cpu,classroom,onnx,serve,test]", "-m pytest -n 2 --dist worksteal"]


def test_an_old_python_is_refused_with_the_way_out(machine, tmp_path):
    refused = machine("lab", OLD_PYTHON="1")
    assert refused.returncode != 0
    assert "Python 3.11 or newer" in refused.stderr and "PYTHON=" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_missing_compiler_is_named(machine, tmp_path):
    refused = machine("lab", CXX="no-such-compiler")
    assert refused.returncode != 0
    assert "C++ compiler" in refused.stderr and "no-such-compiler" in refused.stderr


def test_without_an_environment_the_machines_own_python_runs_the_gpu_tests(machine, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_on_gpu.py").write_text("@pytest.mark.gpu")
    (tmp_path / "tests" / "test_needs_jupyter.py").write_text("import nbformat")
    ended = machine("gpu-test", "VENV=", "OUT=out")
    assert ended.returncode == 0 and "Passed" in ended.stdout.splitlines()[-1]
    seen = calls(tmp_path)
    assert [line for line in seen if "install" in line] == []
    assert seen[-2:] == ["-m pytest -m gpu tests/test_on_gpu.py", "-m labkernels bench --record out"]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("broken", ["pytest", "bench"])
def test_the_gpu_run_fails_when_its_tests_or_its_benchmark_do(machine, tmp_path, broken):
    (tmp_path / "tests").mkdir()
    ended = machine("gpu-test", "VENV=", "OUT=out", BROKEN=broken)
    assert ended.returncode != 0 and "FAILED" in ended.stdout.splitlines()[-1]
    assert len(calls(tmp_path)) == 3
