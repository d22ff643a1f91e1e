"""visible.cuh in the emulator against the definition, pair by pair: which keys a query sees, which tiles matter, what a mask does."""

import math

import pytest
import torch

from labkernels.attention.op import OP
from labkernels.attention.visible import UNLIMITED, mask_operand, window_sides
from labkernels.cuda import Kernel, Source, sanitizing

FOLDER = OP.variants["v3_tiled"].source.parent
BLOCK_Q, BLOCK_K = 8, 4

TEXT = """
#include "visible.cuh"

extern "C" __global__ void pairs(bool* sees, bool* hides, int* key_range, int* query_range, int* key_tiles, int* query_tiles,
                                 int seq_len, int kv_len, int left, int right) {
    const Window window(seq_len, kv_len, left, right);
    for (int i = 0; i < seq_len; ++i) {
        key_range[2 * i] = window.first_key(i), key_range[2 * i + 1] = window.end_key(i);
        for (int j = 0; j < kv_len; ++j) sees[i * kv_len + j] = window.sees(i, j);
    }
    for (int j = 0; j < kv_len; ++j) query_range[2 * j] = window.first_query(j), query_range[2 * j + 1] = window.end_query(j);
    const int across = (kv_len + 3) / 4;
    for (int i = 0; i < seq_len; i += 8) {
        const Tiles tiles = window.keys<8, 4>(i);
        key_tiles[i / 4] = tiles.first, key_tiles[i / 4 + 1] = tiles.end;
        for (int j = 0; j < kv_len; j += 4) hides[i / 8 * across + j / 4] = window.hides<8, 4>(i, j);
    }
    for (int j = 0; j < kv_len; j += 4) {
        const Tiles tiles = window.queries<8, 4>(j);
        query_tiles[j / 2] = tiles.first, query_tiles[j / 2 + 1] = tiles.end;
    }
}

template <int MASK>
__global__ void masked(float* out, const float* scores, const void* mask_values, MaskStrides strides, int seq_len, int kv_len) {
    const int batch = blockIdx.y, head = blockIdx.x;
    const Mask<MASK, __nv_bfloat16> mask(mask_values, strides, batch, head);
    const long long first = (batch * (long long)gridDim.x + head) * seq_len * kv_len;
    for (int i = threadIdx.x; i < seq_len * kv_len; i += blockDim.x) {
        out[first + i] = mask.apply(scores[first + i], i / kv_len, i % kv_len);
    }
}

extern "C" __global__ void sequences(int* out, const int* cu_seqlens_q, const int* cu_seqlens_k) {
    const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, blockIdx.x, 100, 200);
    int* mine = out + 4 * blockIdx.x;
    mine[0] = bounds.first_query, mine[1] = bounds.first_key, mine[2] = bounds.seq_len, mine[3] = bounds.kv_len;
}
"""


def kernel(name: str) -> Kernel:
    return Kernel(Source(TEXT, "visible_test.cu", include_dirs=(str(FOLDER), *Source.from_text("").include_dirs)), name)


def by_definition(seq_len, kv_len, left, right) -> torch.Tensor:
    position = torch.arange(seq_len)[:, None] + kv_len - seq_len
    key = torch.arange(kv_len)
    return (key >= position - left) & (key <= position + right)


