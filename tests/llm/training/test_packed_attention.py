"""The projection, RoPE and attention as one operator: the same numbers as the model's own, however it ends its backward pass."""

import pytest
import torch

from labkernels.llm import rope_attention
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training import packed_attention, products
from labkernels.llm.training.packed_attention import PackedAttention, convert
from labkernels.rope import rope_frequencies, rope_table

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OURS = {"rope": "labkernels", "attention": "labkernels"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed, fused, cudnn", [(False, False, False), (True, False, False), (True, True, False), (False, True, True)])
def test_losses_and_gradients_are_those_of_pytorch(dtype, packed, fused, cudnn, device, monkeypatch):
    taken = []

    def takes_fused(*given):  # however few tokens there are
        taken.append(products.accepts_turned(*given) is None)
        return taken[-1]

    monkeypatch.setattr(packed_attention, "takes_fused", takes_fused)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = ModelConfig(vocab_size=64, embed_dim=128, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=48)  # heads of 64
    model, tokens = Transformer(config, device=device, dtype=dtype), torch.randint(0, 64, (2, 24), device=device)
    ends = torch.tensor([0, 5, 24, 48], dtype=torch.int32, device=device) if packed else None

    def found():
        model.zero_grad()
        loss = model(tokens, tokens, cu_seqlens=ends)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    loss, exact = found()
    convert(model, fused, cudnn)
    model.kernels = OURS
    assert type(model.blocks[0].attention) is PackedAttention
    close = 1e-5 if dtype == torch.float32 else 0.02
    for mode in ("none", "selective", "full"):
        model.checkpointing = mode
        ours, gradients = found()
        assert ours == pytest.approx(loss, rel=close)
        assert all((gradients[name] - each).float().norm() <= close * each.float().norm() for name, each in exact.items())
    assert any(taken) == (fused and dtype == torch.bfloat16), "in 16 bits the product that turns was taken"


def test_the_operator_passes_opcheck():
    angles, ends = rope_table(rope_frequencies(8), 16), torch.tensor([0, 3, 7, 14], dtype=torch.int32)
    for given in (None, ends):
        x, weight = torch.randn(2, 7, 16).requires_grad_(), torch.randn(64, 16).requires_grad_()
        args = (x, weight, angles, None, given, 4, 2, True, True)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.labkernels.projected_attention, args, test_utils=checks)


@pytest.mark.gpu
def test_cudnns_forward_pass_is_ours():
    q, k, v = (torch.randn(2, 300, heads, 64, device="cuda").bfloat16() for heads in (4, 2, 2))
    assert rope_attention.cudnn_takes(q)
    (ours, lse), (theirs, their_lse) = rope_attention.attend(q, k, v, None), rope_attention.attend(q, k, v, None, cudnn=True)
    torch.testing.assert_close(theirs, ours, rtol=0.02, atol=0.01)
    torch.testing.assert_close(their_lse, lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("told", [False, True])
def test_a_backward_pass_that_ends_in_one_kernel_gives_the_same_numbers(head_dim, told, monkeypatch):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    heads, kv_heads, batch, seq = 2, 1, 2, 70
    qkv = torch.randn(batch, seq, (heads + 2 * kv_heads) * head_dim).bfloat16()
    q, k, v = rope_attention.parts(qkv, heads, kv_heads)
    angles = rope_table(rope_frequencies(head_dim), 90)
    positions = torch.randint(0, 90, (batch, seq)) if told else None
    out, lse = rope_attention.attend(q, k, v, None)
    grad_out = torch.randn_like(out)
    tensors = [each.view(batch, seq, -1, head_dim) for each in (grad_out, qkv, qkv, qkv, out)]
    tensors[1:4] = q, k, v
    assert rope_attention.joins(tensors, lse, angles)
    assert not rope_attention.joins([each[:1].expand(30_000, -1, -1, -1) for each in tensors], lse, angles)  # more heads than its grid has places
    joined = rope_attention.gradient_of_projection(grad_out, q, k, v, out, lse, angles, positions, None)
    monkeypatch.setattr(rope_attention, "joins", lambda *_: False)
    apart = rope_attention.gradient_of_projection(grad_out, q, k, v, out, lse, angles, positions, None)
    torch.testing.assert_close(joined, apart, rtol=0.02, atol=1e-4)
    plain = torch.zeros_like(angles)
    plain[:, : head_dim // 2] = 1.0  # turns by nothing
    unturned = rope_attention.gradient_of_projection(grad_out, q, k, v, out, lse, plain, positions, None)
    assert (unturned - apart).float().norm() > 0.1 * apart.float().norm()
