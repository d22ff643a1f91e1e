"""Pictures of quantised weights say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_levels_span_the_weights():
    assert "16 evenly spaced levels of int4 from -3.19 to 2.79, 0 among them" in lk.draw.weight_levels().alt
    with pytest.raises(ValueError, match="count is 1"):
        lk.draw.weight_levels(1)


def test_one_mask_gives_two_neighbours():
    assert "k = 2 in the lower half word, k = 3 in the upper one" in lk.draw.packed_word().alt


def test_errors_are_listed():
    assert "int4 gptq 4.25 bits 0.03" in lk.draw.error_by_bits([("int4", "gptq", 4.25, 0.03)]).alt
    with pytest.raises(ValueError, match="give rows"):
        lk.draw.error_by_bits([])
