"""v6 of `attention`: every option in the emulator, and what it refuses."""

import pytest
import torch

from labkernels.attention import hopper
from labkernels.attention.hopper import Config, configured
from labkernels.attention.reference import reference
from labkernels.attention.varlen import reference as varlen_reference
from labkernels.cuda import sanitizing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = Config(2, 64, 2, 2)  # quick in the emulator; the tiles of CONFIGS differ in nothing but sizes


def random(*shape, dtype=torch.bfloat16, device="cpu", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + shape[-2])).to(device, dtype)


def inputs(seq_len, kv_len, head_dim=64, batch=1, heads=1, kv_heads=1, **options):
    q = random(batch, heads, seq_len, head_dim, **options)
    return q, *(random(batch, kv_heads, kv_len, head_dim, seed=seed, **options) for seed in (1, 2))


def assert_right(got, want, dtype):
    (out, lse), (want_out, want_lse) = got, want
    epsilon = torch.finfo(dtype).eps
    assert out.dtype == dtype and out.shape == want_out.shape and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), want_out, rtol=2 * epsilon, atol=epsilon)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "sizes, options",
    [
        ((1, 1), {}),
        ((3, 33), {}),
        ((130, 200), {"causal": True}),
        ((200, 70), {"causal": True}),  # the first queries see nothing
        ((150, 300), {"causal": True, "window": (70, None)}),
        ((65, 257), {"window": (30, 20)}),
        ((65, 129), {"scale": 0.3}),
    ],
    ids=str,
)
def test_windows(sizes, options, device):
    q, k, v = inputs(*sizes, heads=2, kv_heads=1, device=device)
    exact = (tensor.double() for tensor in (q, k, v))
    assert_right(configured(SMALL, q, k, v, return_lse=True, **options), reference(*exact, return_lse=True, **options), q.dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bool", "additive", "float32"])
def test_masks(kind, device):
    q, k, v = inputs(70, 150, batch=2, heads=1, kv_heads=1, device=device)
    values = random(2, 1, 70, 150, dtype=torch.float32, device=device, seed=7)
    mask = {"bool": values > 0, "additive": values.to(q.dtype), "float32": values[0, 0]}[kind]
    if kind == "bool":
        mask[0, 0, 5] = False  # a query that sees nothing
    exact = reference(q.double(), k.double(), v.double(), True, mask=mask, return_lse=True)
    assert_right(configured(SMALL, q, k, v, True, mask=mask, return_lse=True), exact, q.dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim, config", [(128, SMALL), (80, SMALL), (256, Config(2, 80, 2, 1)), (64, Config(3, 128, 2, 2))])
def test_head_dims(head_dim, config, device):
    q, k, v = inputs(210, 190, head_dim=head_dim, heads=2, kv_heads=2, dtype=torch.float16, device=device)
    exact = reference(q.double(), k.double(), v.double(), True, return_lse=True)
    assert_right(configured(config, q, k, v, True, return_lse=True), exact, q.dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_sequences(device):
    ends_q = torch.tensor([0, 70, 71, 71, 230], dtype=torch.int32, device=device)
    ends_k = torch.tensor([0, 100, 100, 150, 400], dtype=torch.int32, device=device)
    q = random(230, 2, 64, device=device)
    k, v = (random(400, 1, 64, seed=seed, device=device) for seed in (1, 2))
    v[100] = torch.nan  # of another sequence than the first one, in whose last tile it lies
    got = hopper.configured(SMALL, q, k, v, True, return_lse=True, packed=(ends_q, ends_k, 159))
    want = varlen_reference(q.double(), k.double(), v.double(), ends_q, ends_k, True, return_lse=True)
    assert not want[0][:70].isnan().any()
    torch.testing.assert_close(got[0].double(), want[0], rtol=2**-7, atol=2**-7, equal_nan=True)
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device):
    q = random(2, 70, 3, 64, device=device).transpose(1, 2)
    k, v = random(2, 3, 90, 192, device=device)[..., 64:].split(64, dim=3)
    exact = reference(q.double(), k.double(), v.double(), return_lse=True)
    assert_right(configured(SMALL, q, k, v, return_lse=True), exact, q.dtype)


def test_nothing_goes_wrong_unseen():
    with sanitizing():
        q, k, v = inputs(130, 200, heads=2)
        configured(SMALL, q, k, v, True, return_lse=True)
        ends = torch.tensor([0, 70, 200], dtype=torch.int32)
        q, k, v = (random(200, 2, 64, seed=seed) for seed in range(3))
        configured(SMALL, q, k, v, packed=(ends, ends, 130))


def test_what_it_refuses():
    q, k, v = inputs(8, 8)
    assert hopper.accepts(q, k, v) is None
    assert hopper.accepts(q.float(), k.float(), v.float()) == "takes bfloat16 and float16"
    assert "16 bytes" in hopper.accepts(q[..., :7], k[..., :7], v[..., :7])
    assert "v's do not" in hopper.accepts(q, k, random(1, 1, 8, 65)[..., 1:])
    assert "above 0" in hopper.accepts(q, k, v, scale=-1.0)
