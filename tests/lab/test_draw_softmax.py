"""Pictures of softmax show the right numbers, and are the same softmax that PyTorch computes."""

import math

import pytest
import torch

import labkernels as lk
from labkernels.lab.draw.softmax import OVERFLOW, UNDERFLOW, running_pairs


def stacks(picture):
    """The filled parts of each frame's lower bar, from the bottom up, and the height of the dashed outline or None."""
    frames = picture.figure.axes[len(picture.figure.axes) // 2 :]
    bars = [[container[0] for container in axes.containers] for axes in frames]
    filled = [[bar.get_height() for bar in frame if bar.get_fill()] for frame in bars]
    outlines = [next((bar.get_height() for bar in frame if not bar.get_fill()), None) for frame in bars]
    return filled, outlines


def test_the_limits_of_exp_are_those_of_float32():
    exponents = torch.tensor([OVERFLOW - 0.01, OVERFLOW + 0.01, UNDERFLOW + 0.1, UNDERFLOW - 0.1])
    finite, infinite, positive, zero = exponents.exp()
    assert finite.isfinite() and infinite.isinf() and positive > 0 and zero == 0


def test_running_pairs_end_at_the_maximum_and_the_sum():
    row = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    maximum, total, _ = running_pairs(row.tolist())[-1]
    assert maximum == row.max() and math.isclose(total, (row - row.max()).exp().sum(), rel_tol=1e-12)


def test_running_pairs_begin_with_minus_infinity():
    assert running_pairs([-math.inf, -math.inf, 2.0, -math.inf]) == [(-math.inf, 0.0, 0.0)] * 2 + [(2.0, 1.0, 0.0), (2.0, 1.0, 1.0)]


def test_online_softmax_stacks_what_softmax_is_before_the_division():
    values = [0.5, 3.0, -1.0, 3.5, 2.0]
    filled, outlines = stacks(lk.draw.online_softmax(values))
    last = torch.tensor(filled[-1], dtype=torch.float32)
    torch.testing.assert_close(last / last.sum(), torch.softmax(torch.tensor(values), 0))
    assert [outline is not None for outline in outlines] == [False, True, False, True, False]
    assert math.isclose(outlines[3], sum(filled[2]), rel_tol=1e-9)  # the outline is the bar of the frame before


def test_online_softmax_says_by_how_much_it_rescales():
    picture = lk.draw.online_softmax([2, 1, 4, 3])
    titles = [axes.get_title("left") for axes in picture.figure.axes[:4]]
    assert [title.splitlines()[1] for title in titles] == ["the first", "m stays", "before × 0.14", "m stays"]
    assert "m = 4, s = 1.55" in picture.alt


@pytest.mark.parametrize("values", [[], [1.0, -math.inf]])
def test_online_softmax_refuses_what_has_no_bar(values):
    with pytest.raises(ValueError, match="finite"):
        lk.draw.online_softmax(values)


def test_exponents_are_drawn_as_they_come_and_below_zero():
    first, second = lk.draw.exponent_range([70, 90, 100]).figure.axes[0].lines[:2]
    assert list(first.get_xdata()) == [70, 90, 100] and list(second.get_xdata()) == [-30, -10, 0]
    assert "2 lie in the infinite part" in lk.draw.exponent_range([70, 90, 100]).alt


def test_a_row_is_dealt_out_lane_by_lane():
    texts = [text.get_text() for text in lk.draw.row_walk(cols=7, lanes=3).figure.axes[0].texts]
    assert [texts.count(str(lane)) for lane in range(3)] == [3, 2, 2] and texts.count("step 2") == 1


def test_trips_are_counted_with_the_write():
    titles = [axes.get_title("left") for axes in lk.draw.softmax_trips().figure.axes]
    assert titles == ["three passes\n4 trips", "running pair\n3 trips", "kept in registers\n2 trips"]


def test_every_picture_can_be_drawn_as_it_comes():
    for name in ("exponent_range", "row_walk", "online_softmax", "softmax_trips"):
        picture = getattr(lk.draw, name)()
        assert picture.png().startswith(b"\x89PNG") and len(picture.alt) > 60
