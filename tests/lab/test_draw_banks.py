"""Pictures of shared memory show the right banks."""

import pytest

import labkernels as lk
from labkernels.lab.draw.banks import KINDS, bank_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_meets_every_bank_in_every_layout(kind):
    assert {bank_of(kind, 5, col) for col in range(32)} == set(range(32))


def test_a_column_meets_one_bank_or_all_of_them():
    columns = {kind: {bank_of(kind, row, 7) for row in range(32)} for kind in KINDS}
    assert columns == {"plain": {7}, "padded": set(range(32)), "swizzled": set(range(32))}


def test_an_unknown_layout_is_named():
    with pytest.raises(ValueError, match="'diagonal'"):
        bank_of("diagonal", 0, 0)


def test_tile_banks_writes_the_bank_of_every_word():
    picture = lk.draw.tile_banks(banks=4, col=1)
    panels = {axes.get_title(loc="left"): [text.get_text() for text in axes.texts] for axes in picture.figure.axes}
    assert list(panels) == ["plain: 1 bank", "padded: 4 banks", "swizzled: 4 banks"]
    assert panels["plain: 1 bank"] == list("0123") * 4
    assert panels["padded: 4 banks"] == list("01230" "12301" "23012" "30123")
    bold = [text.get_text() for text in picture.figure.axes[2].texts if text.get_fontweight() == "bold"]
    assert bold == ["1", "0", "3", "2"]


def test_transpose_tile_says_what_it_shows():
    picture = lk.draw.transpose_tile()
    assert "written along a row of out" in picture.alt
    assert {"x", "tile", "out"} <= {text.get_text() for text in picture.figure.axes[0].texts}
