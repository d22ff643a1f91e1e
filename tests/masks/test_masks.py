"""Attention masks and the masked softmax: judged, agreeing with attention's own rules, differentiable, clear about wrong inputs."""

import pytest
import torch

import labkernels as lk
from labkernels.attention.reference import visible
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.masks.attention_mask_op import OP as MASK
from labkernels.masks.masked_softmax_op import OP as SOFTMAX
from labkernels.masks.masked_softmax_op import reference

OPS = {op.name: op for op in (MASK, SOFTMAX)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("op, variant", [(op.name, variant) for op in OPS.values() for variant in op.variants])
def test_variant_passes_the_check(op, variant):
    dtypes = None if torch.cuda.is_available() else ["float32" if variant == "v1_naive" else "bfloat16"]
    assert check(OPS[op], variant, seeds=(0,), dtypes=dtypes, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_the_fastest_variant_passes_the_check_on_a_gpu(op):
    check(OPS[op], list(OPS[op].variants)[-1], seeds=(0,), dtypes=["float32", "bfloat16"], isolated=False, quiet=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal, window", [(True, None), (False, (3, 1)), (True, (2, None)), (False, None)])
def test_masks_show_what_attention_shows(causal, window, device):
    for seq_len, kv_len in ((5, 16), (9, 9), (20, 13)):
        lengths = torch.tensor([kv_len, kv_len // 2, 0], device=device)
        want = visible(seq_len, kv_len, lengths.device, causal, window) & (torch.arange(kv_len, device=device) < lengths[:, None, None, None])
        got = lk.functional.attention_mask(lengths, seq_len, kv_len, causal, window)
        assert got.dtype == torch.bool and torch.equal(got, want.expand(3, 1, seq_len, kv_len))


def test_an_additive_mask_hides_with_minus_infinity():
    mask = lk.functional.attention_mask(torch.tensor([3]), 2, 4, True, dtype=torch.bfloat16)
    assert mask.tolist() == [[[[0, 0, 0, -torch.inf], [0, 0, 0, -torch.inf]]]]


def test_what_sees_nothing_becomes_zeros_and_the_rest_is_pytorchs():
    x = torch.randn(2, 3, 6, 40)
    mask = torch.rand(2, 1, 6, 40) > 0.5
    mask[1, 0, 2] = False
    got = lk.functional.masked_softmax(x, mask, 0.3)
    want = torch.softmax((x * 0.3).masked_fill(~mask, -torch.inf), dim=-1)
    assert got[1, :, 2].eq(0).all() and want[1, :, 2].isnan().all()
    torch.testing.assert_close(got, want.nan_to_num())


def test_masked_softmax_is_differentiable():
    x, mask = torch.randn(1, 2, 5, 7, requires_grad=True), torch.randn(5, 7)
    got, want = (fn(x, mask, 0.5, True) for fn in (lk.functional.masked_softmax, reference))
    factor = torch.randn_like(want)
    grads = [torch.autograd.grad((result * factor).sum(), x)[0] for result in (got, want)]
    torch.testing.assert_close(grads[0], grads[1])
    with pytest.raises(ArgumentError, match="mask requires a gradient"):
        lk.functional.masked_softmax(x, mask.requires_grad_())


def test_opcheck():
    torch.library.opcheck(ops.masked_softmax.default, (torch.randn(1, 2, 3, 8, requires_grad=True), torch.rand(3, 8) > 0.2, 0.5))
    torch.library.opcheck(ops.attention_mask.default, (torch.tensor([3, 8]), 4, 8, True, 2, None))


@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_takes_them_whole(device):
    x, lengths = torch.randn(2, 2, 4, 8, device=device), torch.tensor([3, 8], device=device)
    fn = lambda x, lengths: lk.functional.masked_softmax(x, lk.functional.attention_mask(lengths, 4, 8, True)) * 2
    compiled = torch.compile(fn, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(compiled(x, lengths), fn(x, lengths))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: lk.functional.masked_softmax(x[0]), r"masked_softmax: x has shape \(1, 3, 4\); it must have four axes"),
        (lambda x: lk.functional.masked_softmax(x, x[..., :2]), r"masked_softmax: mask has shape \(1, 1, 3, 2\); it must be broadcastable"),
        (lambda x: lk.functional.masked_softmax(x, x.int()), "masked_softmax: mask is int32"),
        (lambda x: lk.functional.attention_mask(x, 2, 2), "attention_mask: lengths is float32"),
        (lambda x: lk.functional.attention_mask(torch.tensor([1]), -1, 2), "attention_mask: seq_len is -1"),
        (lambda x: lk.functional.attention_mask(torch.tensor([1]), 1, 2, window=(-1, 0)), "attention_mask: window is"),
    ],
)
def test_wrong_inputs_are_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call(torch.randn(1, 1, 3, 4))


def test_classic_mistakes_are_named():
    def unmasked(x, mask=None, scale=1.0, causal=False):
        return reference(x, None, scale, causal)

    with pytest.raises(CheckFailed) as failure:
        check(SOFTMAX, unmasked, dtypes=["float32"], seeds=(0,), mask="pairs", quiet=True)
    assert "without its mask" in failure.value.hint


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_rows_in_registers_do_not_spill(arch):
    from labkernels.cuda.variants import kernel
    from labkernels.masks.masked_softmax_variants import FOLDER

    for sizes in ((32, 4, 8), (256, 2, 8), (1024, 4, 8)):
        assert kernel(FOLDER / "v2_softmax_registers.cu", "masked_softmax_registers", torch.bfloat16, *sizes).resources(arch).spill_store_bytes == 0


def test_warps_that_see_nothing_do_not_spoil_a_long_row():
    x = torch.randn(1, 1, 3, 2048, generator=torch.Generator().manual_seed(0)).bfloat16() - 600  # 2^600 is no float
    shown = torch.arange(2048) >= 1500
    want = torch.softmax(x.double().masked_fill(~shown, -torch.inf), -1)
    got = lk.functional.masked_softmax(x, shown)
    assert torch.isfinite(got).all() and torch.allclose(got.double(), want, rtol=1e-2, atol=1e-6)
