"""What `attention` takes beside q, k, v: every variant that takes it gives what the definition gives, the log-sum-exp included."""

import math

import pytest
import torch

from labkernels.attention import attention, attention_varlen, varlen
from labkernels.attention.op import OP, shape
from labkernels.attention.reference import reference
from labkernels.cuda import sanitizing
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.compare import doubled

SLOW = {"v6_hopper"}  # in the emulator; test_hopper.py runs it there
EVERYWHERE = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.bfloat16, **shape(2, mask="pairs"))
VARIANTS = [name for name, variant in OP.variants.items() if variant.accepts(**EVERYWHERE) is None]
RUNS = [(name, "cpu") for name in VARIANTS if name not in SLOW] + [pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in VARIANTS]
VARLEN_RUNS = [run for run in RUNS if getattr(run, "values", run)[0] in varlen.OP.variants]


def run(name, inputs):
    return OP.variants[name].fn(**inputs)


def inputs_of(device="cpu", dtype=torch.float32, **sizes) -> dict:
    return OP.make_inputs(torch.Generator().manual_seed(0), device, dtype, **sizes)


def assert_near(result, want) -> None:
    relative = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}[result.dtype]
    torch.testing.assert_close(result.double(), want, rtol=relative, atol=relative, equal_nan=True)


def test_there_is_a_variant_that_takes_them():
    assert VARIANTS and set(VARIANTS) < set(OP.variants)


@pytest.mark.parametrize("name, device", RUNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lse_is_that_of_the_definition_whatever_is_hidden(name, dtype, device):
    assert_lse(name, dtype, device)


@pytest.mark.parametrize("name, device", RUNS)
def test_a_row_of_the_least_number_sees_all_keys_alike(name, device):
    """As PyTorch has it; torch.finfo.min, which many use for a mask, is no -inf, in units of log 2 either."""
    sizes = shape(20, kv_len=40, heads=2, mask="bias")
    inputs = inputs_of(device, torch.bfloat16, **sizes)
    inputs["mask"] = inputs["mask"].expand(1, 2, 20, 40).clone()
    inputs["mask"][..., 7, :] = torch.finfo(inputs["mask"].dtype).min
    inputs["mask"][..., 8, 5:] = torch.finfo(inputs["mask"].dtype).min
    want = OP.reference(**doubled(inputs))
    torch.testing.assert_close(want[:, :, 7], inputs["v"].double().mean(2), rtol=1e-6, atol=1e-6)
    assert_near(run(name, inputs), want)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_lse_in_float32(device):
    taking = [name for name in VARIANTS if OP.variants[name].accepts(**inputs_of(**shape(3))) is None]
    assert "v4_warp_tiles" in taking
    for name in taking:
        assert_lse(name, torch.float32, device)


def assert_lse(name, dtype, device):
    for sizes in (
        shape(33, kv_len=70, batch=2, heads=4, kv_heads=2),
        shape(70, kv_len=33, causal=True),
        shape(40, window=(9, 2), heads=2),
        shape(35, mask="whole_queries"),
        shape(35, kv_len=40, mask="bias", causal=True, scale=0.3),
    ):
        inputs = inputs_of(device, dtype, **sizes)
        out, lse = run(name, inputs | {"return_lse": True})
        want, want_lse = reference(**doubled(inputs), return_lse=True)
        assert lse.dtype == torch.float32 and lse.shape == inputs["q"].shape[:3] and lse.is_contiguous()
        assert_near(out, want)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-2)
        if dtype == torch.float32:
            assert torch.equal(out, run(name, inputs)), "asking for the log-sum-exp changes the result"


