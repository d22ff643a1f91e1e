"""Pictures of sampling say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_probabilities_get_alike_as_it_gets_warmer():
    assert "70% at 0.5" in lk.draw.temperatures().alt
    with pytest.raises(ValueError, match="above 0"):
        lk.draw.temperatures(values=(0.0,))


def test_the_token_that_crosses_the_line_is_kept():
    assert "The first 3 of 7 tokens" in lk.draw.nucleus(top_p=0.8).alt
    assert "The first 1 of 2 tokens" in lk.draw.nucleus((2.0, 0.0), 0.5).alt
    with pytest.raises(ValueError, match="top_p is 0"):
        lk.draw.nucleus(top_p=0)


def test_the_bits_that_stay_make_the_threshold_of_the_nucleus():
    assert "ends at 0.156" in lk.draw.bit_search(steps=30).alt    # the probability of the third token
    with pytest.raises(ValueError, match="steps is 31"):
        lk.draw.bit_search(steps=31)
