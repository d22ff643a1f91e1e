"""Pictures of flash attention's upper rungs: who holds what, and how much of the time the products run."""

import itertools

import pytest
import torch

import labkernels as lk
from labkernels.lab.draw.flash_warps import score_at, weight_at

SOURCE = """
#include "mma.cuh"
__global__ void rows_of_a(float* rows) {    // a block gives one of its lanes a single 1 in the left operand, and looks in which row it comes out
    for (int r = 0; r < 4; ++r)
        for (int part = 0; part < 2; ++part) {
            unsigned a[4] = {};
            const unsigned b[2] = {0x3f803f80u, 0x3f803f80u};    // ones
            if (threadIdx.x == blockIdx.x) a[r] = part ? 0x3f800000u : 0x3f80u;
            float c[4] = {};
            mma_m16n8k16<__nv_bfloat16>(c, a, b, c);
            for (int i = 0; i < 4; i += 2)
                if (threadIdx.x % 4 == 0 && c[i] == 1.0f) rows[(blockIdx.x * 4 + r) * 2 + part] = threadIdx.x / 4 + i / 2 * 8;
        }
}
"""


def test_every_score_and_every_weight_has_one_lane():
    scores = [score_at(lane, half, i) for lane in range(32) for half in (0, 1) for i in range(4)]
    weights = [weight_at(lane, register, part) for lane in range(32) for register in range(4) for part in (0, 1)]
    assert sorted(scores) == sorted(weights) == list(itertools.product(range(16), range(16)))


def test_a_lanes_scores_are_its_weights_in_the_order_of_the_exercise():
    for lane, half, r, part in itertools.product(range(32), (0, 1), (0, 1), (0, 1)):
        assert score_at(lane, half, 2 * r + part) == weight_at(lane, 2 * half + r, part)


def test_registers_have_the_rows_that_mma_gives_them():
    rows = torch.full((32, 4, 2), -1.0)
    lk.Kernel(SOURCE, "rows_of_a")(32, 32, (rows,))
    assert all(rows[lane, r, part] == weight_at(lane, r, part)[0] for lane in range(32) for r in range(4) for part in (0, 1))


def test_the_picture_of_fragments_marks_one_lanes_places():
    picture = lk.draw.scores_become_weights(lane=30)
    left, right = ([text.get_text() for text in axes.texts] for axes in picture.figure.axes)
    assert [name for name in left if "[" in name] == ["s0[0,1]", "s0[2,3]", "s1[0,1]", "s1[2,3]"]
    assert sorted(name for name in right if "[" in name) == ["w[0]", "w[1]", "w[2]", "w[3]"]
    assert left.count("30") == right.count("30") == 0 and left.count("7") == right.count("7") == 8
    assert "rows 7 and 15, columns 4, 5, 12 and 13" in picture.alt
    with pytest.raises(ValueError, match="no lane 32"):
        lk.draw.scores_become_weights(lane=32)


def test_turns_keep_the_products_busy():
    alt = lk.draw.attention_schedules(tiles=4, copy=1, product=3, softmax=3).alt
    assert "v3 does one after the other: products run 43%" in alt      # 12 of 28
    assert "while this one is computed: 48%" in alt                    # 12 of 25
    assert "products run 86%" in alt                                   # 24 of 28