@pytest.mark.parametrize("name, device", RUNS)
def test_masks_of_any_strides(name, device):
    generator = torch.Generator().manual_seed(1)
    inputs = inputs_of(device, torch.bfloat16, **shape(20, kv_len=37, batch=2, heads=2))
    wide = torch.randn(2, 37, 2, 40, generator=generator).to(device)
    for mask in (
        wide.permute(0, 2, 3, 1)[:, :, :20],  # keys far apart
        wide[..., 3:].transpose(1, 2)[:, :, :20],
        wide[0, :1, 0, :1],  # one number for all
        wide[0, 0, 0, :37],
        wide[:1, :1, :1, 1:38] > 0,
    ):
        for values in (mask, mask.to(torch.bool if mask.dtype == torch.bool else torch.bfloat16)):
            given = inputs | {"mask": values}
            assert_near(run(name, given), reference(**doubled(given)))


@pytest.mark.parametrize("name, device", RUNS)
def test_minus_infinity_in_an_additive_mask_hides(name, device):
    inputs = inputs_of(device, torch.bfloat16, **shape(20, kv_len=70, mask="bias", heads=2))
    inputs["mask"][..., 5:66] = -torch.inf
    inputs["mask"][:, 1, 3] = -torch.inf  # all of a query
    out, lse = run(name, inputs | {"return_lse": True})
    assert_near(out, reference(**doubled(inputs)))
    assert out[:, 1, 3].eq(0).all() and lse[0, 1, 3] == -math.inf and lse.isinf().sum() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, device", RUNS)
def test_nan_and_inf_go_where_the_formula_sends_them(name, value, device):
    for where, index in (("q", (0, 0, 3, 5)), ("k", (0, 0, 40, 5)), ("v", (0, 0, 40, 5))):
        inputs = inputs_of(device, torch.bfloat16, **shape(20, kv_len=50))
        inputs[where][index] = value
        want = reference(**doubled(inputs))
        assert not want.isfinite().all() or value == -math.inf or where == "k"
        got = run(name, inputs)
        assert torch.equal(got.isfinite(), want.isfinite()), where
        assert_near(got, want)


@pytest.mark.parametrize("name, device", RUNS)
def test_a_huge_window_is_no_window(name, device):
    inputs = inputs_of(device, torch.bfloat16, **shape(30, kv_len=50))
    assert torch.equal(run(name, inputs | {"window": (10**12, 10**12)}), run(name, inputs))
    assert torch.equal(run(name, inputs | {"window": (None, 0)}), run(name, inputs | {"causal": True}))


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - SLOW))
@pytest.mark.parametrize("sizes", [shape(18, kv_len=70, mask="pairs", window=(30, 5), heads=2), shape(20, kv_len=5, mask="float32_bias", causal=True)])
def test_masks_with_windows_are_clean_under_the_sanitizer(name, sizes):
    inputs = inputs_of(dtype=torch.bfloat16, **sizes)
    with sanitizing():
        out, _ = run(name, inputs | {"return_lse": True})
    assert_near(out, reference(**doubled(inputs)))


def test_earlier_variants_refuse_what_they_do_not_take():
    inputs = inputs_of(**shape(3))
    for name in list(OP.variants)[: list(OP.variants).index(VARIANTS[0])]:
        refuses = OP.variants[name].accepts
        assert refuses(**inputs, window=(1, 0)) == "takes no window" and refuses(**inputs, return_lse=True) == "gives no log-sum-exp"
        assert refuses(**inputs, mask=torch.ones(3, 3)) == "takes no mask" and refuses(**inputs) is None


