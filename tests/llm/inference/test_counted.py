"""Launches and bytes are counted where numbers are read or written, and nowhere else."""

import torch
from torch.nn import functional as F

import labkernels as lk
from labkernels.llm.inference.counted import counted

X, W = torch.randn(4, 8), torch.randn(16, 8)


def test_an_operation_is_one_launch_and_moves_what_goes_in_and_out():
    with counted() as seen:
        y = F.linear(X, W)
        F.rms_norm(y, (16,), torch.ones(16))
    assert seen.by_name == {"linear": 1, "rms_norm": 1, "ones": 1}
    assert seen.bytes == 4 * (4 * 8 + 16 * 8 + 4 * 16) + 4 * 16 + 4 * (4 * 16 + 16 + 4 * 16)


def test_views_bookkeeping_and_empty_memory_are_no_launches():
    with counted() as seen:
        X.view(8, 4).t()[1:].unflatten(0, (1, 3)).split(1)
        torch.empty(100), torch.arange(5) + 1, X.shape, X.tolist()
    assert seen.launches == 0 and seen.bytes == 0


def test_what_is_written_in_place_counts():
    with counted() as seen:
        y = X.clone()
        y[1:3] = X[0]
        y.add_(X)
    assert seen.by_name == {"clone": 1, "__setitem__": 1, "add_": 1}


def test_of_a_table_the_rows_count_that_are_looked_up():
    with counted() as seen:
        F.embedding(torch.tensor([3, 1]), torch.randn(1000, 8)[:])
    assert seen.by_name["embedding"] == 1 and seen.bytes == 4 * 1000 * 8 + 2 * 8 * 4    # randn made the table


def test_kernels_count_by_name_and_results_stay_as_they_are():
    with counted() as seen:
        y = lk.functional.rms_norm(X, torch.ones(8))
    assert any("norm" in name for name in seen.by_name) and torch.allclose(y, F.rms_norm(X, (8,), eps=1e-5), atol=1e-5)
    with counted() as after:
        pass
    assert after.launches == 0 and seen.launches > 0


def test_a_fused_step_moves_the_weights_and_little_else():
    from labkernels.llm import Engine, ModelConfig, Transformer
    from labkernels.llm.inference.requests import SamplingParams

    torch.manual_seed(0)
    model = Transformer(ModelConfig(80, 64, 2, 4, 2, 96, head_dim=64, max_seq_len=128)).to(torch.bfloat16)
    engine = Engine(model, runner="fused", max_batch=1, cache_tokens=16, page_size=16)
    engine.submit([3, 1, 4], SamplingParams(max_new_tokens=4))
    engine.step()
    with counted() as seen:
        engine.step()
    weights = sum(weight.nbytes for weight in model.parameters())    # tied: the table is the head, and read once
    assert weights < seen.bytes < 1.25 * weights
    assert seen.by_name["begin_step"] == 1 and seen.by_name["qkv_stream"] == 2


def test_afterwards_nothing_is_counted():
    with counted() as seen:
        pass
    lk.functional.rms_norm(F.linear(X, W), torch.ones(16))
    assert seen.launches == 0
