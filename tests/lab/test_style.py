"""The one look: pictures carry their alt text, are the same bytes each time, and leave the user's matplotlib alone."""

import matplotlib
import pytest

from labkernels.lab import style


@style.look()
def draw_bars(alt="Three bars, the second the tallest."):
    figure, axes = style.figure(width=4, height=2)
    axes.bar(["a", "b", "c"], [1, 3, 2], color=style.OURS)
    axes.set_title("bars")
    return style.picture(figure, alt)


def test_picture_shows_its_alt_text():
    html = draw_bars(alt='a "quoted"\n   <alt>')._repr_html_()
    assert 'alt="a &quot;quoted&quot; &lt;alt&gt;"' in html
    assert 'src="data:image/png;base64,' in html and 'width="400"' in html


def test_picture_without_alt_text_is_refused():
    with pytest.raises(ValueError, match="alt is empty"):
        draw_bars(alt="  ")


def test_same_picture_is_the_same_bytes():
    assert draw_bars().png() == draw_bars().png()
    assert draw_bars().png() != draw_bars(alt="Other words.").png()


def test_look_does_not_leak_into_the_users_settings():
    with matplotlib.rc_context({"font.size": 31.0}):
        draw_bars()
        assert matplotlib.rcParams["font.size"] == 31.0


def test_look_does_not_depend_on_the_users_settings():
    plain = draw_bars().png()
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert draw_bars().png() == plain


def test_pictures_do_not_pile_up_in_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_bars()
    assert pyplot.get_fignums() == before


def test_saved_svg_is_repeatable(tmp_path):
    for name in ("one.svg", "two.svg"):
        draw_bars().save(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(
    "label, value, text",
    [
        (style.time_label, 0.0125, "12.5 µs"),
        (style.time_label, 3.4, "3.4 ms"),
        (style.time_label, 1250.0, "1.25 s"),
        (style.bytes_label, 134e6, "134 MB"),
        (style.bytes_label, 12, "12 B"),
        (style.flops_label, 1.1e12, "1.1 TFLOP"),
    ],
)
def test_labels_choose_the_unit(label, value, text):
    assert label(value) == text


def test_nice_ratios_cover_the_data():
    assert style.nice_ratios(0.3, 7) == [0.2, 0.5, 1, 2, 5, 10]
    assert style.nice_ratios(0.02, 3000) == [0.01, 0.1, 1, 10, 100, 1000, 10000]
