"""The corpus itself: its notation is complete, its kernels are CUDA C++, and its corrected kernels are right on a GPU."""

import re

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.cuda.compile import compile_kernel
from labkernels.cuda.source import Source
from tests.cuda.sanitizer.corpus import CLEAN, FIELDS, KINDS, PAIRS, Example, Launch

EXAMPLES = [pytest.param(example, id=example.name) for example in PAIRS + CLEAN]


def kernels(example: Example) -> tuple[str, ...]:
    return ("good",) if example.expect == "clean" else ("bad", "good")


def test_a_launch_reads_as_it_is_written():
    launch = Launch.parse("grid=3x2 block=64 shared_mem=256 args=x:float16[4,5],bin:int32[9]<3,t:int32[1]=7,y=x,n=-4,s=0.5,p=null")
    values = launch.values()
    assert (launch.grid, launch.block, launch.shared_mem) == ((3, 2), (64,), 256)
    assert values["x"].shape == (4, 5) and values["x"].dtype == torch.float16 and values["y"] is values["x"]
    assert set(values["bin"].tolist()) <= {0, 1, 2} and values["t"].tolist() == [7]
    assert (values["n"], values["s"], values["p"]) == (-4, 0.5, None)
    for broken in ("grid=1 block=1 args=x[3", "grid=1 block=1 args=x[3]y[3]", "grid=1 block=1 threads=3 args=x[3]"):
        with pytest.raises(ValueError):
            Launch.parse(broken).values()


def test_there_are_enough_pairs_and_each_kind_has_some():
    assert len(PAIRS) >= 32
    assert {example.expect for example in PAIRS} == set(KINDS)
    assert all(example.expect == "clean" for example in CLEAN)


@pytest.mark.parametrize("example", EXAMPLES)
def test_head_is_complete(example):
    unknown = set(example.fields) - set(FIELDS)
    assert not unknown, f"{example.path.name}: fields that mean nothing: {unknown}"
    assert {"expect", "result"} <= set(example.fields)
    signatures = Source.from_file(example.path).kernels()
    assert tuple(signatures) == kernels(example)
    for kernel in kernels(example):
        assert tuple(example.launch(kernel).values()) == signatures[kernel], "args= gives the parameters' names, in order"
    title = example.text.splitlines()[0]
    if example.expect == "clean":
        assert title.startswith("// Clean: ")
        assert not example.culprits
        return
    assert title.lower().startswith(f"// {example.expect.replace('_', ' ')}: ")
    assert re.findall(r"^//   (\w+) ", example.text, re.MULTILINE) == ["Mistake", "Why", "Fix"]
    good_starts = example.text[: example.text.index("void good(")].count("\n") + 1
    assert example.culprits and max(example.culprits) < good_starts, "the culprit lines are in `bad`"


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_kernel_that_does_nothing_is_not_right(example):
    before = example.launch("good").values()
    results = example.expected_results(before)
    for name, result in results.items():
        assert result.shape == before[name].shape and result.dtype == before[name].dtype, name
    assert any(not torch.equal(result, before[name]) for name, result in results.items())


@pytest.mark.parametrize("example", EXAMPLES)
def test_compiles_for_a_gpu(example):
    """One compilation holds both kernels of a file."""
    assert compile_kernel(Source.from_file(example.path), "good", "sm_90a").symbol == "good"


@pytest.mark.gpu
@pytest.mark.parametrize("example", EXAMPLES)
def test_good_is_right_on_a_gpu(example):
    launch = example.launch("good")
    values = launch.values()
    expected = example.expected_results(values)
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    for name, value in values.items():                          # one tensor under two names stays one
        on_gpu[name] = next((on_gpu[other] for other in values if values[other] is value), on_gpu[name])
    Kernel(example.path, "good")(launch.grid, launch.block, tuple(on_gpu.values()), shared_mem=launch.shared_mem)
    for name, result in expected.items():
        torch.testing.assert_close(on_gpu[name].cpu(), result)
