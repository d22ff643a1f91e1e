"""v7 of `attention`: float32 from halves. Every option in the emulator, how exact it is, and what it refuses."""

import pytest
import torch

from labkernels.attention import split
from labkernels.attention.reference import reference
from labkernels.cuda import sanitizing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random(*shape, device="cpu", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + shape[-2])).to(device)


def inputs(seq_len, kv_len, head_dim=64, heads=1, kv_heads=1, **options):
    q = random(1, heads, seq_len, head_dim, **options)
    return q, *(random(1, kv_heads, kv_len, head_dim, seed=seed, **options) for seed in (1, 2))


def exact(q, k, v, *options, **named):
    return reference(*(tensor.double() for tensor in (q, k, v)), *options, return_lse=True, **named)


def assert_right(got, want):
    for result, expected in zip(got, want):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "sizes, options",
    [
        ((1, 1), {}),
        ((130, 300), {"causal": True}),
        ((200, 70), {"causal": True}),  # the first queries see nothing
        ((150, 300), {"causal": True, "window": (70, None)}),
        ((65, 129), {"scale": 0.3}),
    ],
    ids=str,
)
def test_windows(sizes, options, device):
    q, k, v = inputs(*sizes, heads=2, device=device)
    assert_right(split.v7_split(q, k, v, return_lse=True, **options), exact(q, k, v, **options))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_masks(kind, device):
    q, k, v = inputs(70, 150, device=device)
    values = random(1, 1, 70, 150, device=device, seed=7)
    mask = values > 0 if kind == "bool" else values[0, 0]
    if kind == "bool":
        mask[0, 0, 5] = False  # a query that sees nothing
    assert_right(split.v7_split(q, k, v, True, mask=mask, return_lse=True), exact(q, k, v, True, mask=mask))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim, stages", [(128, 1), (80, 1), (7, 2)])
def test_head_dims(head_dim, stages, device):
    q, k, v = inputs(140, 190, head_dim=head_dim, heads=2, kv_heads=2, device=device)
    assert_right(split.configured(stages, True, q, k, v, True, return_lse=True), exact(q, k, v, True))


@pytest.mark.parametrize("device", DEVICES)
def test_views(device):
    q = random(2, 70, 3, 64, device=device).transpose(1, 2)
    k, v = random(2, 3, 90, 193, device=device)[..., 65:].split(64, dim=3)  # rows on multiples of 4 bytes alone
    assert_right(split.v7_split(q, k, v, return_lse=True), exact(q, k, v))


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_of_very_different_sizes_lose_nothing(device):
    """Each tile of 128 keys has its own scale: numbers a million times smaller or larger are as exact."""
    q, k, v = inputs(20, 384, device=device)
    sizes = torch.tensor([1e-6, 1.0, 1e6], device=device).repeat_interleave(128)[:, None]
    k_small, v_large = k * 1e-4, v * sizes
    want, _ = exact(q, k_small, v_large)
    error = (split.v7_split(q, k_small, v_large) - want).abs().max() / want.abs().max()
    assert error < 1e-6
    want, _ = exact(q * 1e15, k_small * 1e-11, v * 1e-20)
    error = (split.v7_split(q * 1e15, k_small * 1e-11, v * 1e-20) - want).abs().max() / want.abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_infinities_and_nan_go_where_pytorch_sends_them(where, device):
    for value in (torch.inf, -torch.inf, torch.nan):
        tensors = dict(zip("qkv", inputs(150, 140, device=device)))
        tensors[where][0, 0, 3, 5] = tensors[where][0, 0, 135, 0] = value
        tensors["q"][0, 0, 9] = 0.0
        want = reference(**tensors)
        got = split.v7_split(**tensors)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_as_exact_as_float32_at_4096(causal):
    q, k, v = (random(1, 4, 4096, 128, device="cuda", seed=seed) for seed in range(3))
    want, _ = exact(q, k, v, causal)
    assert (split.v7_split(q, k, v, causal) - want).abs().max() < 3e-6


def test_nothing_goes_wrong_unseen():
    with sanitizing():
        q, k, v = inputs(130, 200, heads=2)
        split.v7_split(q, k, v, True, return_lse=True)
        q, k, v = inputs(3, 5, head_dim=7)
        split.v7_split(q, k, v)


def test_what_it_refuses():
    q, k, v = inputs(8, 8)
    assert split.accepts(q, k, v) is None
    assert split.accepts(q.half(), k.half(), v.half()) == "takes float32, not float16"
    assert "at most 128" in split.accepts(*inputs(8, 8, head_dim=256))
    assert "above 0" in split.accepts(q, k, v, scale=-1.0)
    assert "q's are not" in split.accepts(q.transpose(2, 3), k, v)
