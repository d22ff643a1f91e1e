"""Every version of `attention`: right at odd sizes, with masks, grouped heads, strides and large scores; and what each refuses."""

import pytest
import torch
import torch.nn.functional as F

from labkernels.attention import variants
from labkernels.attention.reference import reference, visible
from labkernels.attention.variants import FOLDER, best_tile, tiled
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BEFORE_TENSOR_CORES = ["v1_naive", "v1_naive_cuda", "v2_online", "v3_tiled", "v4_warp_tiles"]  # later ones have tests of their own
VARIANTS = {name: variants.VARIANTS[name] for name in BEFORE_TENSOR_CORES}
CUDA_CPP = [name for name in VARIANTS if name != "v1_naive"]


def random(seq_len, kv_len=None, head_dim=64, batch=1, heads=1, kv_heads=1, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seq_len + head_dim)
    kv_len = kv_len or seq_len
    q = torch.randn(batch, heads, seq_len, head_dim, generator=generator).to(device, dtype)
    k, v = (torch.randn(batch, kv_heads, kv_len, head_dim, generator=generator).to(device, dtype) for _ in range(2))
    return q, k, v


def run(name: str, q, k, v, **options) -> torch.Tensor:
    if (reason := VARIANTS[name].accepts(q=q, k=k, v=v, **options)) is not None:
        pytest.skip(reason)
    return VARIANTS[name].fn(q, k, v, **options)


def exact(q, k, v, **options) -> torch.Tensor:
    """float64."""
    return reference(q.double(), k.double(), v.double(), **options)


def assert_right(result, q, k, v, **options) -> None:
    """float32: near float64. Half precision: what rounding the right result costs, since all of the arithmetic is float32."""
    want = exact(q, k, v, **options)
    assert result.shape == q.shape and result.dtype == q.dtype and result.device == q.device and result.is_contiguous()
    relative, absolute = {torch.float32: (2e-5, 5e-6), torch.bfloat16: (2**-8, 1e-5), torch.float16: (2**-11, 1e-5)}[q.dtype]
    torch.testing.assert_close(result.double(), want, rtol=relative, atol=absolute)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    report = check("attention", name, seeds=(0,), quiet=True)
    assert report.sanitizer == "clean" or name == "v1_naive"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CUDA_CPP)
def test_odd_lengths_with_and_without_mask(name, dtype, device):
    for seq_len, kv_len in ((1, 1), (3, 33), (65, 127), (127, 33), (33, 300)):
        q, k, v = random(seq_len, kv_len, device=device, dtype=dtype)
        for causal in (False, True):
            assert_right(run(name, q, k, v, causal=causal), q, k, v, causal=causal)


@pytest.mark.parametrize("device", DEVICES)
def test_numba_at_odd_lengths_with_and_without_mask(device):
    for seq_len, kv_len in ((1, 1), (3, 17), (9, 5)):
        q, k, v = random(seq_len, kv_len, head_dim=16, heads=2, device=device)
        for causal in (False, True):
            assert_right(run("v1_naive", q, k, v, causal=causal), q, k, v, causal=causal)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [16, 20, 33, 80, 96, 128])
