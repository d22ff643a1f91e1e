"""The operation `attention`: its reference, its costs, its refusals, and the mistakes that the checker recognises by name."""

import math

import pytest
import torch
import torch.nn.functional as F

from labkernels.attention import attention
from labkernels.attention.op import MASKS as OP_MASKS
from labkernels.attention.op import OP, pairs, shape
from labkernels.attention.reference import reference, visible
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed


def tensors(q_shape, kv_shape, **options):
    return torch.randn(q_shape, **options), torch.randn(kv_shape, **options), torch.randn(kv_shape, **options)


def test_reference_agrees_with_pytorch_on_grouped_heads_and_causal():
    torch.manual_seed(0)
    q, k, v = tensors((2, 6, 33, 16), (2, 2, 33, 16), dtype=torch.float64)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(reference(q, k, v, causal=True), want)


@pytest.mark.parametrize("mask", OP_MASKS)
def test_reference_agrees_with_pytorch_on_masks(mask):
    sizes = shape(9, kv_len=13, batch=2, heads=4, kv_heads=2, head_dim=16, mask=mask)
    inputs = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float64, **sizes)
    q, k, v, mask = (inputs[name] for name in ("q", "k", "v", "mask"))
    sdpa_mask = mask if mask.dtype == torch.bool else mask.double()
    torch.testing.assert_close(reference(q, k, v, mask=mask), F.scaled_dot_product_attention(q, k, v, attn_mask=sdpa_mask, enable_gqa=True))


def test_window_shows_so_many_keys_on_either_side():
    def seen(seq_len, kv_len, window, causal=False):
        return ["".join("x" if key else "." for key in row) for row in visible(seq_len, kv_len, "cpu", causal, window).tolist()]

    assert seen(3, 3, (0, 0)) == ["x..", ".x.", "..x"]
    assert seen(3, 5, (1, 0)) == [".xx..", "..xx.", "...xx"]
    assert seen(3, 5, (0, 1)) == ["..xx.", "...xx", "....x"]
    assert seen(3, 5, (1, None)) == [".xxxx", "..xxx", "...xx"]
    assert seen(3, 5, (1, None), causal=True) == seen(3, 5, (1, 0))
    assert seen(5, 2, (1, 0)) == ["..", "..", "..", "x.", "xx"]
    assert seen(2, 2, (10**9, 10**9)) == ["xx", "xx"]


def test_queries_that_see_nothing_get_zeros_and_minus_infinity():
    q, k, v = tensors((1, 1, 4, 8), (1, 1, 2, 8))
    out, lse = reference(q, k, v, causal=True, return_lse=True)
    assert out[:, :, :2].eq(0).all() and lse[0, 0, :2].tolist() == [-math.inf] * 2
    torch.testing.assert_close(out[:, :, 2], v[:, :, 0])
    hidden = torch.tensor([True, False, True, True])[:, None]
    out, lse = reference(q, k, v, mask=hidden, return_lse=True)
    assert out[:, :, 1].eq(0).all() and out[:, :, 0].ne(0).all() and lse.isfinite().sum() == 3


def test_lse_is_the_natural_log_of_the_sum_of_exponentials():
    q, k, v = tensors((2, 2, 3, 8), (2, 2, 5, 8), dtype=torch.float64)
    _, lse = reference(q, k, v, scale=0.5, return_lse=True)
    torch.testing.assert_close(lse, (0.5 * q @ k.mT).exp().sum(-1).log())


@pytest.mark.parametrize("sizes", [((2, 3, 4, 8), (2, 3, 0, 8)), ((0, 3, 4, 8), (0, 3, 5, 8)), ((2, 3, 0, 8), (2, 3, 5, 8))])
def test_nothing_to_attend_to_gives_what_pytorch_gives(sizes):
    q, k, v = tensors(*sizes)
    out, lse = attention(q, k, v, return_lse=True)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v)) and torch.equal(attention(q, k, v), out)
    assert lse.shape == q.shape[:3] and (lse == -math.inf).all()


def test_causal_is_aligned_bottom_right():
    torch.manual_seed(0)
    q, k, v = tensors((1, 1, 2, 8), (1, 1, 5, 8), dtype=torch.float64)
    assert visible(2, 5, "cpu").tolist() == [[True] * 4 + [False], [True] * 5]
    last = reference(q[:, :, 1:], k, v)  # the last query sees all keys
    torch.testing.assert_close(reference(q, k, v, causal=True)[:, :, 1:], last)


