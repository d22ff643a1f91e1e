"""Pictures of threads, of what a warp reads, and of the ceilings show the right numbers, whatever sizes they are asked for."""

import numpy as np
import pandas
import pytest
import torch
from matplotlib.patches import FancyBboxPatch, Rectangle

import labkernels as lk
from labkernels.lab import style
from labkernels.lab.draw.limits import DATA_SHEET, NOT_RECORDED
from labkernels.lab.draw.sectors import touched_sectors
from tests.lab.recorded_figures import ENVIRONMENT


def words(picture) -> list[str]:
    return [text.get_text() for axes in picture.figure.axes for text in axes.texts]


def titles(picture) -> list[str]:
    return [axes.get_title("left") for axes in picture.figure.axes]


@pytest.fixture
def nothing_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr("labkernels.lab.measured.FOLDERS", (tmp_path,))


@pytest.fixture
def two_recorded(monkeypatch, tmp_path):
    """Ceilings, and one row of sum."""
    folder = tmp_path / "h200"
    folder.mkdir()
    ceilings = {"copy": 4000.0, "matmul_float32": 50.0, "matmul_bfloat16": 700.0}
    pandas.DataFrame([{"name": name, "value": value} | ENVIRONMENT for name, value in ceilings.items()]).to_csv(folder / "ceilings.csv")
    row = {"op": "sum", "variant": "v3_warp", "n": 1000_000, "dtype": "float32", "ms": 0.002, "note": ""} | ENVIRONMENT
    pandas.DataFrame([row]).to_csv(folder / "sum.csv")
    monkeypatch.setattr("labkernels.lab.measured.FOLDERS", (tmp_path,))


@pytest.mark.parametrize("blocks, threads, n", [(3, 4, 10), (2, 8, 16), (5, 3, 13)])
def test_grid_of_threads_gives_each_element_a_thread_and_dashes_the_others(blocks, threads, n):
    picture = lk.draw.grid_of_threads(blocks, threads, n)
    dots = [patch for patch in picture.figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len(dots) == blocks * threads
    assert sum(dot.get_linestyle() == "--" for dot in dots) == blocks * threads - n
    if n == blocks * threads:
        assert "Every thread has an element." in picture.alt


def test_large_grids_are_drawn_as_blocks_that_end_with_the_data():
    picture = lk.draw.grid_of_threads(4, 256, 1000)
    filled = [patch for patch in picture.figure.axes[0].patches if patch.get_linestyle() != "--"]
    assert [(bar.get_x(), bar.get_width()) for bar in filled] == [(0, 256), (256, 256), (512, 256), (768, 232)]
    assert "The last 24 of the 1024 threads have no element." in picture.alt
    assert "threads 1000 to 1023 have no element" in words(picture)


def test_grid_stride_follows_one_thread_through_all_its_elements():
    picture = lk.draw.grid_stride(n=30, blocks=2, threads=4)
    assert "30 elements in 4 steps of 8" in picture.alt and "elements 1, 9, 17, 25." in picture.alt
    assert "In the last step only 6 threads" in picture.alt
    assert words(picture).count("+ 8") == 3


def test_one_thread_each_writes_squares():
    assert words(lk.draw.one_thread_each(5))[:15:3] == ["0", "1", "2", "3", "4"] and "16" in words(lk.draw.one_thread_each(5))


def test_smoothing_windows_name_the_two_elements_outside():
    red = [text.get_text() for text in lk.draw.smoothing_windows(6).figure.axes[0].texts if text.get_color() == style.WRONG]
    assert {"x[-1]", "x[6]", "thread 0", "thread 5"} <= set(red) and "thread 3" not in red


def test_curves_tell_which_is_the_smoothest():
    rough = torch.tensor([0.0, 1.0, 0.0, 1.0])
    picture = lk.draw.curves({"x": rough, "flat": rough * 0.1})
    assert picture.alt.endswith("x 1, flat 0.1.")
    assert [line.get_ydata().tolist() for line in picture.figure.axes[0].lines][0] == rough.tolist()


@pytest.mark.parametrize(
    "addresses, width, count",
    [(4 * np.arange(32), 4, 4), (8 * np.arange(32), 4, 8), (32 * np.arange(32), 4, 32), (4 + 4 * np.arange(32), 4, 5), (16 * np.arange(32), 16, 16),
     (np.zeros(32, int), 4, 1), (np.array([30]), 4, 2)],
)
def test_touched_sectors(addresses, width, count):
    assert len(touched_sectors(addresses, width)) == count


def test_warp_reads_draws_a_line_for_each_lane_and_colours_the_sectors_that_move():
    picture = lk.draw.warp_reads([1, 4])
    assert titles(picture) == ["stride 1: 4 sectors, 100% of their bytes are used", "stride 4: 16 sectors, 25% of their bytes are used"]
    for axes, moved in zip(picture.figure.axes, (4, 16)):
        sectors = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_width() == 32]
        assert len(sectors) == 16 and sum(patch.get_alpha() == 0.45 for patch in sectors) == moved
        assert sum(len(line.get_xdata()) == 2 for line in axes.lines) == 32


