"""Pictures of matrix multiplication show the right counts."""

import pytest

import labkernels as lk


def titles(picture):
    return [axes.get_title(loc="left") for axes in picture.figure.axes]


def test_an_element_needs_a_row_and_a_column():
    picture = lk.draw.matmul_element(size=6, row=4, col=1)
    assert "Row 4 of a and column 1 of b" in picture.alt
    assert any(text.get_text() == "c[4][1]: 6 multiplications,\n6 numbers of a, 6 of b" for text in picture.figure.axes[0].texts)


@pytest.mark.parametrize("side", [2, 5])
def test_what_a_tile_brings_serves_as_many_multiplications_as_it_is_wide(side):
    assert f"Each number of a tile takes part in {side} multiplications" in lk.draw.matmul_tiles(side=side).alt


def test_patches_count_loads_and_products():
    picture = lk.draw.register_patch(sides=(1, 3))
    assert titles(picture) == ["2 loads, 1 FMA", "6 loads, 9 FMAs"]
    patches = [patch for patch in picture.figure.axes[1].patches]
    assert len(patches) == 6 + 9 and "0.666667 each" in picture.alt
