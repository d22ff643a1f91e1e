"""The magics, as a notebook runs them: kernels compiled from cells, errors at the cell's own lines, short tracebacks."""
import sys
from types import SimpleNamespace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labkernels.cuda import Kernel
from labkernels.errors import CompileError
from labkernels.lab.failure import CheckFailed

TWICE = """\
extern "C" __global__ void twice(const float* x, float* y, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = F * x[i];
}"""


@pytest.fixture(scope="module")
def module_shell():
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.colors = "nocolor"
    shell.run_line_magic("load_ext", "labkernels")
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(module_shell):
    module_shell.reset(new_session=True)
    module_shell.push({"torch": torch, "x": torch.randn(100), "y": torch.full((100,), torch.nan)})
    return module_shell


@pytest.fixture
def run(shell, capsys):
    """Run a cell as JupyterLab would; the error it raised (or None) and what it showed."""

    def run_cell(cell):
        result = shell.run_cell(cell, store_history=True)
        return result.error_before_exec or result.error_in_exec, capsys.readouterr().out

    return run_cell


def test_cuda_compiles_the_cell_and_puts_its_kernels_into_the_namespace(shell, run):
    error, shown = run(f"%%cuda --name twice -D F=2\n{TWICE}")
    assert error is None
    assert shown.startswith("twice: sm_80 ") and "; sm_90a " in shown and "no spills" in shown
    assert isinstance(shell.user_ns["twice"], Kernel)
    assert run("twice(4, 32, (x, y, 100))")[0] is None
    assert torch.equal(shell.user_ns["y"], 2 * shell.user_ns["x"])


def test_a_kernel_for_hopper_is_reported_for_hopper_and_one_for_no_gpu_says_so(run):
    waits = '#include "mbarrier.cuh"\n__global__ void f() { __shared__ Mbarrier b; mbarrier_init(&b, 1); mbarrier_wait(&b, 1); }'
    assert run(f"%%cuda\n{waits}")[1].startswith("f: sm_90a ") and run(f"%%cuda\n{waits}")[1].rstrip().endswith("no spills (for no older GPU)")
    assert "f: does not compile for a GPU" in run("%%cuda\n#include <vector>\n__global__ void f() { std::vector<int> numbers(3); }")[1]


def test_without_a_name_every_kernel_of_the_cell_is_taken_and_templates_by_their_instantiation(shell, run):
    second = TWICE.replace("twice", "thrice").replace("F *", "(F + 1) *")
    assert run(f"%%cuda -D F=2\n{TWICE}\n{second}")[0] is None
    assert {shell.user_ns["twice"].name, shell.user_ns["thrice"].name} == {"twice", "thrice"}
    template = "template <class T, int N> __global__ void fill(T* x) { x[threadIdx.x] = N; }"
    assert run(f"%%cuda --name 'fill<float, 7>'\n{template}")[0] is None
    run("fill(1, 100, (x,))")
    assert torch.equal(shell.user_ns["x"], torch.full((100,), 7.0))


def test_a_definition_may_take_a_python_value(shell, run):
    shell.push({"factor": 5})
    assert run(f"%%cuda -D F={{factor}}\n{TWICE}")[0] is None
    run("twice(4, 32, (x, y, 100))")
    assert torch.equal(shell.user_ns["y"], 5 * shell.user_ns["x"])


def test_a_compile_error_names_the_cell_and_its_line_as_jupyterlab_counts_them(shell, run):
    number = shell.execution_count
    error, shown = run(f"%%cuda -D F=2\n{TWICE.replace('F * x[i]', 'F * z[i]')}")
    assert isinstance(error, CompileError)
    assert f"In[{number}], line 4: " in shown and "z" in shown    # line 1 is the magic's
    assert "Traceback" not in shown and "run_cell_magic" not in shown and len(shown.splitlines()) < 12


def test_a_cell_that_does_not_compile_leaves_no_earlier_kernel_behind(run):
    assert run(f"%%cuda -D F=2\n{TWICE}")[0] is None
    assert isinstance(run(f"%%cuda -D F=2\n{TWICE}\n#error Your turn")[0], CompileError)
    error, shown = run("twice(4, 32, (x, y, 100))")
    assert isinstance(error, CompileError)
    assert "twice was not compiled" in shown and "Your turn" in shown and len(shown.splitlines()) < 5
    assert "not compiled" in run("twice")[1]