@pytest.mark.parametrize("name", CUDA_CPP)
def test_any_head_dim(name, head_dim, device):
    q, k, v = random(37, 45, head_dim=head_dim, device=device)
    assert_right(run(name, q, k, v, causal=True, scale=0.2), q, k, v, causal=True, scale=0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_grouped_heads_of_several_batches(name, kv_heads, device):
    q, k, v = random(6, 7, head_dim=16, batch=2, heads=4, kv_heads=kv_heads, device=device)
    assert_right(run(name, q, k, v), q, k, v)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_queries_that_see_no_key_get_zeros(name, device):
    q, k, v = random(12, 5, head_dim=16, device=device)
    result = run(name, q, k, v, causal=True)
    assert not visible(12, 5, device)[6].any() and visible(12, 5, device)[7].any()
    assert result[:, :, :7].eq(0).all()
    assert_right(result, q, k, v, causal=True)


@pytest.mark.parametrize("name", CUDA_CPP)
def test_large_scores_err_no_more_than_pytorch_does(name):
    q, k, v = random(65, 140)
    q, k = 50 * q, 50 * k
    want = exact(q, k, v)
    native = (F.scaled_dot_product_attention(q, k, v).double() - want).abs().max()
    error = (run(name, q, k, v).double() - want).abs().max()
    assert error < 2 * native + 1e-5, (error, native)


@pytest.mark.parametrize("name", CUDA_CPP)
@pytest.mark.parametrize("scale", [0.0, -0.7])
def test_scale_that_is_not_positive(name, scale):
    q, k, v = random(40)
    assert_right(run(name, q, k, v, scale=scale), q, k, v, scale=scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["v2_online", "v3_tiled", "v4_warp_tiles"])
def test_strided_tensors(name, device):
    q, k, v = (tensor.transpose(1, 2) for tensor in random(3, 3, heads=35, kv_heads=35, device=device))  # (batch, seq, heads, head_dim)
    assert_right(run(name, q, k, v, causal=True), q, k, v, causal=True)
    packed = torch.randn(1, 2, 35, 3 * 64 + 1, generator=torch.Generator().manual_seed(0)).to(device)
    for first in (0, 1):  # no row but every fourth lies on 16 bytes
        q, k, v = (packed[..., first + 64 * i : first + 64 * (i + 1)] for i in range(3))
        assert_right(run(name, q, k, v), q, k, v)


def test_v1_and_v2_and_v3_say_what_they_refuse():
    q, k, v = (tensor.transpose(1, 2) for tensor in random(3, 3, heads=5, kv_heads=5))
    assert VARIANTS["v1_naive_cuda"].accepts(q=q, k=k, v=v) == "takes contiguous tensors, q is not"
    q, k, v = random(3, head_dim=160)
    assert VARIANTS["v3_tiled"].accepts(q=q, k=k, v=v) == "takes a head_dim of at most 128"
    assert VARIANTS["v2_online"].accepts(q=q, k=k, v=v) is None
    assert_right(run("v2_online", q, k, v), q, k, v)
    q, k, v = (tensor.transpose(2, 3) for tensor in random(32, head_dim=32))
    assert VARIANTS["v3_tiled"].accepts(q=q, k=k, v=v) == "takes rows whose elements are neighbours in memory, q's are not"
    q, k, v = random(512, dtype=torch.bfloat16)
    assert VARIANTS["v1_naive"].accepts(q=q, k=k, v=v) == "the Numba kernel takes float32"
    reason = VARIANTS["v1_naive"].accepts(q=q.float(), k=k.float(), v=v.float())
    assert ("not on CPU tensors" if torch.cuda.is_available() else "simulator would take seconds") in reason


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tile", [(128, 128), (64, 128), (64, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_v3_is_right_with_every_tile(dtype, tile, device):
    for seq_len, kv_len, head_dim in ((1, 5, 32), (129, 257, 128), (140, 40, 70)):
        q, k, v = random(seq_len, kv_len, head_dim=head_dim, heads=2, device=device, dtype=dtype)
        for causal in (False, True):
            assert_right(tiled(tile, q, k, v, causal), q, k, v, causal=causal)


@pytest.mark.parametrize("tile", [(128, 128), (64, 128)])  # the check's small shapes take (64, 32)
def test_v3_has_no_race_with_larger_tiles(tile):
    q, k, v = random(150, 140)
    with sanitizing():
        assert_right(tiled(tile, q, k, v, causal=True), q, k, v, causal=True)


def test_v3_picks_a_tile_that_fits_the_problem():
    def picked(seq_len, kv_len, heads):
        return best_tile(torch.empty(1, heads, seq_len, 128), torch.empty(1, heads, kv_len, 128))

    assert picked(4096, 4096, 32) == picked(512, 512, 32) == (128, 128)
    assert picked(512, 512, 8) == picked(64, 4096, 1024) == (64, 128)
    assert picked(64, 32, 8) == (64, 32)


@pytest.mark.gpu
def test_long_sequences_on_the_gpu():
    for causal in (False, True):
        q, k, v = random(1000, 2048, head_dim=128, batch=2, heads=8, kv_heads=2, device="cuda")
        for name in CUDA_CPP:
            assert_right(run(name, q, k, v, causal=causal), q, k, v, causal=causal)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "file, name, arguments",
    [
        ("v1_naive", "attention_scores", (torch.bfloat16,)),
        ("v1_naive", "attention_softmax", ()),
        ("v1_naive", "attention_output", (torch.float32,)),
        ("v2_online", "attention_online", (torch.float32, 4)),
        ("v3_tiled", "attention_tiled", (torch.float32, 128, 128, 128, 4)),
        ("v3_tiled", "attention_tiled", (torch.bfloat16, 128, 64, 128, 1)),
        ("v3_tiled", "attention_tiled", (torch.bfloat16, 128, 64, 32, 1)),
    ],
)
def test_compiles_for_gpus_without_spills(file, name, arguments, arch):
    resources = taken(kernel(FOLDER / f"{file}.cu", name, *arguments), arch)
    assert resources.spill_stores == resources.stack == 0, resources