@pytest.mark.parametrize("left", [0, 1, 5, UNLIMITED])
@pytest.mark.parametrize("right", [0, 2, 9, UNLIMITED])
@pytest.mark.parametrize("seq_len, kv_len", [(1, 1), (17, 17), (5, 19), (19, 6), (16, 8)])
def test_pairs_ranges_and_tiles_are_those_of_the_definition(seq_len, kv_len, left, right):
    rows, cols = -(-seq_len // BLOCK_Q), -(-kv_len // BLOCK_K)
    sees, hides = torch.zeros(seq_len, kv_len, dtype=torch.bool), torch.zeros(rows, cols, dtype=torch.bool)
    ranges = [torch.full((count, 2), -1, dtype=torch.int32) for count in (seq_len, kv_len, rows, cols)]
    kernel("pairs")(1, 1, (sees, hides, *ranges, seq_len, kv_len, left, right))

    want = by_definition(seq_len, kv_len, left, right)
    assert torch.equal(sees, want)
    key_range, query_range, key_tiles, query_tiles = (pairs.tolist() for pairs in ranges)
    for query, (first, end) in enumerate(key_range):
        assert want[query].nonzero().flatten().tolist() == list(range(first, end))
    for key, (first, end) in enumerate(query_range):
        assert want[:, key].nonzero().flatten().tolist() == list(range(first, end))

    padded = torch.zeros(rows * BLOCK_Q, cols * BLOCK_K, dtype=torch.bool)
    padded[:seq_len, :kv_len] = want
    seen = padded.view(rows, BLOCK_Q, cols, BLOCK_K).any(dim=3).any(dim=1)
    hull = lambda flags: (min(flags), max(flags) + 1) if flags else None  # noqa: E731 - a window's tiles lie side by side
    for row, (first, end) in enumerate(key_tiles):
        assert (hull(seen[row].nonzero().flatten().tolist()) or (first, end)) == (first, end)
        assert end <= first or seen[row].any()
    for col, (first, end) in enumerate(query_tiles):
        assert (hull(seen[:, col].nonzero().flatten().tolist()) or (first, end)) == (first, end)
        assert end <= first or seen[:, col].any()
    padded[seq_len:] = True  # queries past the end are nobody's
    padded[seq_len:, kv_len:] = False
    whole = padded.view(rows, BLOCK_Q, cols, BLOCK_K).all(dim=3).all(dim=1)
    if seq_len % BLOCK_Q == 0:
        assert torch.equal(hides, ~whole)
    else:  # a tile past the last key hides something even where its queries past the end see all of it
        assert not (whole & hides)[:, : kv_len // BLOCK_K].any() and not (~whole & ~hides).any()


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 1, 7), (5, 1), (7,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32])
def test_masks_are_broadcast_and_added_or_hide(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, 7, generator=generator)
    mask = torch.randn(shape, generator=generator)
    mask = mask > 0 if dtype == torch.bool else mask.to(dtype)
    kind, operand, strides = mask_operand(mask, torch.empty(2, 3, 5, 64, dtype=torch.bfloat16), 7)
    out = torch.full_like(scores, torch.nan)
    with sanitizing():
        kernel(f"masked<{kind}>")((3, 2), 32, (out, scores, operand, strides, 5, 7))
    want = scores.masked_fill(~mask, -torch.inf) if dtype == torch.bool else scores + mask.float() / math.log(2)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_number_does_not_become_minus_infinity(dtype):
    scores, out = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)), torch.empty(2, 3, 5, 7)
    mask = torch.tensor([torch.finfo(dtype).min, -torch.inf, 0, -5e4, torch.finfo(dtype).min, 1, -1e9], dtype=dtype)
    kind, operand, strides = mask_operand(mask, torch.empty(2, 3, 5, 64, dtype=torch.bfloat16), 7)
    kernel(f"masked<{kind}>")((3, 2), 32, (out, scores, operand, strides, 5, 7))
    assert out[..., 0].isfinite().all() and torch.equal(out[..., 0], out[..., 4]) and (out[..., 0] < out[..., 6]).all()
    assert out[..., 1].isneginf().all()
    torch.testing.assert_close(out[..., 2:4], scores[..., 2:4] + mask[2:4].float() / math.log(2))


def test_without_a_mask_nothing_is_read():
    scores, out = torch.randn(2, 3, 5, 7), torch.empty(2, 3, 5, 7)
    kernel("masked<0>")((3, 2), 32, (out, scores, *mask_operand(None, scores, 7)[1:], 5, 7))
    assert torch.equal(out, scores)


def test_packed_sequences_lie_where_cu_seqlens_say():
    out = torch.zeros(3, 4, dtype=torch.int32)
    ends = torch.tensor([0, 4, 4, 9], dtype=torch.int32), torch.tensor([0, 1, 8, 8], dtype=torch.int32)
    kernel("sequences")(3, 1, (out, *ends))
    assert out.tolist() == [[0, 0, 4, 1], [4, 1, 0, 7], [4, 8, 5, 0]]
    kernel("sequences")(3, 1, (out, None, None))
    assert out.tolist() == [[0, 0, 100, 200]] * 3


def test_causal_bounds_the_right_side_of_a_window():
    assert window_sides(False, None) == (UNLIMITED, UNLIMITED)
    assert window_sides(True, None) == (UNLIMITED, 0)
    assert window_sides(True, (5, 3)) == (5, 0)
    assert window_sides(False, (5, None)) == (5, UNLIMITED)
    assert window_sides(False, (10**12, 0)) == (UNLIMITED, 0)
