"""`check` in a real notebook, its function in a second process: what cells define goes there, and the notebook outlives it."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests import warm_kernels

SETUP = """
%load_ext labkernels
import functools, os, time, torch
import labkernels as lk
options = {"seeds": [0], "isolated": True, "time_limit_s": 3}
notebook = os.getpid()
"""
KERNEL = """\
%%cuda --name sum_atomic
extern "C" __global__ void sum_atomic(const float* x, float* total, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(total, x[i]);
}
"""
RIGHT = """
@functools.cache
def threads():
    return 64

def helper(x, total):
    sum_atomic(-(-len(x) // threads()), threads(), (x.contiguous(), total, len(x)))

def my_sum(x):
    total = torch.zeros((), device=x.device)
    helper(x, total)
    return total

lk.check("sum", my_sum, **options)
"""
MAGIC = """\
%%check sum isolated=True seeds=[0]
def my_magic_sum(x):
    assert os.getpid() != notebook
    return my_sum(x)
"""
UNNAMED = """\
def broken_sum(x):
    return x.sum() + bias

lk.check("sum", broken_sum, **options)
"""
ENDLESS = """\
def endless_sum(x):
    while len(x) > 300:
        time.sleep(0.01)
    return x.sum()

lk.check("sum", endless_sum, **options)
"""
CRASH = 'lk.check("sum", lambda x: os.abort(), **options)'
REDEFINED = """
def helper(x, total):
    total += 2 * x.sum()

lk.check("sum", my_sum, **options)
"""
STILL_THERE = "print(notebook == os.getpid(), torch.ones(3).sum())"


@pytest.fixture(scope="module")
def outputs(jupyter_path):
    cells = [SETUP, KERNEL, RIGHT, MAGIC, UNNAMED, ENDLESS, CRASH, REDEFINED, STILL_THERE]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with warm_kernels.used(jupyter_path):
        NotebookClient(notebook, timeout=120, allow_errors=True, kernel_name="python3").execute()
    return {cell.source: "\n".join(_text(output) for output in cell.outputs) for cell in notebook.cells}


def _text(output) -> str:
    return "\n".join(output.traceback) if output.output_type == "error" else output.get("text") or output.data.get("text/plain", "")


def test_a_cells_function_with_its_kernel_its_helpers_and_its_globals_passes(outputs):
    assert "sum: 17 cases passed" in outputs[RIGHT]
    assert "cases passed" in outputs[MAGIC]


def test_an_exception_shows_the_line_of_the_cell_and_none_of_the_packages(outputs):
    assert "In[5], line 2: return x.sum() + bias" in outputs[UNNAMED] and "In[5], line 4: lk.check(" in outputs[UNNAMED]
    assert "NameError: name 'bias' is not defined" in outputs[UNNAMED]
    assert "labkernels/" not in outputs[UNNAMED]


def test_an_endless_loop_and_a_crash_fail_their_checks(outputs):
    assert "no result within 3 s" in outputs[ENDLESS] and "this one is unharmed" in outputs[ENDLESS]
    assert "SIGABRT" in outputs[CRASH] and "this one is unharmed" in outputs[CRASH]


def test_a_helper_that_was_defined_anew_is_the_one_that_is_judged(outputs):
    assert "exactly twice the sum" in outputs[REDEFINED]


def test_the_notebook_goes_on(outputs):
    assert outputs[STILL_THERE].strip() == "True tensor(3.)"