@pytest.mark.parametrize("window", [None, (2, 3), (None, 1), (0, None)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq_len", [5, 20])
def test_flops_count_the_pairs_that_are_computed(seq_len, causal, window):
    sizes = dict(batch=2, heads=3, seq_len=seq_len, kv_len=9, causal=causal, window=window)
    visible_pairs = int(visible(seq_len, 9, "cpu", causal, window).sum())
    assert pairs(**sizes) == 6 * visible_pairs
    assert OP.flops(head_dim=16, kv_heads=1, **sizes) == 6 * visible_pairs * 16 * 4


@pytest.mark.parametrize("mask", [None, *OP_MASKS])
def test_bytes_are_each_input_and_the_output_once(mask):
    sizes = shape(5, batch=2, heads=4, kv_heads=2, kv_len=9, head_dim=16, mask=mask)
    inputs = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.bfloat16, **sizes)
    counted = sum(t.nbytes for t in inputs.values() if isinstance(t, torch.Tensor)) + inputs["q"].nbytes
    assert OP.bytes_moved(torch.bfloat16, **sizes) == counted


def test_sweep_shapes_are_completed():
    bf16 = OP.complete_shape(torch.bfloat16, seq_len=2048, head_dim=64)
    assert (bf16["batch"], bf16["heads"], bf16["kv_heads"], bf16["kv_len"]) == (8, 32, 32, 2048)
    fp32 = OP.complete_shape(torch.float32, seq_len=512, head_dim=128, causal=True)
    assert (fp32["batch"], fp32["heads"], fp32["causal"]) == (1, 32, True)
    assert "window" not in fp32 and OP.complete_shape(torch.float32, seq_len=512, window=(9, 0), mask="bias")["window"] == (9, 0)


@pytest.mark.parametrize(
    "q, k, v, options, message",
    [
        ((1, 4, 8, 128), (1, 4, 8, 96), None, {}, "attention: k has head_dim 96, q has 128; both must be equal"),
        ((2, 4, 8, 16), (1, 4, 8, 16), None, {}, "attention: k has batch 1, q has 2; both must be equal"),
        ((1, 4, 8, 16), (1, 3, 8, 16), None, {}, "attention: q has 4 heads, k has 3; the first must be a multiple of the second"),
        ((1, 4, 8, 16), (1, 4, 8, 16), (1, 4, 9, 16), {}, r"attention: k has shape \(1, 4, 8, 16\), v has \(1, 4, 9, 16\); both must be equal"),
        ((4, 8, 16), (4, 8, 16), None, {}, r"attention: q has shape \(4, 8, 16\); it must have four axes"),
        ((1, 4, 8, 16), (1, 0, 8, 16), None, {}, "attention: q has 4 heads, k has 0; the first must be a multiple of the second"),
        ((1, 1, 8, 16), (1, 1, 8, 16), None, {"window": (-1, 0)}, r"attention: window is \(-1, 0\); it must be \(left, right\)"),
        ((1, 1, 8, 16), (1, 1, 8, 16), None, {"window": 5}, "attention: window is 5; it must be"),
        ((1, 2, 8, 16), (1, 2, 9, 16), None, {"mask": torch.ones(2, 9)}, r"mask has shape \(2, 9\); it must be broadcastable to .* = \(1, 2, 8, 9\)"),
        ((1, 2, 8, 16), (1, 2, 9, 16), None, {"mask": torch.ones(1, 1, 1, 1, 9)}, r"mask has shape \(1, 1, 1, 1, 9\)"),
        ((1, 2, 8, 16), (1, 2, 8, 16), None, {"mask": torch.ones(8, 8).double()}, "mask is float64; it must be bool"),
        ((1, 2, 8, 16), (1, 2, 8, 16), None, {"mask": True}, "mask is a bool; it must be a tensor"),
    ],
)
def test_wrong_inputs_are_named(q, k, v, options, message):
    with pytest.raises(ArgumentError, match=message):
        OP.run(q=torch.ones(q), k=torch.ones(k), v=torch.ones(v or k), **{"causal": False, "scale": None, **options})


def test_wrong_dtypes_are_named():
    q = torch.ones(1, 1, 3, 16)
    with pytest.raises(ArgumentError, match="attention: v is float64; it must be float32, bfloat16 or float16"):
        OP.run(q=q, k=q, v=q.double(), causal=False, scale=None)
    with pytest.raises(ArgumentError, match="attention: k is bfloat16, q is float32; both must be equal"):
        OP.run(q=q, k=q.bfloat16(), v=q, causal=False, scale=None)


def softmax_times_v(scores, v):
    return torch.softmax(scores, dim=-1) @ v


def spread(q, k, v, scale):
    """Scores without a mask and v with as many heads as q, in float64."""
    group = q.shape[1] // k.shape[1]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return q.double() @ k.double().repeat_interleave(group, 1).mT * scale, v.double().repeat_interleave(group, 1)


def no_scale(q, k, v, causal=False, scale=None):
    return reference(q, k, v, causal, 1.0)


def default_scale_always(q, k, v, causal=False, scale=None):
    return reference(q, k, v, causal)


def scale_by_head_dim(q, k, v, causal=False, scale=None):
    return reference(q, k, v, causal, 1 / q.shape[-1])


def never_masked(q, k, v, causal=False, scale=None):
    return reference(q, k, v, False, scale)


def top_left(q, k, v, causal=False, scale=None):
    scores, v = spread(q, k, v, scale)
    mask = torch.ones_like(scores, dtype=torch.bool).tril()
    return softmax_times_v(scores.masked_fill(~mask, -torch.inf) if causal else scores, v)


def one_key_too_many(q, k, v, causal=False, scale=None):
    scores, v = spread(q, k, v, scale)
    mask = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[2] - q.shape[2] + 1)
    return softmax_times_v(scores.masked_fill(~mask, -torch.inf) if causal else scores, v)


