"""RoPE alone and fused with bias and cache: judged, compared with Hugging Face's and Meta's formulas, differentiable, clear about wrong inputs."""

import math

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.kvcache.layout import slots_for
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.nn import RotaryEmbedding
from labkernels.rope import rope_frequencies, rope_table
from labkernels.rope.qkv_rope_cache_op import OP as FUSED
from labkernels.rope.qkv_rope_cache_op import Cache
from labkernels.rope.rope_op import OP as ROPE
from labkernels.rope.rope_op import reference

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OPS = {op.name: op for op in (ROPE, FUSED)}
VARIANTS = [(op.name, variant) for op in OPS.values() for variant in op.variants]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("op, variant", VARIANTS)
def test_variant_passes_the_check(op, variant):
    dtypes = None if torch.cuda.is_available() else ["float32" if variant == "v1_naive" else "bfloat16"]
    assert check(OPS[op], variant, seeds=(0,), dtypes=dtypes, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("op, variant", [pair for pair in VARIANTS if pair[1] != "v1_naive"])
def test_the_fast_variants_pass_the_check_on_a_gpu(op, variant):
    check(OPS[op], variant, seeds=(0,), dtypes=["float32", "bfloat16"], isolated=False, quiet=True)


def metas_scaling(frequencies, factor=32.0, low=1.0, high=4.0, original=8192):
    """apply_scaling of Meta's llama-models, as it stands there."""
    scaled = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            scaled.append(frequency)
        elif wavelength > original / low:
            scaled.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.tensor(scaled)


def test_frequencies_are_llamas():
    plain = rope_frequencies(128, 500_000.0)
    torch.testing.assert_close(plain, 1.0 / 500_000.0 ** (torch.arange(0, 128, 2) / 128))
    scaled = rope_frequencies(128, 500_000.0, LLAMA3)
    torch.testing.assert_close(scaled, metas_scaling(plain), rtol=1e-5, atol=0)
    assert (scaled[:20] == plain[:20]).all() and torch.allclose(scaled[-20:], plain[-20:] / 32)
    torch.testing.assert_close(rope_frequencies(8, scaling={"type": "linear", "factor": 4.0}), rope_frequencies(8) / 4)


@pytest.mark.parametrize("words", ["rope_type 'yarn'", "lacks 'factor'"])
def test_unknown_scaling_is_named(words):
    with pytest.raises(ArgumentError, match=words):
        rope_frequencies(8, scaling={"rope_type": "yarn" if "yarn" in words else "linear"})


def test_half_split_is_hugging_faces_and_interleaved_is_the_papers():
    x, frequencies = torch.randn(1, 1, 9, 8, dtype=torch.float64), rope_frequencies(8)
    angles = torch.arange(9)[:, None] * frequencies.double()
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    rotated_half = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
    torch.testing.assert_close(reference(x, x, frequencies.double())[0], x * cos + rotated_half * sin)
    turned = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles))
    torch.testing.assert_close(reference(x, x, frequencies.double(), interleaved=True)[0], turned.flatten(-2))


def test_scores_depend_on_the_distance_alone():
    q, k, frequencies = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64), rope_frequencies(64)

    def score(at_q, at_k):
        turned, _ = lk.functional.rope(q, q, frequencies, torch.tensor([at_q]))
        return float((turned * lk.functional.rope(k, k, frequencies, torch.tensor([at_k]))[0]).sum())

    assert score(7, 3) == pytest.approx(score(100_004, 100_000), abs=1e-4)
    assert abs(score(7, 3) - score(7, 5)) > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_gradient_turns_back(interleaved):
    q, k = torch.randn(2, 3, 5, 16, requires_grad=True), torch.randn(2, 1, 5, 16, requires_grad=True)
    angles, positions = rope_frequencies(12), torch.randint(0, 50, (2, 5))
    got, want = (fn(q, k, angles, positions, interleaved) for fn in (lk.functional.rope, reference))
    weights = [torch.randn_like(one) for one in want]
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(sum((one * weight).sum() for one, weight in zip(result, weights)), (q, k)) for result in (got, want)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_results_lie_in_memory_as_inputs_do():
    q = torch.randn(2, 5, 3, 16).transpose(1, 2)
    assert all(result.stride() == q.stride() for result in lk.functional.rope(q, q, rope_frequencies(16)))


def test_a_position_outside_the_table_is_nan():
    q = torch.randn(1, 1, 2, 8)
    result, _ = lk.functional.rope(q, q, rope_table(rope_frequencies(8), 4), torch.tensor([3, 4]))
    assert result[0, 0, 0].isfinite().all() and result[0, 0, 1].isnan().all()


