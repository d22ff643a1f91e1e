"""The roofline: measured points below the roof, predictions on it, and the same said in words."""

import pytest

from labkernels.lab.measured import NotRecorded
from labkernels.lab.roofline import roofline
from tests.lab.recorded_figures import CEILINGS


def test_points_stand_at_their_intensity_and_rate():
    picture = roofline({"softmax": (4e9, 8e9, 4.0), "matmul": (1e12, 1e9, 40.0)}, ceilings=CEILINGS)
    (axes,) = picture.figure.axes
    roof, *points = [line for line in axes.lines if len(line.get_xdata()) == 3 or line.get_marker() == "o"]
    assert roof.get_ydata()[-1] == 50.0 and roof.get_xdata()[1] == pytest.approx(50 / 4)
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(0.5, 1.0), (1000.0, 25.0)]


def test_a_point_without_a_time_is_a_prediction_on_the_roof():
    picture = roofline({"softmax": (4e9, 8e9, None), "matmul": (1e12, 1e9, None)}, ceilings=CEILINGS)
    points = [line for line in picture.figure.axes[0].lines if line.get_marker() == "o"]
    assert [p.get_ydata()[0] for p in points] == [2.0, 50.0]
    assert points[0].get_markerfacecolor() != points[0].get_color()


def test_alt_text_says_what_is_drawn():
    picture = roofline({"softmax": (4e9, 8e9, 4.0), "next": (1e12, 1e9, None)}, ceilings=CEILINGS)
    assert "4 TB/s up to 12.5 FLOPs a byte, 50 TFLOP/s beyond" in picture.alt
    assert "softmax at 0.5 FLOPs a byte reaches 1 TFLOP/s." in picture.alt
    assert "next at 1e+03 FLOPs a byte could reach 50 TFLOP/s." in picture.alt


def test_without_recorded_ceilings_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("labkernels.lab.measured.FOLDERS", (tmp_path,))
    with pytest.raises(NotRecorded, match="data/measured/h200/ceilings.csv is missing"):
        roofline({"softmax": (4e9, 8e9, 4.0)})
