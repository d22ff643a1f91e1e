"""Pictures of the small operations say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_the_trips_of_a_norm_are_counted():
    assert "28 bytes" in lk.draw.norm_trips().alt


def test_partial_sums_take_turns():
    assert "12 rows in the colours of 3 blocks" in lk.draw.partial_sums().alt
    with pytest.raises(ValueError, match="blocks is 9"):
        lk.draw.partial_sums(4, 9)


def test_turns_are_position_times_frequency():
    assert "frequency 0.5: 0, 1" in lk.draw.rope_turns((0, 2), (0.5,)).alt
