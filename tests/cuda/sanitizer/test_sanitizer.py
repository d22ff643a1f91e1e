"""The sanitizer finds each mistake of the corpus for its own reason, and is silent about each correction."""

import re
import time
from pathlib import Path

import pytest
import torch

from labkernels.cuda import Kernel, isolated, sanitize, sanitizing
from labkernels.errors import ArgumentError, CompileError, LaunchError, SanitizerError
from tests.cuda.sanitizer.corpus import CLEAN, KINDS, PAIRS, Example

EXAMPLE = {example.name: example for example in PAIRS + CLEAN}
REPORTS = {}  # the first one of each bad kernel, by its path


def each(examples):
    return pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in examples])


def copied(values: dict[str, object]) -> dict[str, object]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def sanitized(example: Example, kernel: str, values: dict[str, object] | None = None, **options):
    launch = example.launch(kernel)
    values = launch.values() if values is None else values
    if example.expect == "timeout" and kernel == "bad":
        options.setdefault("time_limit_s", 1)
    arguments = tuple(values.values())
    return sanitize(Kernel(example.path, kernel), launch.grid, launch.block, arguments, shared_mem=launch.shared_mem, **options)


def first_report(example: Example):
    """Of this kernel in this process: that of the test above if it ran here."""
    if example.path not in REPORTS:
        REPORTS[example.path] = sanitized(example, "bad")
    return REPORTS[example.path]


def listed(report) -> str:
    return "\n".join(f"{f.kind}, line {f.line}, block {f.block}, array {f.array}[{f.index}]: {f.text}" for f in report.findings)


@each(PAIRS)
def test_bad_is_found_for_its_reason(example):
    values = example.launch("bad").values()
    before = copied(values)
    report = REPORTS[example.path] = sanitized(example, "bad", values)
    assert not report.clean and report.findings
    assert {finding.kind for finding in report.findings} == {example.expect}, listed(report)
    first = report.findings[0]
    assert Path(first.file).name == example.path.name
    assert first.line in example.culprits, listed(report)
    assert first.kernel == "bad"
    if example.field("array"):
        assert first.array == example.field("array"), listed(report)
    if example.field("index"):
        assert first.index == int(example.field("index")), listed(report)
    if example.field("block"):
        assert str(first.block) == example.field("block"), listed(report)
    if example.field("threads"):
        assert example.field("threads") in map(str, first.threads), listed(report)
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(values[name], value), f"{name} was changed, and write_back was not asked for"


@each(PAIRS + CLEAN)
def test_good_is_clean_and_right(example):
    values = example.launch("good").values()
    expected = example.expected_results(values)
    report = sanitized(example, "good", values, write_back=True)
    assert report.clean and not report.findings, listed(report)
    for name, result in expected.items():
        torch.testing.assert_close(values[name], result)


# ---- what a report says ---------------------------------------------------------------------------------------------


def test_a_finding_names_kernel_block_thread_array_index_and_line():
    example = EXAMPLE["grid_stride_off_by_one"]
    report = sanitized(example, "bad")
    finding, (line,) = report.findings[0], example.culprits
    for shown in (str(report), report._repr_html_(), repr(finding)):
        assert "bad" in shown and "grid_stride_off_by_one.cu" in shown
        assert re.search(r"\by\b", shown) and re.search(r"\b100\b", shown)
        assert re.search(rf"\b{line}\b", shown)
    assert re.search(r"block\W{0,3}1\b", str(report)) and re.search(r"thread\W{0,3}4\b", str(report))


