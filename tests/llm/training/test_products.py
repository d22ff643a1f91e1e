"""Products that do SwiGLU and RoPE with their sums: the numbers of float64, whatever the edges of tiles, and what they refuse."""

import pytest
import torch
from torch.nn import functional as F

from labkernels.llm.kernels import rope
from labkernels.llm.training import products
from labkernels.rope import rope_frequencies, rope_table

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CLOSE = 0.004  # of bfloat16: results are rounded once


def random(device, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(shape, generator=generator)).to(device, torch.bfloat16)


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens, embed, ffn", [(150, 64, 128), (40, 200, 384), (300, 320, 256)])  # of a tile: 128 x 256, 64 deep
def test_swiglu_forward_and_backward_are_those_of_float64(tokens, embed, ffn, device):
    x, w1 = random(device, tokens, embed), random(device, 2 * ffn, embed, scale=embed**-0.5)
    w2, grad = random(device, embed, ffn, scale=ffn**-0.5), random(device, tokens, embed)
    assert products.accepts_swiglu(x, w1, w2) is None
    pre, hidden = products.swiglu_forward(x, w1)
    exact = x.double() @ w1.double().t()
    assert error(pre, exact) < CLOSE
    gate, up = exact.chunk(2, dim=1)
    assert error(hidden, F.silu(gate) * up) < CLOSE
    leaf = pre.double().requires_grad_()
    gate, up = leaf.chunk(2, dim=1)
    want = F.silu(gate) * up
    (slope,) = torch.autograd.grad(want, leaf, grad.double() @ w2.double())
    d_pre, again = products.swiglu_backward(grad, w2, pre)
    assert error(d_pre, slope) < CLOSE and error(again, want.detach()) < CLOSE
    without, nothing = products.swiglu_backward(grad, w2, pre, with_hidden=False)
    assert torch.equal(without, d_pre) and nothing is None
    swapped = torch.cat(slope.chunk(2, dim=1)[::-1], dim=1)
    assert error(d_pre, swapped) > 0.5, "gates are not ups"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim, heads, kv_heads", [(64, 5, 1), (128, 2, 1)])
@pytest.mark.parametrize("told", [False, True])
def test_a_turned_projection_is_a_projection_that_is_turned(head_dim, heads, kv_heads, told, device):
    batch, seq, embed = 3, 60, 72
    x, w = random(device, batch * seq, embed), random(device, (heads + 2 * kv_heads) * head_dim, embed, scale=embed**-0.5)
    angles = rope_table(rope_frequencies(head_dim), 100).to(device)
    positions = torch.randint(0, 100, (batch, seq), device=device) if told else None
    assert products.accepts_turned(x, w, angles, head_dim) is None
    got = products.turned_projection(x, w, angles, positions, seq, head_dim, heads + kv_heads)
    qkv = (x.double() @ w.double().t()).view(batch, seq, -1, head_dim).transpose(1, 2)
    q, k, v = (each.float() for each in qkv.split([heads, kv_heads, kv_heads], dim=1))
    want = torch.cat([*rope("torch", q, k, angles, positions), v], dim=1).transpose(1, 2).flatten(0, 1).flatten(1)
    assert error(got, want.double()) < CLOSE
    assert error(got, qkv.transpose(1, 2).reshape(batch * seq, -1)) > 0.1, "it turns"


def test_what_they_do_not_take_is_said():
    x = random("cpu", 8, 64)
    assert "multiple of 128" in products.accepts_swiglu(x, random("cpu", 96, 64), random("cpu", 64, 48))
    assert "bfloat16" in products.accepts_swiglu(x.float(), random("cpu", 256, 64).float(), random("cpu", 64, 128).float())
    table = rope_table(rope_frequencies(32), 16)
    assert "heads of 64 or 128" in products.accepts_turned(x, random("cpu", 96, 64), table, 32)
    assert "whole heads" in products.accepts_turned(x, random("cpu", 192, 64), table, 64)
