"""The operation `attention`: its reference, its costs, its refusals, and the mistakes that the checker recognises by name."""

import math

import pytest
import torch
import torch.nn.functional as F

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


def test_causal_is_aligned_bottom_right():
    torch.manual_seed(0)
    q, k, v = tensors((1, 1, 2, 8), (1, 1, 5, 8), dtype=torch.float64)
    assert visible(2, 5, "cpu").tolist() == [[True] * 4 + [False], [True] * 5]
    last = reference(q[:, :, 1:], k, v)  # the last query sees all keys
    torch.testing.assert_close(reference(q, k, v, causal=True)[:, :, 1:], last)


@pytest.mark.parametrize("causal", [False, True])
def test_flops_count_the_pairs_that_are_computed(causal):
    sizes = dict(batch=2, heads=3, seq_len=5, kv_len=9, causal=causal)
    visible_pairs = int(visible(5, 9, "cpu").sum()) if causal else 45
    assert pairs(**sizes) == 6 * visible_pairs
    assert OP.flops(head_dim=16, kv_heads=1, **sizes) == 6 * visible_pairs * 16 * 4


def test_bytes_are_each_input_and_the_output_once():
    sizes = shape(5, batch=2, heads=4, kv_heads=2, kv_len=9, head_dim=16)
    inputs = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.bfloat16, **sizes)
    counted = sum(t.nbytes for t in (inputs["q"], inputs["k"], inputs["v"])) + inputs["q"].nbytes
    assert OP.bytes_moved(torch.bfloat16, **sizes) == counted


def test_sweep_shapes_are_completed():
    bf16 = OP.complete_shape(torch.bfloat16, seq_len=2048, head_dim=64)
    assert (bf16["batch"], bf16["heads"], bf16["kv_heads"], bf16["kv_len"]) == (8, 32, 32, 2048)
    fp32 = OP.complete_shape(torch.float32, seq_len=512, head_dim=128, causal=True)
    assert (fp32["batch"], fp32["heads"], fp32["causal"]) == (1, 32, True)


@pytest.mark.parametrize(
    "q, k, v, options, message",
    [
        ((1, 4, 8, 128), (1, 4, 8, 96), None, {}, "attention: k has head_dim 96, q has 128; both must be equal"),
        ((2, 4, 8, 16), (1, 4, 8, 16), None, {}, "attention: k has batch 1, q has 2; both must be equal"),
        ((1, 4, 8, 16), (1, 3, 8, 16), None, {}, "attention: q has 4 heads, k has 3; the first must be a multiple of the second"),
        ((1, 4, 8, 16), (1, 4, 8, 16), (1, 4, 9, 16), {}, r"attention: k has shape \(1, 4, 8, 16\), v has \(1, 4, 9, 16\); both must be equal"),
        ((4, 8, 16), (4, 8, 16), None, {}, r"attention: q has shape \(4, 8, 16\); it must have four axes"),
        ((1, 1, 8, 16), (1, 1, 3, 16), None, {"causal": True}, "attention: causal with 8 queries and 3 keys: the first queries would see no key"),
        ((1, 1, 0, 16), (1, 1, 3, 16), None, {}, "no axis may be empty"),
    ],
)
def test_wrong_inputs_are_named(q, k, v, options, message):
    with pytest.raises(ArgumentError, match=message):
        OP.run(q=torch.ones(q), k=torch.ones(k), v=torch.ones(v or k), **{"causal": False, "scale": None, **options})


def test_wrong_dtypes_are_named():
    q = torch.ones(1, 1, 3, 16)
    with pytest.raises(ArgumentError, match="attention: v is float64; it must be float32 or bfloat16"):
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