def test_opcheck():
    q, k = torch.randn(1, 2, 3, 16, requires_grad=True), torch.randn(1, 3, 1, 16).transpose(1, 2).requires_grad_()
    torch.library.opcheck(ops.rope.default, (q, k, rope_frequencies(16), torch.arange(3)))
    cache, slots = torch.randn(2, 2, 1, 4, 16), torch.tensor([5, -1, 0])
    torch.library.opcheck(ops.qkv_rope_cache.default, (torch.randn(3, 64), *cache, rope_frequencies(16), torch.arange(3), slots, torch.randn(64)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torch_compile_takes_the_layer_whole(device):
    layer = RotaryEmbedding(16, 500_000.0, LLAMA3).to(device)
    q = torch.randn(1, 2, 3, 16, device=device)
    compiled = torch.compile(lambda q: layer(q, q)[0] + 1, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(compiled(q), layer(q, q)[0] + 1)


def test_the_layer_keeps_its_angles_when_cast():
    layer = RotaryEmbedding(16, max_positions=8).to(torch.bfloat16)
    assert layer.angles.dtype == torch.float32 and not layer.state_dict()
    torch.testing.assert_close(layer.angles, rope_table(rope_frequencies(16), 8))


@pytest.mark.parametrize("paged", [False, True])
def test_the_cache_holds_what_separate_operations_would_write(paged):
    """Two sequences of 5 and 3 tokens, from positions 2 and 9 on, one token skipped; other places of the cache stay as they were."""
    heads, kv_heads, head_dim, page_size = 4, 2, 16, 4 if paged else 16
    block_table = torch.tensor([[3, 0, 5, 1], [2, 4, 6, 7]], dtype=torch.int32) if paged else None
    positions = torch.tensor([[2, 3, 4, 5, 6], [9, 10, 11, -1, -1]])
    slots = slots_for(positions, block_table, page_size)
    cache = torch.randn(2, 8 if paged else 2, kv_heads, page_size, head_dim)
    before, qkv, bias = cache.clone(), torch.randn(10, (heads + 2 * kv_heads) * head_dim), torch.randn((heads + 2 * kv_heads) * head_dim)
    angles = rope_frequencies(head_dim)
    got = lk.functional.qkv_rope_cache(qkv, tuple(cache), angles, positions.flatten().clamp(min=0), slots.flatten(), bias)

    q, k, v = (qkv + bias).view(2, 5, -1, head_dim).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    want_q, want_k = lk.functional.rope(q, k, angles, positions.clamp(min=0))
    torch.testing.assert_close(got, want_q.transpose(1, 2).flatten(0, 1))
    for sequence, token in (positions >= 0).nonzero().tolist():
        page, offset = divmod(int(slots[sequence, token]), page_size)
        for half, want in zip((0, 1), (want_k, v)):
            torch.testing.assert_close(cache[half, page, :, offset], want[sequence, :, token])
            before[half, page, :, offset] = cache[half, page, :, offset]
    assert torch.equal(cache, before)


@pytest.mark.parametrize("variant", ["v1_naive", "v2_vectors", "v3_bytes"])
def test_pytorch_is_told_that_the_cache_was_written(variant):
    """Its version goes up, by which autograd would notice."""
    cache = [torch.zeros(2, 2, 16, 64) for _ in "kv"]
    if variant == "v3_bytes":
        cache = [half.to(torch.int8) for half in cache] + [torch.zeros(2, 2, 16) for _ in "kv"]
    before = [half._version for half in cache]
    fn = FUSED.variants[variant].fn
    qkv, slots = torch.randn(3, 8 * 64), torch.tensor([3, 17, -1])
    fn(qkv, Cache(*cache), rope_frequencies(64), torch.arange(3), slots)
    assert all(half._version > version and half.any() for half, version in zip(cache, before))
    assert qkv._version == 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"k": torch.randn(1, 1, 3, 12)}, "rope: k has head_dim 12, q has 8; both must be equal"),
        ({"q": torch.randn(2, 3, 8)}, r"rope: q has shape \(2, 3, 8\); it must have four axes"),
        ({"angles": rope_frequencies(16)}, "rope: angles are for 16 elements of a head, head_dim is 8"),
        ({"angles": rope_frequencies(8).double()}, "rope: angles is float64; it must be float32"),
        ({"positions": torch.arange(2)}, r"rope: positions has shape \(2,\); it must be \(seq,\) = \(3,\) or \(batch, seq\) = \(1, 3\)"),
        ({"positions": torch.arange(3.0)}, "rope: positions is float32; it must be int32 or int64"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(ArgumentError, match=words):
        lk.functional.rope(**{"q": q, "k": q, "angles": rope_frequencies(8), **change})


def test_wrong_inputs_of_the_fused_operation_are_named():
    cache, angles = tuple(torch.randn(2, 2, 1, 4, 16)), rope_frequencies(16)
    with pytest.raises(ArgumentError, match=r"qkv_rope_cache: qkv has shape \(3, 32\)"):
        lk.functional.qkv_rope_cache(torch.randn(3, 32), cache, angles, torch.arange(3), torch.arange(3))
    with pytest.raises(ArgumentError, match="qkv_rope_cache: slots is int32; it must be int64"):
        lk.functional.qkv_rope_cache(torch.randn(3, 64), cache, angles, torch.arange(3), torch.arange(3).int())


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda given: {"inverse": not given["inverse"]}, "look at the signs"),
        (lambda given: {"interleaved": not given["interleaved"]}, "pairs"),
        (lambda given: {"positions": None}, "not looked at"),
    ],
)
def test_classic_mistakes_are_named(mistake, words):
    def mistaken(q, k, angles, positions=None, interleaved=False, inverse=False):
        given = {"positions": positions, "interleaved": interleaved, "inverse": inverse}
        return reference(q, k, angles, **{**given, **mistake(given)})

    with pytest.raises(CheckFailed) as failure:
        check(ROPE, mistaken, dtypes=["float32"], seeds=(0,), positions="shared", seq=[7, 9], quiet=True)
    assert words in failure.value.hint


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_vectors_do_not_spill(arch):
    from labkernels.cuda.variants import kernel
    from labkernels.rope.launch import HEADS
    from labkernels.rope.rope_variants import FOLDER

    for file, name in (("v2_vectors.cu", "rope_vectors"), ("v2_qkv_cache_vectors.cu", "qkv_cache_vectors")):
        assert kernel(FOLDER / file, name, torch.bfloat16, 8, HEADS, "false").resources(arch).spill_store_bytes == 0
