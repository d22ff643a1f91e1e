"""Embedding and its gradient: judged, repeatable, differentiable, and the sort behind it stable."""

import pytest
import torch
import torch.nn.functional as F

import labkernels as lk
from labkernels.cuda import sanitizing
from labkernels.embedding.embedding_backward_op import OP as BACKWARD
from labkernels.embedding.embedding_backward_variants import sorted_tokens
from labkernels.embedding.embedding_op import OP as EMBEDDING
from labkernels.embedding.embedding_op import distinct
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.nn import Embedding

OPS = {op.name: op for op in (EMBEDDING, BACKWARD)}
VARIANTS = [(op.name, variant) for op in OPS.values() for variant in op.variants]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("op, variant", VARIANTS)
def test_variant_passes_the_check(op, variant):
    dtypes = None if torch.cuda.is_available() else ["float32" if variant == "v1_sorted" else "bfloat16"]
    assert check(OPS[op], variant, seeds=(0,), dtypes=dtypes, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_the_fastest_variant_passes_the_check_on_a_gpu(op):
    check(OPS[op], list(OPS[op].variants)[-1], seeds=(0,), dtypes=["float32", "bfloat16"], isolated=False, quiet=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n, vocab", [(1, 1), (33, 7), (600, 1030), (4097, 128_256), (500, 300_000)])  # one pass of 9 bits, two, three
def test_the_sort_is_stable_and_puts_foreign_tokens_last(n, vocab, device):
    tokens = torch.randint(0, vocab, (n,))
    if n > 100:
        tokens[3], tokens[70] = -5, vocab + 9
    got = sorted_tokens(tokens.to(device), vocab)
    want = torch.where((tokens < 0) | (tokens >= vocab), vocab, tokens).sort(stable=True)
    assert all(one.tolist() == other.tolist() for one, other in zip(got, want))


def test_the_sort_has_no_race():
    with sanitizing():
        keys, order = sorted_tokens(torch.randint(0, 700, (300,)), 700)
    assert keys.tolist() == sorted(keys.tolist()) and sorted(order.tolist()) == list(range(300))


@pytest.mark.parametrize("device", DEVICES)
def test_embedding_is_differentiable_and_leaves_padding_out(device):
    tokens, weight = torch.randint(0, 9, (4, 30), device=device), torch.randn(9, 16, device=device, requires_grad=True)
    got, want = lk.functional.embedding(tokens, weight, padding_token=2), F.embedding(tokens, weight, padding_idx=2)
    torch.testing.assert_close(got, want)
    factor = torch.randn_like(got)
    got_grad, want_grad = (torch.autograd.grad((result * factor).sum(), weight)[0] for result in (got, want))
    torch.testing.assert_close(got_grad, want_grad)
    assert got_grad[2].eq(0).all() and got_grad.abs().max() > 0


def test_the_same_gradient_each_time_whoever_else_adds_to_it():
    """2000 places of one token and few of others: sums in shares by all warps, then in one piece."""
    tokens = torch.where(torch.arange(600) % 9 == 0, torch.arange(600) % 50, 7)
    grad = torch.randn(600, 40)
    results = [lk.functional.embedding_backward(grad, tokens, 64) for _ in range(2)]
    assert torch.equal(*results)
    want = torch.zeros(64, 40, dtype=torch.float64).index_add(0, tokens, grad.double())
    torch.testing.assert_close(results[0].double(), want, rtol=1e-5, atol=1e-4)


def test_a_gradient_that_is_one_number_repeated():
    weight = torch.randn(5, 8, requires_grad=True)
    lk.functional.embedding(torch.tensor([[1, 4, 1]]), weight).sum().backward()
    assert weight.grad.sum(1).tolist() == [0, 16, 0, 0, 8]


def test_foreign_tokens_give_zeros_and_take_no_gradient():
    tokens, weight = torch.tensor([1, -1, 5, 4]), torch.randn(5, 8)
    result = lk.functional.embedding(tokens, weight)
    assert torch.equal(result[[0, 3]], weight[[1, 4]]) and result[[1, 2]].eq(0).all()
    grad = lk.functional.embedding_backward(torch.ones(4, 8), tokens, 5)
    assert grad.sum(1).tolist() == [0, 8, 0, 0, 8]


def test_opcheck():
    torch.library.opcheck(ops.embedding.default, (torch.randint(0, 5, (2, 3)), torch.randn(5, 8, requires_grad=True), 1))
    torch.library.opcheck(ops.embedding_backward.default, (torch.randn(6, 8), torch.randint(0, 5, (6,)), 5))


@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_takes_the_layer_whole(device):
    layer = Embedding(9, 8, padding_token=3, device=device)
    tokens = torch.randint(0, 9, (2, 5), device=device)
    compiled = torch.compile(lambda t: layer(t) * 2, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(compiled(tokens), layer(tokens) * 2)
    assert layer.weight[3].eq(0).all() and list(layer.state_dict()) == ["weight"]


def test_wrong_inputs_are_named():
    with pytest.raises(ArgumentError, match="embedding: tokens is float32; it must be int32 or int64"):
        lk.functional.embedding(torch.randn(3), torch.randn(4, 8))
    with pytest.raises(ArgumentError, match=r"embedding_backward: grad has shape \(3, 8\), tokens has \(4,\)"):
        lk.functional.embedding_backward(torch.randn(3, 8), torch.arange(4), 5)
    with pytest.raises(ArgumentError, match="Embedding: padding_token is 9"):
        Embedding(9, 8, padding_token=9)


def test_bytes_by_hand():
    assert BACKWARD.bytes_moved(torch.bfloat16, n=10, vocab=100, cols=8) == 110 * 16 + 80
    assert 9.5 < distinct(10, 1000) < 10 and distinct(10**6, 1000) == pytest.approx(1000)


def test_classic_mistakes_are_named():
    def last_place_only(grad, tokens, vocab, padding_token=None):
        out = torch.zeros(vocab, grad.shape[1])
        for place, token in enumerate(tokens.tolist()):
            out[token] = grad[place]
        return out

    with pytest.raises(CheckFailed) as failure:
        check(BACKWARD, last_place_only, dtypes=["float32"], seeds=(0,), n=100, quiet=True)
    assert "places must be added" in failure.value.hint


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_rows_do_not_spill(arch):
    from labkernels.cuda.variants import kernel
    from labkernels.embedding.gather import FOLDER

    assert kernel(FOLDER / "v2_backward_rows.cu", "embedding_backward_rows", torch.bfloat16, 8).resources(arch).spill_store_bytes == 0
