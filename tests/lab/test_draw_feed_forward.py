"""Pictures of the feed-forward network say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_the_trips_of_the_hidden_matrix_are_counted():
    alt = lk.draw.ffn_trips().alt
    assert "twice" in alt and "travels once" in alt


def test_each_block_has_a_slice():
    assert "to 3 blocks, each with its slice of w1 and of w2, in 3 colours" in lk.draw.ffn_slices(3).alt
    with pytest.raises(ValueError, match="blocks is 0"):
        lk.draw.ffn_slices(0)