def heads_modulo(q, k, v, causal=False, scale=None):
    head = torch.arange(q.shape[1], device=q.device) % k.shape[1]
    return reference(q, k[:, head], v[:, head], causal, scale)


def never_divided(q, k, v, causal=False, scale=None):
    scores, v = spread(q, k, v, scale)
    scores = scores.masked_fill(~visible(*scores.shape[-2:], scores.device), -torch.inf) if causal else scores
    return (scores - scores.amax(-1, keepdim=True)).exp() @ v


def padded_to_32(q, k, v, causal=False, scale=None):
    scores, v = spread(q, k, v, scale)
    scores = scores.masked_fill(~visible(*scores.shape[-2:], scores.device), -torch.inf) if causal else scores
    return torch.softmax(F.pad(scores, (0, -scores.shape[-1] % 32)), -1)[..., : k.shape[2]] @ v


def whole_tiles_only(q, k, v, causal=False, scale=None):
    keys = max(k.shape[2] // 32 * 32, min(k.shape[2], 32))
    scores, v = spread(q, k, v, scale)
    scores = scores.masked_fill(~visible(*scores.shape[-2:], scores.device), -torch.inf) if causal else scores
    return softmax_times_v(scores[..., :keys], v[..., :keys, :])


def accumulator_not_rescaled(q, k, v, causal=False, scale=None):
    """Flash attention with tiles of 32 keys whose accumulator misses the factor exp(m_old - m_new)."""
    scores, v = spread(q, k, v, scale)
    scores = scores.masked_fill(~visible(*scores.shape[-2:], scores.device), -torch.inf) if causal else scores
    maximum = scores[..., :32].amax(-1, keepdim=True)
    total, out = torch.zeros_like(maximum), torch.zeros(*scores.shape[:-1], v.shape[-1], dtype=torch.float64, device=q.device)
    for first in range(0, scores.shape[-1], 32):
        tile = scores[..., first : first + 32]
        larger = torch.maximum(maximum, tile.amax(-1, keepdim=True))
        weights = (tile - larger).exp()
        total = total * (maximum - larger).exp() + weights.sum(-1, keepdim=True)
        out = out + weights @ v[..., first : first + 32, :]
        maximum = larger
    return out / total


@pytest.mark.parametrize(
    "wrong, cases, hint",
    [
        (no_scale, {"seq_len": [33]}, "attention without the scale"),
        (scale_by_head_dim, {"seq_len": [33]}, "scale 1 / head_dim instead of 1 / sqrt"),
        (default_scale_always, {"scale": 0.3}, "the argument `scale` is not used"),
        (never_masked, {"causal": True}, "attention without the causal mask"),
        (top_left, {"causal": True}, "aligned top left: query i sees keys 0 to i + 63 here"),
        (one_key_too_many, {"causal": True, "seq_len": 33}, "one key too many"),
        (heads_modulo, {}, "h % kv_heads instead of h // (heads // kv_heads)"),
        (never_divided, {"seq_len": 33}, "before the division by the sum"),
        (padded_to_32, {"seq_len": 33}, "31 keys past the end take part with score 0, up to a tile of 32"),
        (whole_tiles_only, {"seq_len": 65}, "attention without the last 1 of 65 keys: a partial tile must be read too"),
        (accumulator_not_rescaled, {"seq_len": 64}, "the accumulator is not rescaled as the running maximum grows"),
    ],
)
def test_classic_mistakes_are_recognised(wrong, cases, hint):
    with pytest.raises(CheckFailed) as raised:
        check("attention", lambda *args, **options: wrong(*args, **options).to(args[0].dtype), dtypes=["float32"], quiet=True, **cases)
    assert raised.value.reason == "mismatch"
    assert hint in (raised.value.hint or "no hint"), str(raised.value)


def no_window(q, k, v, causal=False, scale=None, window=None):
    return reference(q, k, v, causal, scale)


def window_without_own_key(q, k, v, causal=False, scale=None, window=None):
    left, right = window or (None, None)
    return reference(q, k, v, causal, scale, window=(left and left - 1, right))


def mask_reversed(q, k, v, causal=False, scale=None, *, mask=None):
    return reference(q, k, v, causal, scale, mask=~mask if mask is not None and mask.dtype == torch.bool else mask)


def mask_in_wrong_units(q, k, v, causal=False, scale=None, *, mask=None):
    additive = mask is not None and mask.dtype != torch.bool
    return reference(q, k, v, causal, scale, mask=mask * math.log(2) if additive else mask)


def mask_scaled(q, k, v, causal=False, scale=None, *, mask=None):
    additive = mask is not None and mask.dtype != torch.bool
    return reference(q, k, v, causal, scale, mask=mask * (scale or 1 / math.sqrt(q.shape[-1])) if additive else mask)


@pytest.mark.parametrize(
    "wrong, cases, hint",
    [
        (no_window, {"window": [(20, 0)]}, "attention without the window"),
        (window_without_own_key, {"window": [(20, 0)]}, "is one key too short on its left"),
        (mask_reversed, {"mask": "pairs"}, "True means that the query may see the key"),
        (mask_in_wrong_units, {"mask": "bias", "causal": False}, "without the factor log2(e)"),
        (mask_scaled, {"mask": "float32_bias"}, "added to the scores after the scale"),
    ],
)
def test_mistakes_with_windows_and_masks_are_recognised(wrong, cases, hint):
    with pytest.raises(CheckFailed) as raised:
        check("attention", lambda *args, **options: wrong(*args, **options).to(args[0].dtype), dtypes=["float32"], quiet=True, **cases)
    assert raised.value.reason == "mismatch"
    assert hint in (raised.value.hint or "no hint"), str(raised.value)


def test_who_does_not_take_windows_or_masks_is_not_judged_on_them():
    def simple(q, k, v, causal, scale):
        return reference(q, k, v, causal, scale)

    def windowed(q, k, v, causal, scale, window=None):
        return reference(q, k, v, causal, scale, window=window)

    passed = [check("attention", fn, dtypes=["float32"], seeds=(0,), quiet=True).passed for fn in (simple, windowed, reference)]
    given = [set(shape) & {"window", "mask"} for shape in OP.check_shapes]
    if not torch.cuda.is_available():
        assert passed == [sum(not names for names in given), sum("mask" not in names for names in given), len(given)]
    assert passed[0] < passed[1] < passed[2]


def test_overflow_is_explained():
    def no_maximum(q, k, v, causal=False, scale=None):
        scores, v = spread(q, k, v, scale)
        weights = scores.float().exp()
        return (weights @ v.float() / weights.sum(-1, keepdim=True)).to(q.dtype)

    with pytest.raises(CheckFailed) as raised:
        check("attention", no_maximum, causal=False, quiet=True)
    assert raised.value.reason == "not_finite" and "subtract each row's maximum first" in raised.value.hint


def test_an_unknown_mistake_gets_no_hint():
    with pytest.raises(CheckFailed) as raised:
        check("attention", lambda q, k, v, causal, scale: reference(q, k, v, causal, scale) * 1.1, quiet=True)
    assert raised.value.reason == "mismatch" and raised.value.hint is None
