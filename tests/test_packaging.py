"""One list of dependencies: pyproject.toml says what is needed, and environment.yml, the imports and the machine agree."""
from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["optional-dependencies"]
PEERS = {"bitsandbytes", "flashinfer", "gemlite", "liger_kernel", "torchao", "transformers"}  # measured where somebody has installed them; imported inside of a function

NAMED_OTHERWISE = {"pynvml": "nvidia-ml-py"}


def requirements(*extras: str) -> list[Requirement]:
    return [Requirement(line) for lines in (PROJECT["dependencies"], *map(EXTRAS.__getitem__, extras)) for line in lines]


def imported_packages(file: Path) -> set[str]:
    """Top-level packages that a Python file imports; standard library, labkernels itself and other people's kernels left out."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"labkernels", "tests", "docs", "__future__"} - PEERS


def undeclared(folder: Path, declared: list[Requirement]) -> dict[str, str]:
    """Imports in `folder` that no declared distribution provides: name -> the first file that has it."""
    distributions = packages_distributions()
    known = {canonicalize_name(requirement.name) for requirement in declared}
    missing = {}
    sources = [file for file in sorted(folder.rglob("*.py")) if "\n# %%" not in file.read_text(encoding="utf-8")]   # no labs
    for file in sources:
        for name in imported_packages(file):
            provided_by = {canonicalize_name(each) for each in distributions.get(name, [])}
            if not provided_by:                              # not installed here: cupy, for one, comes as cupy-cuda13x
                provided_by = {NAMED_OTHERWISE[name]} if name in NAMED_OTHERWISE else {each for each in known if each == name or each.startswith(f"{name}-")}
            if not provided_by & known:
                missing.setdefault(name, str(file.relative_to(ROOT)))
    return missing


def test_conda_brings_python_a_compiler_and_nothing_that_pyproject_lists():
    conda = [line for line in CONDA["dependencies"] if isinstance(line, str)]
    assert {re.match(r"[a-z-]+", line)[0] for line in conda} == {"python", "pip", "cxx-compiler"}
    python = next(line for line in conda if line.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_this_package_with_one_gpu_extra_and_all_else_that_make_installs():
    [pip] = [line["pip"] for line in CONDA["dependencies"] if isinstance(line, dict)]
    [line] = pip
    conda_extras = set(re.fullmatch(r"-e \.\[(.*)\]", line)[1].split(","))
    make_extras = set(re.search(r"-e '\.\[\$\(EXTRA\),(.*)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))[1].split(","))
    assert conda_extras - make_extras == {"cuda13"}
    assert make_extras - conda_extras == set()
    assert conda_extras <= EXTRAS.keys()


def test_the_package_imports_only_what_it_declares():
    declared = requirements("cpu", "cuda12", "cuda13")
    assert undeclared(ROOT / "labkernels", declared + requirements("classroom", "onnx", "serve", "train")) == {}


def test_other_peoples_kernels_are_imported_nowhere_at_the_top():
    tops = [node for file in (ROOT / "labkernels").rglob("*.py") for node in ast.parse(file.read_text(encoding="utf-8")).body]
    names = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tops if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.split(".")[0] for name in names} & PEERS == set()


def test_the_tests_import_only_what_is_declared():
    assert undeclared(ROOT / "tests", requirements(*EXTRAS)) == {}


def test_each_folder_needs_only_what_its_extra_brings():
    own = {"classroom": ("classroom",), "llm": ("onnx", "serve", "train")}
    folders = [path for path in (ROOT / "labkernels").iterdir() if path.is_dir()]
    needed = {folder.name: undeclared(folder, requirements("cpu", "cuda12", "cuda13", *own.get(folder.name, ()))) for folder in folders}
    assert {folder: names for folder, names in needed.items() if names} == {}


@pytest.mark.parametrize("requirement", requirements("classroom", "test"), ids=str)
def test_what_is_installed_is_what_pyproject_asks_for(requirement):
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        pytest.fail(f"{requirement} is not installed")
    assert requirement.specifier.contains(installed, prereleases=True)


def test_numpy_stays_where_numba_cuda_works():
    bounds = {requirement.name: requirement.specifier for requirement in requirements()}
    assert not bounds["numba-cuda"].contains("0.31.0"), "a newer numba-cuda: see whether its NumPy bound can go"
    assert bounds["numpy"].contains("2.4.6") and not bounds["numpy"].contains("2.5.0")


def test_each_gpu_extra_takes_a_torch_for_its_cuda():
    torch = {extra: SpecifierSet(",".join(str(each.specifier) for each in requirements(extra) if each.name == "torch"))
             for extra in ("cpu", "cuda12", "cuda13")}
    assert torch["cuda12"].contains("2.10.0") and not torch["cuda12"].contains("2.11.0")
    assert torch["cuda13"].contains("2.11.0") and not torch["cuda13"].contains("2.10.0")
    assert torch["cpu"].contains("2.13.0")