@each([e for e in PAIRS if e.expect != "timeout"])
def test_a_report_is_the_same_twice(example):
    """A timeout's is not: where a thread was at that moment is left to chance. Nor is an address that belongs to no array."""

    def shown(report) -> list[str]:
        return [re.sub(r"0x[0-9a-f]{6,}", "ADDRESS", text) for text in (repr(report.findings), str(report), report._repr_html_())]

    assert shown(first_report(example)) == shown(sanitized(example, "bad"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_each_kind_shows_as_text_and_html(kind):
    example = next(e for e in PAIRS if e.expect == kind)
    report = sanitized(example, "bad")
    (finding, *_) = report.findings
    for shown in (str(report), report._repr_html_()):
        assert kind in shown and finding.text and f"{example.name}.cu" in shown
        assert f"line {finding.line}" in shown


def test_a_race_names_both_lines_and_both_threads():
    example = EXAMPLE["race_missing_barrier"]
    finding = sanitized(example, "bad").findings[0]
    assert len(finding.threads) == 2
    (other,) = example.culprits - {finding.line}
    assert re.search(rf"\b{other}\b", finding.text)


def test_a_clean_report_says_so():
    report = sanitized(EXAMPLE["write_past_end"], "good")
    assert report.clean and report.findings == []
    assert "good" in str(report) and "good" in report._repr_html_()


def test_html_shows_source_text_as_text():
    """`<` in a kernel must not become a tag."""
    source = "template <int N> __global__ void shift(float* y) { y[threadIdx.x < N ? N : 0] = 1; }"
    report = sanitize(Kernel(source, "shift<32>"), 1, 4, (torch.rand(8),))
    assert report.findings[0].kind == "out_of_bounds"
    assert "shift<32>" in str(report) and "shift<32>" not in report._repr_html_()
    assert "shift&lt;32&gt;" in report._repr_html_()


def test_a_finding_in_a_cell_names_the_cell_and_its_line():
    source = '__global__ void fill(float* y) {\n    y[threadIdx.x] = 1.0f;\n}'
    report = sanitize(Kernel(source, "fill", filename="In[7]", first_line=2), 1, 9, (torch.rand(8),))
    assert (report.findings[0].file, report.findings[0].line) == ("In[7]", 3)


def test_blocks_and_threads_in_three_dimensions():
    source = """
        extern "C" __global__ void fill(float* y) {
            int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
            int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
            y[block * 24 + thread] = 1.0f;
        }"""
    report = sanitize(Kernel(source, "fill"), (3, 2, 2), (2, 3, 4), (torch.rand(12 * 24 - 1),))
    (finding,) = report.findings
    assert (finding.block, finding.index) == ((2, 1, 1), 12 * 24 - 1)
    assert finding.threads == ((1, 2, 3),)


# ---- tensors and memory ---------------------------------------------------------------------------------------------

DOUBLE = """
    extern "C" __global__ void scale(const float* x, float* y, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = 2.0f * x[i];
    }"""


def test_tensors_keep_their_values_unless_write_back_is_asked_for():
    x, y = torch.rand(50), torch.rand(50)
    x_before, y_before = x.clone(), y.clone()
    kernel = Kernel(DOUBLE, "scale")
    assert sanitize(kernel, 2, 32, (x, y, 50)).clean
    assert torch.equal(x, x_before) and torch.equal(y, y_before)
    assert sanitize(kernel, 2, 32, (x, y, 50), write_back=True).clean
    assert torch.equal(x, x_before) and torch.equal(y, 2 * x)


def test_views_of_one_tensor_stay_views_of_one_tensor():
    base = torch.rand(100)
    before = base.clone()
    assert sanitize(Kernel(DOUBLE, "scale"), 1, 32, (base[:60], base[40:], 20), write_back=True).clean
    assert torch.equal(base, torch.cat([before[:40], 2 * before[:20], before[60:]]))


def test_an_argument_reaches_from_its_first_to_its_last_element():
    """Also where its storage goes on: what lies between the elements of a strided view belongs to it, what lies behind does not."""
    base = torch.rand(100)
    assert sanitize(Kernel(DOUBLE, "scale"), 1, 64, (base[:64:2], torch.rand(63), 63)).clean
    report = sanitize(Kernel(DOUBLE, "scale"), 1, 64, (base[:32], torch.rand(64), 64))
    assert [(f.kind, f.array, f.index) for f in report.findings] == [("out_of_bounds", "x", 32)]


def test_an_empty_tensor_has_no_first_element():
    report = sanitize(Kernel(DOUBLE, "scale"), 1, 1, (torch.rand(0), torch.rand(1), 1))
    assert report.findings[0].kind == "out_of_bounds"


@pytest.mark.parametrize("name", ["null_pointer", "wild_pointer", "endless_recursion", "write_past_end"])
def test_this_process_outlives_a_kernel_that_crashes(name):
    """Also when the next launch follows at once; and `isolated` turns the crash into an exception."""
    example = EXAMPLE[name]
    assert not sanitized(example, "bad").clean
    assert sanitized(example, "good").clean
    if name == "write_past_end":
        return                                                  # nothing is sure to crash there
    launch = example.launch("bad")
    with isolated(), pytest.raises(LaunchError, match="bad"):
        Kernel(example.path, "bad")(launch.grid, launch.block, tuple(launch.values().values()))
    values = example.launch("good").values()
    expected = example.expected_results(values)
    with isolated():
        Kernel(example.path, "good")(launch.grid, launch.block, tuple(values.values()))
    for tensor, result in expected.items():
        torch.testing.assert_close(values[tensor], result)


# ---- how it is used -------------------------------------------------------------------------------------------------


def test_sanitizing_raises_at_the_first_launch_with_findings():
    example = EXAMPLE["negative_index"]
    launch = example.launch("bad")
    values = launch.values()
    with sanitizing():
        Kernel(example.path, "good")(launch.grid, launch.block, tuple(values.values()))
        torch.testing.assert_close(values["y"], example.expected_results(values)["y"])
        with pytest.raises(SanitizerError) as raised:
            Kernel(example.path, "bad")(launch.grid, launch.block, tuple(values.values()))
    assert raised.value.report.findings[0].kind == "out_of_bounds"
    assert "negative_index.cu" in str(raised.value)
    values["y"].fill_(float("nan"))
    Kernel(example.path, "good")(launch.grid, launch.block, tuple(values.values()))      # outside: as ever
    torch.testing.assert_close(values["y"], example.expected_results(values)["y"])


@each([e for e in PAIRS if e.expect == "timeout"][:2])    # that the others end too is tested above
def test_the_time_limit_is_kept(example):
    sanitized(example, "good")                                  # compiled, and the child is there
    Kernel(example.path, "bad").signature
    start = time.perf_counter()
    report = sanitized(example, "bad", time_limit_s=1)
    assert time.perf_counter() - start < 3
    assert report.findings[0].kind == "timeout"


def test_wrong_arguments_and_wrong_sources_are_refused_before_anything_runs():
    with pytest.raises(ArgumentError, match="scale"):
        sanitize(Kernel(DOUBLE, "scale"), 1, 32, (torch.rand(32), torch.rand(32, dtype=torch.float64), 32))
    with pytest.raises(ArgumentError, match="1024"):
        sanitize(Kernel(DOUBLE, "scale"), 1, 2048, (torch.rand(32), torch.rand(32), 32))
    with pytest.raises(CompileError, match="line 2"):
        sanitize(Kernel("__global__ void broken(float* y) {\n    y[0] = undeclared;\n}", "broken"), 1, 1, (torch.rand(1),))


def test_a_failed_assert_is_a_launch_error_with_its_place():
    source = '__global__ void check(const float* x) {\n    assert(x[threadIdx.x] < 0.0f);\n}'
    with pytest.raises(LaunchError, match=r"(?s)check.*assert.*line 2"):
        sanitize(Kernel(source, "check"), 1, 32, (torch.rand(32),))


def test_printf_is_shown_once(capsys):
    sanitized(EXAMPLE["printf_and_assert"], "good")
    printed = capsys.readouterr().out
    assert [printed.count(f"x[{i}] = ") for i in range(4)] == [1, 1, 1, 1]
