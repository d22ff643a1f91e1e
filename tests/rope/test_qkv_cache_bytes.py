"""A cache of 8 bits in one launch: the bits that rope and cache_append write, nothing elsewhere, and what does not fit is named."""

import pytest
import torch

import labkernels as lk
import labkernels.torch_extension  # noqa: F401  the operators
from labkernels.cuda.kernel import Kernel
from labkernels.errors import ArgumentError
from labkernels.kvcache.layout import quantise
from labkernels.rope import qkv_rope_cache_variants, rope_frequencies, rope_table
from labkernels.rope.qkv_rope_cache_variants import FOLDER, bytes_written
from tests.rope.separately import separately
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STORED = [torch.int8, torch.float8_e4m3fn]
SHAPES = [  # tokens, heads, kv_heads, head_dim, rotary_dim, interleaved
    (1, 32, 8, 64, 64, False),
    (37, 3, 2, 64, 64, False),
    (5, 4, 1, 128, 128, False),
    (7, 5, 1, 48, 48, True),
    (6, 3, 3, 80, 48, False),
]
PAGES, PAGE_SIZE, POSITIONS = 4, 16, 64


def given(tokens, heads, kv_heads, head_dim, rotary_dim, dtype, stored, device="cpu"):
    """A projection with what is awkward in it, a cache that holds something else, angles, positions, slots."""
    torch.manual_seed(tokens)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    positions, slots = torch.randint(0, POSITIONS, (tokens,)), torch.randperm(PAGES * PAGE_SIZE)[:tokens]
    qkv[0, heads * head_dim :][:head_dim] = 0.0
    if tokens > 4:
        qkv[1, -head_dim:] = 1e-4
        qkv[2, heads * head_dim + 5], qkv[2, -3], qkv[4, -head_dim:] = torch.nan, torch.inf, torch.nan
        positions[3], slots[3] = -1, -1  # an empty place
    room = PAGES, kv_heads, PAGE_SIZE
    cache = [torch.ones(*room, head_dim).to(stored) for _ in "kv"] + [torch.full(room, -1.0) for _ in "kv"]
    angles = rope_table(rope_frequencies(rotary_dim), POSITIONS)
    return qkv.to(device, dtype), [each.to(device) for each in cache], angles.to(device), positions.to(device), slots.to(device)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Any NaN is the same as any other in numbers of more than 8 bits."""
    wide = one.dtype.itemsize > 1
    return torch.equal(*((each.nan_to_num(nan=1e30) if wide else each).contiguous().view(torch.uint8) for each in (one, other)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bits_are_those_of_rope_and_cache_append(dtype, stored, device):
    for *sizes, interleaved in SHAPES if dtype == torch.bfloat16 else SHAPES[1::2]:
        qkv, cache, angles, positions, slots = given(*sizes, dtype, stored, device)
        wanted_cache, kept = [each.clone() for each in cache], qkv.clone()
        wanted = separately(qkv, wanted_cache, angles, positions, slots, None, interleaved)
        q = lk.functional.qkv_rope_cache(qkv, tuple(cache[:2]), angles, positions, slots, None, interleaved, *cache[2:])
        assert same_bits(q, wanted) and all(map(same_bits, cache, wanted_cache)) and same_bits(qkv, kept)
        assert (cache[2] == -1).sum() == (PAGES * PAGE_SIZE - (slots >= 0).sum()) * sizes[2], "other places are as they were"


def test_keys_that_are_not_rounded_before_they_become_bytes_are_noticed(tmp_path, monkeypatch):
    text = (FOLDER / "v3_qkv_cache_bytes.cu").read_text()
    for name in ("../kvcache/append.cuh", "rope.cuh"):
        text = text.replace(f'"{name}"', f'"{FOLDER / name}"')
    wrong = text.replace("low[j] = to_float(from_float<T>(low[j]));", "").replace("high[j] = to_float(from_float<T>(high[j]));", "")
    assert len(text) - len(wrong) > 60
    (tmp_path / "wrong.cu").write_text(wrong)
    instance = "qkv_cache_bytes<__nv_bfloat16, signed char, 8, 4, 1, false>"
    monkeypatch.setattr(qkv_rope_cache_variants, "kernel", lambda *_: Kernel(tmp_path / "wrong.cu", instance))
    qkv, cache, angles, positions, slots = given(37, 3, 2, 64, 64, torch.bfloat16, torch.int8)
    wanted_cache = [each.clone() for each in cache]
    wanted = separately(qkv, wanted_cache, angles, positions, slots)
    assert same_bits(bytes_written(qkv, cache, angles, positions, slots), wanted) and same_bits(cache[1], wanted_cache[1])
    assert not same_bits(cache[0], wanted_cache[0]) and not same_bits(cache[2], wanted_cache[2])


def test_a_bias_rows_apart_a_layers_view_and_slots_beyond_the_cache():
    """The values are v and its bias, quantised; what has no slot in the cache is left out."""
    qkv, _, angles, positions, slots = given(9, 3, 2, 64, 64, torch.bfloat16, torch.int8)
    qkv, bias, slots[5] = qkv.nan_to_num(0.5, posinf=2.0), torch.randn(7 * 64).bfloat16(), PAGES * PAGE_SIZE
    apart = torch.cat([qkv, qkv], dim=1)[:, : 7 * 64]
    layers = torch.ones(2, 3, PAGES, 2, PAGE_SIZE, 64).to(torch.int8), torch.full((2, 3, PAGES, 2, PAGE_SIZE), -1.0)
    (k, v), (k_scale, v_scale) = (each[:, 1] for each in layers)
    lk.functional.qkv_rope_cache(apart, (k, v), angles, positions, slots, bias, False, k_scale, v_scale)
    kept = (slots >= 0) & (slots < PAGES * PAGE_SIZE)
    values, scales = quantise((qkv + bias).unflatten(1, (-1, 64))[kept, 5:], torch.int8)
    at = slots[kept] // PAGE_SIZE, slice(None), slots[kept] % PAGE_SIZE
    assert kept.sum() == 7 and torch.equal(v[at], values) and torch.equal(v_scale[at], scales)
    assert (layers[1] == -1).sum() == layers[1].numel() - 2 * 2 * 7 and (layers[0][:, ::2] == 1).all()


def test_positions_may_be_a_row_of_turns_each():
    """As the engine's decode steps have them, of sequences that are anywhere."""
    qkv, cache, angles, positions, slots = given(7, 4, 2, 64, 64, torch.bfloat16, torch.float8_e4m3fn)
    positions.clamp_(min=0)
    wanted_cache, out = [each.clone() for each in cache], torch.empty(7, 4, 64, dtype=torch.bfloat16)
    wanted = bytes_written(qkv, wanted_cache, angles, positions, slots)
    assert bytes_written(qkv, cache, angles[positions], None, slots, out=out) is out
    assert same_bits(out, wanted) and all(map(same_bits, cache, wanted_cache))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda g: g | {"k_scale": None}, "of the cache, k_scale is missing: a cache of int8 has one scale for each token and head"),
        (lambda g: g | {"v_scale": g["v_scale"][..., :8]}, r"of the cache, v_scale is float32 \(4, 1, 8\); it must be float32 \(4, 1, 16\)"),
        (lambda g: g | {"cache": tuple(half.bfloat16() for half in g["cache"])}, "of the cache, k_scale is given, but a cache of bfloat16 has none"),
        (lambda g: g | {"cache": (g["cache"][0], g["cache"][1].float())}, "of the cache, k is int8 .* v is float32"),
        (lambda g: g | {"cache": tuple(half.half() for half in g["cache"]), "k_scale": None, "v_scale": None}, "k_cache is float16, qkv is bfloat16"),
        (lambda g: g | {"qkv": torch.zeros(3, 200).bfloat16()[:, 1:193]}, "v3_bytes: takes heads, .* on a multiple of 16 bytes in qkv and 8"),
        (lambda g: g | {"cache": tuple(torch.zeros(4, 1, 16, 72).to(torch.int8)[..., 4:68] for _ in "kv")}, "v3_bytes: takes heads, .* in the cache"),
        (lambda g: g | {"angles": rope_frequencies(24)}, "v3_bytes: takes heads, and what is turned of them, of a multiple of 16 neighbours"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    qkv, (k, v, k_scale, v_scale), angles, positions, slots = given(3, 1, 1, 64, 64, torch.bfloat16, torch.int8)
    good = {"qkv": qkv, "cache": (k, v), "angles": angles, "positions": positions, "slots": slots, "k_scale": k_scale, "v_scale": v_scale}
    with pytest.raises(ArgumentError, match=f"(?s)qkv_rope_cache: .*{words}"):
        lk.functional.qkv_rope_cache(**change(good))


def test_opcheck():
    qkv, cache, angles, positions, slots = given(3, 1, 1, 64, 64, torch.float32, torch.int8)  # PyTorch's own checks cannot compare fp8
    torch.library.opcheck(torch.ops.labkernels.qkv_rope_cache.default, (qkv, *cache[:2], angles, positions, slots, None, False, *cache[2:]))


def test_nothing_spills():
    for stored in ("signed char", "__nv_fp8_e4m3"):
        for heads in (1, qkv_rope_cache_variants.HEADS):
            options = torch.bfloat16, stored, 8, 4, heads, "false"
            resources = taken(qkv_rope_cache_variants.kernel(FOLDER / "v3_qkv_cache_bytes.cu", "qkv_cache_bytes", *options), "sm_90a")
            assert resources.spill_stores == 0 and resources.registers <= 96


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7])
def test_on_a_gpu_an_early_launch_waits_for_the_projection_before_it(rows):
    """One buffer, which each projection overwrites; 40 pairs of launches in a graph."""
    from labkernels.gemv.variants import Stored, stream_for, streamed

    _, cache, angles, positions, slots = given(rows, 32, 8, 64, 64, torch.bfloat16, torch.int8, "cuda")
    positions.clamp_(min=0)
    weights = torch.randn(40, 48 * 64, 2048, device="cuda", dtype=torch.bfloat16)
    x, qkv = torch.randn(rows, 2048, device="cuda", dtype=torch.bfloat16), torch.empty(rows, 48 * 64, device="cuda", dtype=torch.bfloat16)
    config = stream_for(x.device, rows, Stored.of(weights[0]), False)

    def steps(early: bool) -> list[torch.Tensor]:
        found = []
        for weight in weights:
            streamed(config, x, weight, out=qkv, early=early)
            found.append(bytes_written(qkv, cache, angles, positions, slots, early=early))
        return found

    wanted = torch.stack(steps(False))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = steps(True)
    for _ in range(5):
        for q in found:
            q.zero_()
        graph.replay()
        assert torch.equal(torch.stack(found), wanted)
