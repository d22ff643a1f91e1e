"""Out of memory is told with the estimate and with what to change, each with what it would need."""
from __future__ import annotations

import re

import pytest
import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.estimate import training_memory
from labkernels.llm.survival.out_of_memory import OutOfMemory, explained_out_of_memory, remedies_for

CONFIG = ModelConfig.preset("645m")


def report(error: Exception, batch: int = 16, **options) -> str:
    with pytest.raises(OutOfMemory) as caught, explained_out_of_memory(CONFIG, batch, 2048, **options):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_the_report_has_the_wish_the_estimate_and_the_remedies():
    text = report(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total"))
    assert "step of 16 x 2048 tokens\n  CUDA out of memory. Tried to allocate 2.00 GiB.\n" in text
    estimate = training_memory(CONFIG, 16, 2048)
    assert f"estimated peak {estimate.peak / 1e9:.2f} GB: weights {estimate['weights'] / 1e9:.2f}" in text
    for remedy in ("checkpointing='selective'", "checkpointing='full'", "batch_size=8, and accumulate doubled", 'moments="bf16"'):
        assert re.search(re.escape(remedy) + r": \d+\.\d\d GB", text), remedy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernels": "torch"},
        {"kernels": {"loss": "torch"}, "checkpointing": "selective"},
        {"dtype": torch.float32, "optimizer": "muon"},
        {"checkpointing": "full", "state_dtype": torch.bfloat16, "master_weights": False},
    ],
)
def test_every_remedy_needs_less_and_none_is_what_is_done_already(options):
    now = training_memory(CONFIG, 32, 2048, **options).peak
    remedies = remedies_for(CONFIG, 32, 2048, **options)
    assert remedies and all(0 < peak < now for _, peak in remedies)
    assert remedies[-1] == min(remedies, key=lambda one: one[1])
    told = " ".join(what for what, _ in remedies)
    assert ("never holds the logits" in told) == (options.get("kernels") is not None)
    assert f"checkpointing={options.get('checkpointing')!r}" not in told
    assert ("moments" in told) == ("state_dtype" not in options)


def test_where_nothing_is_left_it_says_so():
    text = report(
        torch.OutOfMemoryError("x"), batch=1, checkpointing="full", state_dtype=torch.bfloat16, master_weights=False, kernels="labkernels"
    )
    assert "nothing is left but a smaller model" in text


def test_the_cpu_s_allocator_counts_too_and_other_errors_pass():
    text = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."
    assert "DefaultCPUAllocator" in report(RuntimeError(text)) and report(MemoryError())
    with pytest.raises(RuntimeError, match="shapes"), explained_out_of_memory(CONFIG, 1, 16):
        raise RuntimeError("shapes do not fit")
    with explained_out_of_memory(CONFIG, 1, 16):
        pass


@pytest.mark.gpu
def test_a_gpu_that_is_full_is_described():
    held = torch.empty(1 << 20, device="cuda")
    with pytest.raises(OutOfMemory, match=r"the GPU has \d+\.\d GB, .* of it free; this process holds"), explained_out_of_memory(CONFIG, 16, 2048):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert held.is_cuda