def test_matrix_in_memory_finds_row_and_column_in_the_line_of_memory():
    picture = lk.draw.matrix_in_memory(rows=3, cols=5, row=2, col=1)
    assert "elements 10 to 14" in picture.alt and "every 5th element: 1, 6, 11." in picture.alt
    line = [patch for patch in picture.figure.axes[0].patches if patch.get_width() == 1]
    assert sum(patch.get_facecolor() != line[0].get_facecolor() for patch in line) == 5 + 3 - 1


def test_transpose_requests_turn_a_row_into_a_column():
    source, target = lk.draw.transpose_requests(rows=6, cols=9, lanes=4).figure.axes
    places = [[text.get_position() for text in axes.texts if text.get_text().isdigit()] for axes in (source, target)]
    assert len({y for _, y in places[0]}) == 1 and len({x for x, _ in places[0]}) == 4
    assert [(-y, -x) for x, y in places[1]] == places[0]


def test_vector_loads_count_requests():
    assert titles(lk.draw.vector_loads()) == ["float: 4 bytes a lane, 4 requests", "float4: 16 bytes a lane, 1 request"]


def test_ceilings_show_what_was_recorded_beside_the_data_sheet(two_recorded):
    picture = lk.draw.ceilings()
    assert "4 of 4.8" in words(picture)[0] and [text.strip() for text in words(picture)[1:]] == ["50 of 67", "700 of 989"]
    assert "recorded on NVIDIA H200" in picture.alt


def test_without_recorded_ceilings_the_data_sheet_is_named_as_the_source(nothing_recorded):
    assert lk.draw.ceilings().alt.endswith(f"{NOT_RECORDED}.")
    roof = lk.draw.roofline({"axpy": (2e6, 12e6)}, ladder=[("sum", "v3_warp", {"n": 1000_000})])
    assert f"{DATA_SHEET.copy_gb_per_s / 1e3:.2g} TB/s" in roof.alt and "sum" not in roof.alt


def test_roofline_draws_recorded_rows_as_dots_and_predictions_as_rings(two_recorded):
    ladder = [("sum", "v3_warp", {"n": 1000_000}), ("sum", "v2_tree", {"n": 1000_000}), ("softmax", "v2_online", {"rows": 2, "cols": 3})]
    picture = lk.draw.roofline({"axpy": (2e6, 12e6)}, ladder)
    dots = {tuple(line.get_xdata()): line for line in picture.figure.axes[0].lines if line.get_marker() == "o"}
    assert len(dots) == 2 and "sum v3_warp at 0.25 FLOPs a byte reaches 0.5 TFLOP/s." in picture.alt
    assert "axpy at 0.167 FLOPs a byte could reach 0.667 TFLOP/s." in picture.alt


def test_pictures_without_numbers_say_what_they_show():
    assert "emulator" in lk.draw.where_code_runs().alt and "x[i] and y[i]" in lk.draw.axpy_traffic().alt