@pytest.mark.parametrize("name", [name for name in varlen.OP.variants if name not in SLOW])
def test_packed_sequences_pass_the_check(name):
    assert check(varlen.OP, name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("name, device", VARLEN_RUNS)
def test_packed_sequences_are_what_each_gives_alone(name, device):
    sizes = {"lengths": (20, 1, 0, (33, 66), (7, 3)), "heads": 4, "kv_heads": 2, "causal": True}
    inputs = varlen.OP.make_inputs(torch.Generator().manual_seed(0), device, torch.bfloat16, **sizes)
    out, lse = varlen.OP.variants[name].fn(**inputs, return_lse=True, max_seqlen_q=50)
    assert lse.shape == (4, 61) and lse.dtype == torch.float32 and out.is_contiguous()
    packed = [inputs[key] for key in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")]
    first = 0
    for q, k, v in varlen.sequences(*packed):
        want, want_lse = reference(*doubled({"q": q, "k": k, "v": v}).values(), causal=True, return_lse=True)
        end = first + q.shape[2]
        assert_near(out[first:end].transpose(0, 1)[None], want)
        torch.testing.assert_close(lse[:, first:end].double(), want_lse[0], rtol=1e-5, atol=1e-2)
        first = end
    _, want_lse = varlen.reference(**doubled(inputs), return_lse=True)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in varlen.OP.variants if name not in SLOW])
def test_packed_views_of_a_wider_tensor(name):
    ends = torch.tensor([0, 9, 30], dtype=torch.int32)
    qkv = torch.randn(30, 3, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, k, v = qkv.unbind(1)
    out = varlen.OP.variants[name].fn(q, k, v, ends, ends)
    assert_near(out, varlen.reference(q.double(), k.double(), v.double(), ends, ends))


def test_packed_inputs_that_are_wrong_are_named():
    q, ends = torch.ones(9, 2, 16), torch.tensor([0, 4, 9], dtype=torch.int32)
    for change, message in (
        ({"q": q[None]}, "q has shape .* three axes"),
        ({"k": torch.ones(9, 2, 8)}, "k has head_dim 8, q has 16"),
        ({"cu_seqlens_q": ends.long()}, "cu_seqlens_q is int64"),
        ({"cu_seqlens_k": ends[:2]}, "cu_seqlens_k is .0, 4.; it must rise from 0 to 9, the tokens of k"),
        ({"cu_seqlens_k": torch.tensor([0, 2, 4, 9], dtype=torch.int32)}, "cu_seqlens_q has 3 elements, cu_seqlens_k has 4"),
        ({"cu_seqlens_q": torch.tensor([0, 10, 9], dtype=torch.int32)}, ".* must rise from 0 to 9"),
        ({"max_seqlen_q": 4}, "max_seqlen_q is 4, but the longest sequence has 5 queries"),
        ({"window": (0,)}, "window is"),
    ):
        with pytest.raises(ArgumentError, match=f"attention_varlen: {message}"):
            attention_varlen(**{"q": q, "k": q, "v": q, "cu_seqlens_q": ends, "cu_seqlens_k": ends} | change)


def test_packed_nothing_gives_nothing():
    ends = torch.zeros(1, dtype=torch.int32)
    nothing = torch.ones(0, 2, 16)
    assert attention_varlen(nothing, nothing, nothing, ends, ends).shape == (0, 2, 16)
    q, zeros = torch.ones(3, 2, 16), torch.zeros(2, dtype=torch.int32)
    out, lse = attention_varlen(q, nothing, nothing, torch.tensor([0, 3], dtype=torch.int32), zeros, return_lse=True)
    assert out.eq(0).all() and lse.shape == (2, 3) and lse.eq(-math.inf).all()


def test_the_public_functions_take_every_option():
    inputs = inputs_of(**shape(20, kv_len=33, heads=2, mask="bias", window=(5, 5)))
    out, lse = attention(**inputs, return_lse=True)
    want, want_lse = reference(**doubled(inputs), return_lse=True)
    assert_near(out, want)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-4)
    ends = torch.tensor([0, 20], dtype=torch.int32)
    q, k, v = (inputs[name][0].transpose(0, 1) for name in "qkv")
    packed, _ = attention_varlen(q, k, v, ends, torch.tensor([0, 33], dtype=torch.int32), window=(5, 5), return_lse=True, max_seqlen_q=20)
    assert_near(packed, reference(*(inputs[name].double() for name in "qkv"), window=(5, 5))[0].transpose(0, 1))
