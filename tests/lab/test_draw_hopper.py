"""Pictures of tensor cores and Hopper show the right lanes, places, parities and times."""

from collections import Counter

import pytest

import labkernels as lk
from labkernels.lab.draw.fragments import holder_of_a, holder_of_b, holder_of_c, place_of
from labkernels.lab.draw.hopper import ring


@pytest.mark.parametrize("holder, cols, elements", [(holder_of_a, 16, 8), (holder_of_b, 8, 4), (holder_of_c, 8, 4)])
def test_every_element_of_a_fragment_has_one_place(holder, cols, elements):
    held = Counter(holder(row, col) for row in range(16) for col in range(cols))
    assert held == Counter((lane, element) for lane in range(32) for element in range(elements))


def test_fragments_are_those_that_the_instruction_takes():
    """As mma.cuh has it: lane 4g + t, registers a[0] to a[3] of two elements each."""
    g, t = 2, 1
    assert [holder_of_a(row, 2 * t + right) for right in (0, 8) for row in (g, g + 8)] == [(4 * g + t, 2 * register) for register in range(4)]
    assert [holder_of_b(row, g) for row in (2 * t, 2 * t + 1, 2 * t + 8)] == [(9, 0), (9, 1), (9, 2)]
    assert [holder_of_c(row, 2 * t + 1) for row in (g, g + 8)] == [(9, 1), (9, 3)]
    assert "of B (2, 2), (3, 2), (10, 2), (11, 2)" in lk.draw.mma_fragments(lane=9).alt


def test_swizzled_rows_use_each_place_once_and_columns_too():
    assert all({place_of(row, piece) for piece in range(8)} == set(range(8)) for row in range(16))
    assert all({place_of(row, piece) for row in range(8)} == set(range(8)) for piece in range(8))
    picture = lk.draw.swizzled_pieces(piece=3)
    assert [axes.get_title(loc="left") for axes in picture.figure.axes] == ["plain: 8 passes", "swizzled: 1 pass"]
    assert "in the places 3, 2, 1, 0, 7, 6, 5, 4" in picture.alt


def test_a_ring_never_fills_a_stage_in_use_and_keeps_the_slower_side_busy():
    times = ring(tiles=6, stages=2, copy=2.0, use=3.0)
    assert all(times.asked[k] >= times.used[k - 2] for k in range(2, 6)) and all(times.begun[k] >= times.come[k] for k in range(6))
    assert times.used == (5.0, 8.0, 11.0, 14.0, 17.0, 20.0)
    assert ring(tiles=3, stages=1).used == (5.0, 10.0, 15.0)


def test_each_barrier_shows_its_parities_in_turn():
    picture = lk.draw.mbarrier_phases(tiles=6, stages=2)
    (axes,) = picture.figure.axes
    parities = {}
    for text in axes.texts:
        if text.get_text() in "01" and round(text.get_position()[1]) in (1, 2, 3, 4):
            parities.setdefault(text.get_position()[1], []).append(text.get_text())
    assert list(parities.values()) == [["0", "1", "0", "1"]] * 4
    assert "full[0] ends its phases at 2, 7, 13" in picture.alt and "empty[0] ends its phases at 5, 11, 17" in picture.alt


def test_a_tile_has_a_slab_for_each_eight_rows():
    assert "in slabs of 8 rows, 4 of them" in lk.draw.wgmma_tile(rows=32).alt
    assert "A block with 2 stages" in lk.draw.specialised_block().alt
