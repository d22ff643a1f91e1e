"""PTX and SASS of a kernel with the source line beside, `?` help and completion of the magics."""

import re
import shutil
import subprocess

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labkernels.cuda import Kernel, sass
from labkernels.cuda.listing import make_listing
from labkernels.cuda.ptx import ptx_listing
from labkernels.cuda.source import Source
from labkernels.errors import CompileError, ToolchainError

CELL = """\
#include "warp.cuh"
template <class T>
__global__ void scale(T* x, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = warp_sum(x[i]) * factor;
}"""
SCALE = Kernel(CELL, "scale<float>", filename="In[3]", first_line=2)
needs_nvdisasm = pytest.mark.skipif(
    not shutil.which("nvdisasm") and not pytest.importorskip("cuda.pathfinder").find_nvidia_binary_utility("nvdisasm"),
    reason="needs nvdisasm (pip install nvidia-cuda-nvdisasm)",
)


@pytest.fixture(scope="module")
def shell():
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.colors = "nocolor"
    shell.run_line_magic("load_ext", "labkernels")
    shell.push({"scale": SCALE, "number": 3})
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_ptx_stands_beside_the_line_it_comes_from_and_inlined_code_beside_its_call(arch):
    listing = ptx_listing(SCALE, arch)
    assert listing.title == f"scale<float>: PTX for {arch}"
    assert any("%tid.x" in text for text in listing.of_line(5))
    assert any(text.split()[0].startswith("setp.ge") for text in listing.of_line(6))
    shuffles = [text for text in listing.instructions if "shfl.sync.bfly" in text]
    assert len(shuffles) == 5 and [text for text in listing.of_line(7) if "shfl.sync.bfly" in text] == shuffles
    assert any("st.global.f32" in text for text in listing.of_line(7))
    assert not any(".loc" in text for text in listing.instructions)


@needs_nvdisasm
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_sass_stands_beside_the_line_it_comes_from_and_inlined_code_beside_its_call(arch):
    listing = sass.sass_listing(SCALE, arch)
    assert listing.title == f"scale<float>: SASS for {arch}"
    assert any("SR_TID.X" in text for text in listing.of_line(5))
    assert sum("SHFL.BFLY" in text for text in listing.of_line(7)) >= 5
    assert any(text.startswith("STG.E") for text in listing.of_line(7))
    assert listing.instructions[-1] != "NOP" and any("EXIT" in text for text in listing.instructions)
    jumps = {label for text in listing.instructions for label in re.findall(r"`\((\.L_\w+)\)", text)}
    assert jumps <= {text.rstrip(":") for text in listing.instructions}


def test_definitions_reach_the_ptx():
    kernel = Kernel('extern "C" __global__ void f(int* x) { *x = VALUE; }', "f", defines={"VALUE": 4711})
    assert any("4711" in text for text in ptx_listing(kernel).instructions)


def test_a_listing_shows_each_source_line_once_a_passage():
    source = Source("a < b\nc", "In[1]", first_line=2)
    listing = make_listing("f: SASS", source, [(None, "X"), (2, "ONE"), (2, "TWO"), (3, "THREE"), (2, "FOUR")])
    assert repr(listing).splitlines() == ["f: SASS", "              X", "    2  a < b  ONE", "              TWO", "    3  c      THREE", "    2  a < b  FOUR"]
    shown = listing._repr_html_()
    assert shown.count("a &lt; b") == 2 and "ONE\nTWO" in shown and "aria-label='f: SASS'" in shown


def test_the_magics_take_a_kernel_and_an_architecture(shell):
    listing = shell.run_line_magic("ptx", "scale --arch sm_80")
    assert listing.title == "scale<float>: PTX for sm_80" and listing.instructions


@pytest.mark.parametrize("line, said", [("number", "number is int"), ("missing", "there is no missing")])
@pytest.mark.parametrize("magic", ["ptx", "sass"])
def test_what_is_no_kernel_is_refused_by_name(shell, capsys, magic, line, said):
    result = shell.run_cell(f"%{magic} {line}")
    assert type(result.error_in_exec).__name__ == "UsageError" and f"%{magic}: {said}; write the name of a kernel" in str(result.error_in_exec)


def test_a_kernel_whose_cell_did_not_compile_says_so(shell):
    shell.run_cell("%%cuda --name broken\n__global__ void broken(int* x) { *x = y; }")
    assert isinstance(shell.run_cell("%ptx broken").error_in_exec, CompileError)


def test_a_source_that_does_not_compile_is_shown_as_everywhere():
    with pytest.raises(CompileError, match="In\\[4\\], line 2"):
        ptx_listing(Kernel("__global__ void f(int* x) {\n    *x = y; }", "f", filename="In[4]"))


def test_without_nvdisasm_its_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("cuda.pathfinder.find_nvidia_binary_utility", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="pip install nvidia-cuda-nvdisasm"):
        sass.sass_listing(SCALE)


def test_an_nvdisasm_that_does_not_know_the_architecture_is_quoted(monkeypatch):
    refusal = subprocess.CompletedProcess([], 1, "", "nvdisasm fatal : unknown architecture\n")
    monkeypatch.setattr(sass, "nvdisasm", lambda: "nvdisasm")
    monkeypatch.setattr(sass.subprocess, "run", lambda *args, **kwargs: refusal)
    with pytest.raises(ToolchainError, match="cannot read scale<float> for sm_90a: nvdisasm fatal : unknown architecture"):
        sass.sass_listing(SCALE, "sm_90a")


@pytest.mark.parametrize(
    "magic, said", [("%%cuda", "--define"), ("%ptx", "--arch"), ("%sass", "--arch"), ("%sanitize", "sanitizer"), ("%bench", "seq_len="), ("%%check", "judge")]
)
def test_a_question_mark_tells_how_a_magic_is_used(shell, capsys, magic, said):
    shell.run_cell(f"{magic}?")
    shown = capsys.readouterr().out
    assert said in shown or said == "judge" and "check the function that it defines last" in shown.lower()


@pytest.mark.filterwarnings("ignore::IPython.core.completer.ProvisionalCompleterWarning")
def test_magics_and_the_kernels_they_take_are_completed(shell):
    for begun, meant in (("%sa", "%sass"), ("%pt", "%ptx"), ("%%cu", "%%cuda"), ("%%che", "%%check")):
        assert meant in [each.text for each in shell.Completer.completions(begun, len(begun))]
    for line in ("%ptx sca", "%sass sca"):
        assert [each.text for each in shell.Completer.completions(line, len(line))] == ["scale"]