@pytest.mark.parametrize(
    "cell, message",
    [
        ("%%cuda\nint f() { return 1; }", "no __global__ function"),
        ("%%cuda --name f<1> --name f<2>\nint a;", "two kernels would have one name"),
        ("%%cuda -D 2=F\nint a;", "write KEY=VALUE"),
        ("%%check softmax\nx = 1", "the cell defines no function"),
        ("%%check\ndef f(x): return x", "write %%check, an operation"),
        ("%sanitize x + y", "write a launch"),
        ("%profile twice", "%profile: write a launch"),
        ("%bench", "write an operation"),
    ],
)
def test_a_magic_used_wrongly_says_how_it_is_used(run, capsys, cell, message):
    error, shown = run(cell)
    assert type(error).__name__ == "UsageError" and message in str(error)


def test_check_judges_the_last_function_of_the_cell(run):
    error, shown = run("%%check softmax\ndef helper(x):\n    return x.exp()\n\ndef mine(x):\n    return torch.softmax(x, -1)")
    assert error is None and "cases passed" in shown
    error, shown = run("%%check softmax\ndef mine(x):\n    return torch.softmax(x, 0)")
    assert isinstance(error, CheckFailed) and error.reason == "mismatch"
    assert "mismatch at row" in shown and "labkernels/lab/check.py" not in shown


def test_check_takes_what_its_function_takes(run):
    mine = "def mine(x):\n    return torch.softmax(x, -1)"
    every = run(f"%%check softmax\n{mine}")[1]
    error, some = run(f"%%check softmax seeds=[0] dtypes=['float32'] isolated=False\n{mine}")
    cases = [int(shown.split()[1]) for shown in (every, some)]
    assert error is None and cases[0] == 4 * cases[1]
    error, _ = run(f"%%check softmax float32\n{mine}")
    assert type(error).__name__ == "UsageError" and "name=value" in str(error)


@pytest.mark.parametrize("where", ["", " isolated=True"])
def test_an_error_in_the_cells_own_function_is_shown_at_its_line(shell, run, where):
    number = shell.execution_count
    error, shown = run(f"%%check softmax{where}\ndef mine(x):\n    total = x.sum()\n    return x / totl")
    assert error.reason == "exception"
    assert f"In[{number}], line 4: return x / totl" in shown
    assert "labkernels/" not in shown


def test_profile_runs_one_launch_and_gives_its_counters(shell, run):
    run(f"%%cuda -D F=2\n{TWICE}")
    error, shown = run("p = %profile twice(4, 32, (x, y, 100), l2_bytes=4096)")
    assert error is None and shown == ""
    p = shell.user_ns["p"]
    assert (p.global_load_requests, p.global_load_bytes, p.l2_bytes) == (4, 400, 4096)
    line = p.by_line.set_index("line").loc[4]
    assert line["text"] == "if (i < count) y[i] = F * x[i];" and line["global_load_sectors"] == p.global_load_sectors == 13


def test_sanitize_runs_one_launch_and_gives_its_report(shell, run):
    run(f"%%cuda -D F=2\n{TWICE.replace('i < count', 'i <= count')}")
    error, shown = run("report = %sanitize twice(4, 32, (x, y, 100))")
    assert error is None
    assert shell.user_ns["report"].findings[0].kind == "out_of_bounds"


def test_bench_passes_names_functions_and_sizes_on(shell, run, monkeypatch):
    seen = []
    fake = SimpleNamespace(bench=lambda *given, **sweep: seen.append((given, sweep)))
    monkeypatch.setitem(sys.modules, "labkernels.lab.bench", fake)
    run("def mine(x): return x")
    assert run("%bench softmax v2_online mine cols=256,8192 rows=64")[0] is None
    assert seen == [(("softmax", ["v2_online", shell.user_ns["mine"]]), {"cols": [256, 8192], "rows": [64]})]
