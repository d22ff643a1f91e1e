"""An early launch touches nothing that the kernel before may be using until it has waited: in small kernels, and in all of the package's that begin early."""

from dataclasses import replace

import pytest
import torch

import labkernels as lk
from labkernels.cuda import Kernel, sanitize
from labkernels.llm.inference import fused
from labkernels.llm.inference.engine import Engine
from labkernels.quant.formats import QuantizedWeight
from tests.llm.inference.random_models import CONFIG, logits_of, prompts_of, random_model

WAITS = """
#include "fence.cuh"
extern "C" __global__ void add(const float* w, const float* x, float* y, int* count, int n) {
    __shared__ bool last;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = w[i % n];
    BEFORE
    sum += x[i];
    y[i] = sum;
}"""
ALL = "grid_dependency_wait();"
ONE = "if (threadIdx.x == 0) grid_dependency_wait();"
BY_BLOCK_0 = """if (threadIdx.x == 0 && blockIdx.x == 0) { grid_dependency_wait(); __threadfence(); atomicExch(count, 1); }
    if (threadIdx.x == 0) while (atomicAdd(count, 0) == 0) { }
    __syncthreads();"""


def report(before: str, at_rest=("w",), early=True):
    tensors = {"w": torch.randn(8), "x": torch.randn(128), "y": torch.empty(128), "count": torch.zeros(1, dtype=torch.int32)}
    rests = [tensors[name] for name in at_rest]
    return sanitize(Kernel(WAITS.replace("BEFORE", before), "add"), 2, 64, (*tensors.values(), 8), early=early, at_rest=rests)


@pytest.mark.parametrize("before", [ALL, ONE + " __syncthreads();", ALL + " if (threadIdx.x == 0) last = true;"])
def test_behind_a_wait_or_a_barrier_with_who_has_waited_all_is_open(before):
    assert report(before).clean


@pytest.mark.parametrize("before, at_rest, arrays", [("", ("w",), {"x", "y"}), (ONE, ("w",), {"x", "y"}), (ALL, (), {"w"}), (ONE + " __syncwarp();", ("w",), {"x", "y"})])
def test_what_is_touched_before_is_named(before, at_rest, arrays):
    found = report(before, at_rest)
    assert {finding.array for finding in found.findings} == arrays and {finding.kind for finding in found.findings} == {"race"}
    assert "before grid_dependency_wait(), while the kernel launched before may be using it" in found.findings[0].text
    assert report(before, at_rest, early=False).clean


def test_news_of_a_wait_comes_from_another_block_through_an_atomic():
    assert report(BY_BLOCK_0, ("w", "count")).clean
    assert {finding.array for finding in report(BY_BLOCK_0, ("w",)).findings} == {"count"}


KERNELS = [  # operation, variant, the inputs at rest
    ("rms_norm_backward", "v3_ring", ()),
    ("ffn", "v6_boxes", ("w1", "w2")),
    ("ffn", "v7_tf32", ("w2",)),
    ("quant_matmul", "v2_gemv", ("weight",)),
    ("quant_matmul", "v5_hopper", ("weight",)),
    ("quant_matmul", "v6_stream", ("weight",)),
    ("quant_matmul", "v7_resident", ("weight",)),
    ("qkv_rope_cache", "v3_bytes", ()),
]
TAKES_TURNS = ("progress",)  # parameters: counters of which a kernel has others than the one before it
ENGINE = {  # parameters that the engine's own kernels read before they wait, and why they are at rest
    "begin_step": ("lengths", "draws", "step", "last", "block_table", "angles"),  # the step before has written them at its beginning, which has ended
    "decode_cluster": ("lengths", "block_table", "k", "v"),  # of older tokens; qkv.cu lets nobody begin before what it waits for has ended
}
WHERE_TOLD = ("gemv_stream", "gemv_quantised", "qkv_cache_bytes")  # are launched early by who knows what ran before: the engine


def watch_early_launches(monkeypatch, at_rest: list[torch.Tensor]) -> list[str]:
    """From here on launches that are early on a GPU, or may be, are watched as such. Returns their kernels' names, as they come."""
    names, launch = [], Kernel.__call__

    def watched(self, grid, block, args, shared_mem=0, cluster=None, early=False):
        if not early and self.name.partition("<")[0] not in WHERE_TOLD:
            return launch(self, grid, block, args, shared_mem, cluster)
        names.append(self.name)
        resting = (*TAKES_TURNS, *ENGINE.get(self.name.partition("<")[0], ()))
        of_its_own = [value for parameter, value in zip(self.signature, args) if parameter.name in resting and value is not None]
        found = sanitize(self, grid, block, args, shared_mem, cluster=cluster, early=True, at_rest=[*at_rest, *of_its_own], write_back=True)
        assert found.clean, found

    monkeypatch.setattr(Kernel, "__call__", watched)
    monkeypatch.setattr("labkernels.cuda.settled.settled", lambda *weights: True)
    return names


def tensors_of(value) -> list[torch.Tensor]:
    parts = (value.packed, value.scales, value.codebook) if isinstance(value, QuantizedWeight) else (value,)
    return [tensor for tensor in parts if tensor is not None]


@pytest.mark.parametrize("name, version, resting", KERNELS)
def test_the_packages_early_kernels_wait_before_they_touch_what_moves(name, version, resting, monkeypatch):
    op = lk.ops[name]
    variant = op.variants[version]
    shapes = [*op.small_shapes, {"m": 2, "n": 64, "k": 512}] if name == "quant_matmul" else op.small_shapes
    inputs = (op.make_inputs(torch.Generator().manual_seed(3), "cpu", dtype, **shape) for dtype in reversed(op.dtypes) for shape in shapes)
    inputs = next(each for each in inputs if variant.accepts(**each) is None)
    names = watch_early_launches(monkeypatch, [tensor for each in resting for tensor in tensors_of(inputs[each])])
    variant.fn(**inputs)
    assert names, f"{version} launches nothing early"


def test_the_engines_kernels_wait_before_they_touch_what_moves(monkeypatch):
    config = replace(CONFIG, num_layers=1)
    model = random_model(config)
    monkeypatch.setattr(fused.FusedRunner, "early", True)
    names = watch_early_launches(monkeypatch, [*model.parameters(), *model.buffers()])
    assert logits_of(Engine(model, runner="fused", max_batch=2), prompts_of(5, 33), forced=1).isfinite().all()
    assert {*ENGINE, "qkv_stream", "gemv_stream", "norm_packed"} <= {name.partition("<")[0] for name in names}
