"""The model's own torch operators: schemas, fake kernels and gradients by PyTorch's own judge, and against plain PyTorch."""

import pytest
import torch
from torch.nn import functional as F

import labkernels.llm.kernels  # noqa: F401  defines them
from labkernels.llm.kernels import rope
from labkernels.rope import rope_frequencies, rope_table

ops = torch.ops.labkernels
ENDS = torch.tensor([0, 3, 7, 14], dtype=torch.int32)  # in two rows of 7


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def case(name, dtype=torch.float32):
    if name == "linear":
        return ops.linear, (random(2, 7, 8, dtype=dtype), random(12, 8, dtype=dtype))
    if name == "attention_varlen":
        q, k, v = random(14, 4, 8, dtype=dtype), random(14, 2, 8, dtype=dtype), random(14, 2, 8, dtype=dtype)
        return ops.attention_varlen, (q, k, v, ENDS, 7)
    table = rope_table(rope_frequencies(8), 16)
    return ops.rope_attention, (random(2, 7, 64, dtype=dtype), table, None, ENDS if "packed" in name else None, 4, 2)


@pytest.mark.parametrize("name", ["linear", "attention_varlen", "rope_attention", "rope_attention, packed"])
def test_operators_pass_opcheck(name):
    op, args = case(name)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def plain(qkv, table, positions, ends, heads, kv_heads):
    """The same by PyTorch, with a mask."""
    batch, seq, _ = qkv.shape
    q, k, v = qkv.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    q, k = rope("torch", q, k, table.to(qkv.dtype) if qkv.dtype == torch.float64 else table, positions)
    document = torch.zeros(batch * seq) if ends is None else torch.searchsorted(ends, torch.arange(batch * seq), right=True)
    document = document.view(batch, 1, seq)
    mask = (document[..., :, None] == document[..., None, :]).tril()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head_dim", [8, 12])  # whose halves are vectors of 16 bytes in float32, or are not
def test_rotation_and_attention_in_one_are_those_of_pytorch(dtype, packed, head_dim):
    table = rope_table(rope_frequencies(head_dim), 16)
    rest = table, torch.randint(16, (2, 7)), ENDS if packed else None, 4, 2
    qkv, grad = random(2, 7, 8 * head_dim, dtype=dtype), random(2, 7, 4 * head_dim, dtype=dtype).detach()
    got = ops.rope_attention(qkv, *rest)[0]
    (ours,) = torch.autograd.grad(got, qkv, grad)
    want = plain(qkv, *rest)
    (theirs,) = torch.autograd.grad(want, qkv, grad)
    within = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.03}
    torch.testing.assert_close(got, want, **within)
    torch.testing.assert_close(ours, theirs, **within)
    assert ours.unflatten(-1, (8, -1)).abs().amax((0, 1, 3)).min() > 0.1  # every head has its gradient, the values' too


def test_a_linear_layers_gradients_lie_as_it_does():
    x, weight = random(2, 7, 8), random(12, 8)
    y = ops.linear(x, weight)
    torch.testing.assert_close(y, F.linear(x, weight))
    grad = random(*y.shape).detach()
    for ours, theirs in zip(torch.autograd.grad(y, (x, weight), grad), torch.autograd.grad(F.linear(x, weight), (x, weight), grad)):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous()
