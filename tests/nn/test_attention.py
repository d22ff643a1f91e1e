"""lk.nn.FlashAttention against PyTorch's own layers with the same weights, gradients included; on the CPU through the emulator."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkernels as lk
from labkernels.errors import ArgumentError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_sdpa(layer, x, mask=None):
    """The same layer in PyTorch."""
    batch, seq_len, _ = x.shape
    heads, kv_heads = layer.num_heads, layer.num_kv_heads
    by_head = layer.qkv_proj(x).view(batch, seq_len, -1, layer.head_dim).transpose(1, 2)
    q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=layer.causal and mask is None, enable_gqa=True)
    return layer.out_proj(out.transpose(1, 2).flatten(2))


def assert_same(layer, x, got, want, tolerance):
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(got)
    for got_grad, want_grad in zip(*(torch.autograd.grad((result * weight).sum(), inputs) for result in (got, want))):
        torch.testing.assert_close(got_grad, want_grad, rtol=tolerance, atol=tolerance * float(want_grad.abs().max()))


@pytest.mark.parametrize("heads, kv_heads, bias, causal", [(2, 2, True, True), (4, 2, False, True), (4, 1, True, False)])
def test_it_is_pytorchs_layer(heads, kv_heads, bias, causal):
    layer = lk.nn.FlashAttention(32, heads, kv_heads, bias=bias, causal=causal, device=DEVICE)
    x = torch.randn(2, 7, 32, device=DEVICE, requires_grad=True)
    assert_same(layer, x, layer(x), by_sdpa(layer, x), 1e-4)


def test_bfloat16_by_the_tensor_cores():
    layer = lk.nn.FlashAttention(32, 2, head_dim=24, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(1, 9, 32, device=DEVICE).bfloat16().requires_grad_()
    assert_same(layer, x, layer(x), by_sdpa(layer, x), 2**-5)


def test_the_weights_of_multihead_attention_fit():
    theirs = nn.MultiheadAttention(32, 4, batch_first=True, device=DEVICE)
    nn.init.normal_(theirs.in_proj_bias)
    ours = lk.nn.FlashAttention(32, 4, bias=True, causal=False, device=DEVICE)
    renamed = {"in_proj_weight": "qkv_proj.weight", "in_proj_bias": "qkv_proj.bias"}
    ours.load_state_dict({renamed.get(name, name): value for name, value in theirs.state_dict().items()})
    x = torch.randn(2, 6, 32, device=DEVICE)
    hidden = torch.arange(6, device=DEVICE) > torch.tensor([[3], [5]], device=DEVICE)  # padding: theirs is true where a key is hidden
    want, _ = theirs(x, x, x, key_padding_mask=hidden, need_weights=False)
    torch.testing.assert_close(ours(x, mask=~hidden[:, None, None]), want, rtol=1e-4, atol=1e-4)


def test_a_window_hides_what_a_mask_would():
    layer = lk.nn.FlashAttention(32, 2, device=DEVICE)
    x = torch.randn(1, 8, 32, device=DEVICE)
    band = torch.ones(8, 8, dtype=torch.bool, device=DEVICE).tril().triu(-2)
    torch.testing.assert_close(layer(x, window=(2, None)), by_sdpa(layer, x, band), rtol=1e-4, atol=1e-4)


def test_names_of_its_state():
    layer = lk.nn.FlashAttention(32, 4, 2, head_dim=16, bias=True, device=DEVICE)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "qkv_proj.weight": (128, 32), "qkv_proj.bias": (128,), "out_proj.weight": (32, 64), "out_proj.bias": (32,),
    }  # fmt: skip


def test_torch_compile_takes_it_whole():
    layer = lk.nn.FlashAttention(32, 2, 1, device=DEVICE)
    x = torch.randn(2, 5, 32, device=DEVICE, requires_grad=True)
    assert_same(layer, x, torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), 1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((32, 5), "embed_dim is 32, no multiple of num_heads, 5"),
        ((32, 4, 3), "num_heads is 4, num_kv_heads is 3; the first must be a multiple"),
        ((32, 0), "num_heads is 0; it must be an int of at least 1"),
        ((32.0, 4), "embed_dim is 32.0; it must be an int"),
        ((32, 4, 2, -8), "head_dim is -8"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        lk.nn.FlashAttention(*arguments)


def test_a_wrong_input_is_named():
    with pytest.raises(ArgumentError, match=r"x has shape \(2, 5, 16\); it must be \(batch, seq_len, embed_dim = 32\)"):
        lk.nn.FlashAttention(32, 4)(torch.randn(2, 5, 16))
