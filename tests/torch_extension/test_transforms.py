"""torch.vmap over the operators, and gradients of gradients: right, or refused by a sentence that says what to do."""

import pytest
import torch

import labkernels as lk
from labkernels.attention import attention_varlen
from labkernels.attention_backward import attention_backward
from labkernels.errors import ArgumentError

F = lk.functional


def normal(*shape, grad=False):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def with_gradient(*shape):
    return normal(*shape, grad=True)


TARGET = torch.tensor([1, 0, 3, 2])
CALLS = {  # each of one tensor
    "attention": lambda x: F.attention(x[None, None], x[None, None], x[None, None]),
    "rms_norm": lambda x: F.rms_norm(x, torch.ones(16)),
    "layer_norm": lambda x: F.layer_norm(x, torch.ones(16), torch.zeros(16)),
    "add_rms_norm": lambda x: F.add_rms_norm(x, 2 * x, torch.ones(16))[0],
    "swiglu": lambda x: F.swiglu(x, 2 * x),
    "ffn": lambda x: F.ffn(x, normal(32, 16), normal(16, 32)),
    "embedding": lambda x: F.embedding(TARGET, x),
    "cross_entropy": lambda x: F.cross_entropy(x, TARGET),
    "linear_cross_entropy": lambda x: F.linear_cross_entropy(x, normal(30, 16), TARGET),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_gradient_is_refused_in_one_sentence(name):
    x = with_gradient(4, 16)
    name_of_op = "rms_norm" if name == "add_rms_norm" else name
    with pytest.raises(ArgumentError, match=f"^{name_of_op}: its gradients have no gradients of their own"):
        (first,) = torch.autograd.grad(CALLS[name](x).square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)


def test_the_first_gradient_is_given_under_create_graph_too():
    x = with_gradient(4, 16)
    for name in ("attention", "rms_norm", "ffn"):
        (kept,) = torch.autograd.grad(CALLS[name](x).square().sum(), x, create_graph=True)
        torch.testing.assert_close(kept, torch.autograd.grad(CALLS[name](x).square().sum(), x)[0])


def test_matmul_and_rope_have_second_gradients():
    a, b = with_gradient(4, 16), with_gradient(16, 8)
    for got, want in zip(*(_second(product, a, b) for product in (F.matmul, torch.matmul))):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def _second(product, a, b):
    (first,) = torch.autograd.grad(product(a, b).pow(3).sum(), a, create_graph=True)
    return torch.autograd.grad(first.square().sum(), (a, b))


def test_gradients_called_by_name_say_that_none_goes_through_them():
    q = with_gradient(1, 1, 4, 16)
    with pytest.raises(ArgumentError, match="attention_backward: grad_out requires a gradient, and none goes through this call"):
        attention_backward(q, q, q, q, q.detach(), torch.zeros(1, 1, 4))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, None, None), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_vmap_of_attention_is_a_loop_over_it(in_dims, masked):
    tensors = [normal(*(2, 2, 5, 16)[: dim or 0], *([] if dim is None else [3]), *(2, 2, 5, 16)[dim or 0 :]) for dim in in_dims]
    mask, mask_dim = (normal(3, 5, 5) > -0.5, 0) if masked else (None, None)

    def call(q, k, v, mask):
        return F.attention(q, k, v, causal=True, mask=mask, return_lse=True)

    got = torch.vmap(call, in_dims=(*in_dims, mask_dim))(*tensors, mask)
    parts = [[tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(tensors, in_dims)] for i in range(3)]
    want = [call(*part, None if mask is None else mask[i]) for i, part in enumerate(parts)]
    for one, other in zip(got, zip(*want)):
        torch.testing.assert_close(one, torch.stack(other))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "add_rms_norm", "swiglu"])
def test_vmap_of_rows_is_a_loop_over_them(name):
    x = normal(4, 3, 16)
    torch.testing.assert_close(torch.vmap(CALLS[name], in_dims=1, out_dims=1)(x), CALLS[name](x))


def test_where_there_is_no_rule_vmap_says_what_to_do():
    with pytest.raises(ArgumentError, match="matmul: torch.vmap has no rule for it; give it all at once"):
        torch.vmap(F.matmul)(normal(3, 4, 8), normal(3, 8, 8))
    with pytest.raises(ArgumentError, match="rms_norm: under torch.vmap its weight and bias must be the same for all"):
        torch.vmap(F.rms_norm)(normal(3, 4, 16), normal(3, 16))
    ends = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ArgumentError, match="attention_varlen: torch.vmap has no rule for it"):
        torch.vmap(lambda q: attention_varlen(q, q, q, ends, ends))(normal(3, 4, 1, 16))
