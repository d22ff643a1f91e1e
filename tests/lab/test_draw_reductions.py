"""Pictures of reductions show the right numbers: sums that come out, warps that are busy, errors that are measured."""

import math

import numpy as np
import pytest

import labkernels as lk
from labkernels.lab.draw.reductions import busy_warps, rounding_error, tree_steps, working_threads


def texts(picture):
    return [text.get_text() for axes in picture.figure.axes for text in axes.texts]


def test_atomic_additions_lose_all_but_the_last_or_none():
    shown = texts(lk.draw.atomic_additions((5, 2, 10, 1)))
    assert "total: 1" in shown and "total: 18" in shown and "17 + 1 = 18" in shown
    assert shown.count("read 0") == 4


@pytest.mark.parametrize("count", [2, 8, 64])
def test_a_tree_ends_with_the_sum_in_element_0(count):
    values = np.random.default_rng(count).integers(-50, 50, count).tolist()
    steps = tree_steps(values)
    assert [distance for distance, _ in steps] == [count >> (step + 1) for step in range(len(steps))]
    assert steps[-1][1][0] == sum(values)


@pytest.mark.parametrize("picture", ["reduction_tree", "lane_exchange"])
def test_trees_refuse_what_cannot_be_halved(picture):
    with pytest.raises(ValueError, match="here are 6"):
        getattr(lk.draw, picture)(range(6))


def test_reduction_tree_shows_each_array_and_a_barrier_before_each_step():
    shown = texts(lk.draw.reduction_tree((1, 2, 30, 40)))
    assert "73" in shown and "31" in shown and "42" in shown
    assert shown.count("barrier") == 2 and "2 threads add" in shown and "1 thread adds" in shown


def test_after_the_exchange_every_lane_has_the_sum():
    assert texts(lk.draw.lane_exchange((1, 2, 30, 40))).count("73") == 4


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("threads", [64, 256])
def test_the_threads_that_work_add_up_everything_in_both_orders(halves, threads):
    value = np.arange(1, threads + 1)
    working = working_threads(threads, halves)
    for step, row in enumerate(working):
        distance = threads >> (step + 1) if halves else 1 << step
        value = np.where(row, value + np.roll(value, -distance), value)
    assert value[0] == threads * (threads + 1) // 2


def test_fewer_warps_are_busy_when_whole_warps_fall_idle():
    assert busy_warps(working_threads(256, True)).tolist() == [4, 2, 1, 1, 1, 1, 1, 1]
    assert busy_warps(working_threads(256, False)).tolist() == [8, 8, 8, 8, 8, 4, 2, 1]
    titles = [axes.get_title("left") for axes in lk.draw.tree_warps(128).figure.axes]
    assert "busy 8 times" in titles[0] and "busy 23 times" in titles[1]


def test_rounding_errors_are_those_of_float32():
    ones = np.ones(2**24 + 1000, dtype=np.float32)
    one_by_one, tree = rounding_error(ones)
    assert math.isclose(one_by_one, 1000 / (2**24 + 1000), rel_tol=1e-6) and tree < 1e-7
    assert rounding_error(np.array([1.0, 2.0, 4.0], dtype=np.float32)) == (0.0, 0.0)


def test_every_picture_can_be_drawn_as_it_comes():
    for name in ("atomic_additions", "reduction_tree", "tree_warps", "lane_exchange", "rounding_errors"):
        picture = getattr(lk.draw, name)()
        assert picture.png().startswith(b"\x89PNG") and len(picture.alt) > 60
