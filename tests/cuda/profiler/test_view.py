"""What a notebook shows of a profile: the source with its counters, and the two pictures."""

import re
from html.parser import HTMLParser

import pytest
import torch

import labkernels as lk
from labkernels.cuda import Kernel
from labkernels.errors import ArgumentError
from tests.cuda.profiler.kernels import launches

CELL = """\
extern "C" __global__ void scatter(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] > 0)
        y[8 * i] = x[i];          // eight times the sectors
}"""
LAUNCHES = {launch.name: launch for launch in launches("cpu")}


def profile_of(name):
    launch = LAUNCHES[name]
    return lk.profile(launch.kernel, launch.grid, launch.block, launch.args)


def scatter():
    x = torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0)
    return lk.profile(Kernel(CELL, "scatter", filename="In[7]", first_line=2), 2, 128, (x, torch.zeros(2048), 256))


class Rows(HTMLParser):
    """The text of every cell of every table row, and whether all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.styles = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.styles.append(dict(attributes).get("style", ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_the_html_has_a_row_for_every_line_with_its_counters_and_needs_nothing_else():
    text = scatter()._repr_html_()
    page = Rows(text)
    assert not page.open
    rows = {row[-2]: row for row in page.rows if len(row) > 2 and row[-2].isdigit()}
    assert list(rows) == ["2", "3", "4", "5", "6"]
    assert rows["5"][-1].replace("\u00a0", " ") == CELL.splitlines()[3]
    assert "128" in rows["5"] and "16" in rows["5"] and "50%" in rows["5"]    # 16 sectors for 16 lanes of 8 warps
    assert not re.search(r"<script|<link|<img|https?:|\bon\w+=", text)
    assert "scatter" in text.split("<table")[0] and "of lanes active" in text.split("<table")[0]


def test_colours_are_translucent_so_that_light_and_dark_pages_both_show_through():
    styles = Rows(profile_of("lk_transpose_tile")._repr_html_()).styles
    backgrounds = {match for style in styles for match in re.findall(r"background:([^;']+)", style)}
    alphas = [float(re.fullmatch(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", colour)[1]) for colour in backgrounds - {"transparent"}]
    assert alphas and max(alphas) <= 0.65
    assert not any(re.search(r"(?<!-)color:\s*(#|black|white|rgb)", style) for style in styles)


def test_of_a_long_source_only_the_functions_that_ran_are_shown():
    text = profile_of("lk_transpose_padded")._repr_html_()
    assert "lk_transpose_padded" in text and "tile[j][" in text and "lk_matmul_tiled" not in text and "⋯" in text
    assert len(text) < 15_000


def test_angle_brackets_of_the_source_are_escaped():
    k = Kernel("template <int N> __global__ void f(int* y) { if (threadIdx.x < N) y[threadIdx.x] = 1; }", "f<8>")
    text = lk.profile(k, 1, 32, (torch.zeros(32, dtype=torch.int32),))._repr_html_()
    assert "<int" not in text and "<8>" not in text and not Rows(text).open


def test_a_kernel_that_asks_nothing_of_memory_still_shows():
    p = lk.profile(Kernel('extern "C" __global__ void nothing(int n) {}', "nothing"), 1, 32, (1,))
    assert "asks nothing of memory" in p._repr_html_() or "lanes active" in p._repr_html_()
    assert p.by_line["global_load_requests"].sum() == 0 if len(p.by_line) else True
    assert "nothing" in repr(p)


def test_the_picture_of_a_line_tells_lanes_bytes_and_sectors():
    picture = profile_of("lk_transpose_naive").plot_line(12)
    assert "load from x, 32 lanes ask for 128 bytes and 4 sectors" in picture.alt
    assert "store to y, 32 lanes ask for 128 bytes and 32 sectors, 1024 bytes, move" in picture.alt
    assert len(picture.figure.axes) == 2 and picture.png().startswith(b"\x89PNG")


def test_the_picture_of_shared_memory_counts_passes_as_the_profiler_does():
    for name, told in (("tile", "32 passes, 31 bank conflicts"), ("padded", "1 pass, 0 bank conflicts")):
        assert f"load from tile, 32 lanes need {told}" in profile_of(f"lk_transpose_{name}").plot_line(19).alt
    p = profile_of("lk_shared_vector")
    line = int(p.by_line.loc[p.by_line["shared_load_requests"] > 0, "line"].iloc[0])
    assert f"{p.shared_load_wavefronts // p.shared_load_requests} passes" in p.plot_line(line).alt


def test_a_picture_of_an_array_that_begins_within_a_sector():
    k = Kernel('extern "C" __global__ void f(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }', "f")
    picture = lk.profile(k, 1, 32, (torch.randn(40)[3:], torch.zeros(32))).plot_line(1)
    assert "load from x, 32 lanes ask for 128 bytes and 5 sectors" in picture.alt


def test_a_line_that_touches_nothing_says_which_do():
    with pytest.raises(ArgumentError, match=r"line 3 touches no global or shared memory; these lines do: \[4, 5\]"):
        scatter().plot_line(3)


def test_the_timeline_of_barriers_shows_who_waits_for_whom():
    picture = profile_of("lk_sum_tree").plot_barriers()
    assert "each of the 8 warps of block 0" in picture.alt and "each of 8 barriers" in picture.alt
    assert "the furthest are 21 requests apart" in picture.alt                # warp 0 adds in 7 steps more than warp 7, three requests each
    with pytest.raises(ArgumentError, match="no warp came to a barrier"):
        scatter().plot_barriers()


def test_a_line_may_be_named_by_a_piece_of_its_text():
    profile = scatter()
    assert profile.line_of("y[8 * i]") == 5 and profile.plot_line("y[8 * i]").alt == profile.plot_line(5).alt
    with pytest.raises(ArgumentError, match=r"no line with 'z\['.*4: if \(i < n"):
        profile.plot_line("z[")


def test_a_picture_of_a_line_may_show_one_kind_of_access():
    profile = profile_of("lk_transpose_swizzled")
    line = profile.line_of("= tile[")
    assert len(profile.plot_line(line).figure.axes) == 2
    assert [axes.get_title(loc="left") for axes in profile.plot_line(line, "shared_load").figure.axes] == ["load from tile: 1 pass, 0 bank conflicts"]
    with pytest.raises(ArgumentError, match="has no global load"):
        profile.plot_line(line, "global_load")


def test_code_keeps_its_indentation_in_every_page():
    assert "\u00a0\u00a0\u00a0\u00a0int i = blockIdx.x" in "\n".join(cell for row in Rows(scatter()._repr_html_()).rows for cell in row)


def test_a_header_whose_functions_ask_nothing_of_memory_is_left_out():
    text = """\
#include "warp.cuh"
extern "C" __global__ void sums(const float* x, float* y) {
    float most = warp_max(x[lane_id()]), sum = warp_sum(x[lane_id()] - most);
    for (int i = lane_id(); i < 1; i += 32) y[i] = warp_sum(sum) + warp_max(most);
}"""
    profile = lk.profile(Kernel(text, "sums"), 1, 32, (torch.rand(32), torch.empty(1)))
    assert any(file.endswith("warp.cuh") for file in profile.by_line["file"]) and "warp.cuh</th>" not in profile._repr_html_()
