"""Benchmarks: recorded figures are shown as recorded, nothing emulated is ever shown as a time, and what is missing says so."""

import math
from dataclasses import replace

import pandas
import pytest
import torch

from labkernels.cuda import profile, sanitize
from labkernels.cuda.variants import kernel
from labkernels.lab import measured, record
from labkernels.lab.bench import bench, sweep_points
from labkernels.lab.ceilings import READ_BLOCK, READ_FILE, measure_ceilings, read_all
from labkernels.lab.environment import commit
from labkernels.lab.measure import ENVIRONMENT_COLUMNS, RESULT_COLUMNS, Entry, peak_memory
from labkernels.operation import Variant, ops
from tests.lab.recorded_figures import CEILINGS, ENVIRONMENT, pretend_to_measure

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without a GPU shows")


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """data/measured with made-up figures of attention and softmax, but none of sum."""
    monkeypatch.setattr(record, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(measured, "FOLDERS", (tmp_path,))
    (tmp_path / "h200").mkdir()
    for name in ("attention", "softmax"):
        frame = record.measure_sweeps(ops[name], CEILINGS, 100.0, timer=pretend_to_measure)
        frame.to_csv(tmp_path / "h200" / f"{name}.csv", index=False)
    record._ceilings_frame(CEILINGS).to_csv(tmp_path / "h200" / "ceilings.csv", index=False)
    return tmp_path


def my_attention(q, k, v, causal=False, scale=None):
    raise AssertionError("must not be called where it cannot be timed")


@without_gpu
def test_recorded_rows_are_shown_and_labelled(figures):
    table = bench("attention", ["v2_online", "v3_tiled", "cudnn"], seq_len=[512, 4096], dtype="bfloat16", causal=True)
    assert table.source == "recorded on NVIDIA H200, 2026-11-20, commit 0123456789ab"
    assert table.source in table._repr_html_() and table.source in repr(table)
    assert list(table.frame["variant"]) == ["v2_online", "v3_tiled", "cudnn"] * 2
    assert (table.frame["seq_len"].tolist(), table.frame["batch"].tolist()) == ([512] * 3 + [4096] * 3, [32] * 3 + [4] * 3)
    assert table.frame["ms"].notna().all() and (table.frame["date"] == "2026-11-20").all()
    assert table.pivot().loc["cudnn", 512].endswith("(80%)")


@without_gpu
def test_a_function_of_the_readers_gets_no_time_without_a_gpu(figures):
    table = bench("attention", ["v3_tiled", my_attention], seq_len=512)
    row = table.frame[table.frame["variant"] == "my_attention"].iloc[0]
    assert math.isnan(row["ms"]) and row["kind"] == "yours" and row["note"] == "times need a GPU"
    assert table.pivot().loc["my_attention"].tolist() == ["times need a GPU"]


@without_gpu
def test_what_was_not_recorded_says_so(figures):
    table = bench("attention", ["v3_tiled"], seq_len=[512, 600])
    assert table.frame["note"].tolist() == ["", "not recorded"]
    assert table.pivot().loc["v3_tiled", 600] == "not recorded"


@without_gpu
def test_without_any_recorded_file_the_table_says_how_to_make_one(figures):
    table = bench("sum", ["torch"], n=[1024, 2048])
    assert table.frame["ms"].isna().all()
    assert "data/measured/h200/sum.csv is missing" in table.source and "labkernels bench --record" in table.source
    assert "not recorded" in table.plot().figure.axes[0].texts[0].get_text()


@without_gpu
def test_plot_draws_every_line_and_the_limit(figures):
    picture = bench("attention", ["v1_naive_cuda", "v3_tiled", my_attention, "math"], seq_len=[512, 1024, 2048]).plot()
    (axes,) = picture.figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"v1_naive_cuda", "v3_tiled", "math", "limit"}
    assert all((limit < time).all() for limit, time in [(lines["limit"].get_ydata(), lines["math"].get_ydata())])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "Closest to the limit is v3_tiled, at 50% of it. recorded on NVIDIA H200" in picture.alt
    assert picture.png().startswith(b"\x89PNG")


@without_gpu
def test_plot_has_a_panel_for_each_dtype_and_mask(figures):
    picture = bench("attention", ["v3_tiled"], dtype=["float32", "bfloat16"], causal=[False, True]).plot()
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    assert titles == ["float32, not causal", "float32, causal", "bfloat16, not causal", "bfloat16, causal"]


@without_gpu
def test_one_point_is_drawn_as_bars_that_start_at_the_limit(figures):
    table = bench("attention", ["v1_naive_cuda", "v3_tiled", "flash"], seq_len=2048)
    picture = table.plot()
    (axes,) = picture.figure.axes
    limit = table.frame["limit_ms"].iloc[0]
    assert [round(bar.get_x(), 6) for bar in axes.patches] == [round(limit, 6)] * 2
    assert any("no float32" in text.get_text() for text in axes.texts)


def test_unknown_names_and_sizes_are_named():
    with pytest.raises(KeyError, match="did you mean 'v3_tiled'"):
        bench("attention", ["v3_tild"])
    with pytest.raises(TypeError, match="bench: attention: got an unexpected keyword argument 'length'"):
        bench("attention", ["math"], length=3)
    with pytest.raises(TypeError, match="bench: 3 is neither a function nor the name"):
        bench("attention", [3])


def test_defaults_of_a_sweep_are_filled_in():
    points = sweep_points(ops["attention"], {"seq_len": 1024, "dtype": "bfloat16"})
    assert points == [
        (
            torch.bfloat16,
            {"batch": 16, "heads": 16, "kv_heads": 16, "seq_len": 1024, "kv_len": 1024, "head_dim": 128, "causal": False},
        )
    ]


def test_kinds_tell_whose_it_is():
    op = ops["attention"]
    kinds = [Entry.of(op, what).kind for what in ("v3_tiled", "cudnn", my_attention, Variant("x", my_attention, "none"))]
    assert kinds == ["ours", "peer", "yours", "ours"]


def test_the_limit_is_the_longer_of_bytes_and_flops():
    op, bf16 = ops["softmax"], torch.bfloat16
    shape = {"rows": 1000, "cols": 1000}
    assert CEILINGS.limit_ms(op, bf16, shape) == pytest.approx(4e6 / 4000e9 * 1e3)
    assert CEILINGS.memory_bound(op, bf16, shape)
    op = ops["attention"]
    shape = op.complete_shape(torch.float32, seq_len=4096)
    assert CEILINGS.limit_ms(op, torch.float32, shape) == pytest.approx(4 * 32 * 4096**2 * 128 / 50e12 * 1e3)
    assert not CEILINGS.memory_bound(op, torch.float32, shape)


def test_an_operation_that_only_reads_is_limited_by_reading_where_that_was_measured():
    op, shape = ops["sum"], {"n": 1 << 20}
    reading = replace(CEILINGS, read_gb_per_s=4400.0)
    assert CEILINGS.limit_ms(op, torch.float32, shape) == pytest.approx((4 * 2**20 + 4) / 4000e9 * 1e3)
    assert reading.limit_ms(op, torch.float32, shape) == pytest.approx((4 * 2**20 + 4) / 4400e9 * 1e3)
    assert reading.memory_bound(op, torch.float32, shape)
    softmax = ops["softmax"], torch.float32, {"rows": 1000, "cols": 1000}
    assert reading.limit_ms(*softmax) == CEILINGS.limit_ms(*softmax)


def test_the_read_ceiling_is_recorded_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "environment", lambda: ENVIRONMENT)
    ceilings = replace(CEILINGS, read_gb_per_s=4400.0)
    (tmp_path / "h200").mkdir()
    record._ceilings_frame(ceilings).to_csv(tmp_path / "h200" / "ceilings.csv", index=False)
    monkeypatch.setattr(measured, "FOLDERS", (tmp_path,))
    assert measured.recorded_ceilings() == ceilings


@pytest.mark.parametrize("name, tflops", [("scaled_matmul", 1400.0), ("w8a8_matmul", 1500.0)])
def test_products_of_8_bits_are_limited_by_their_own_ceiling_or_by_none(name, tflops):
    point = ops[name], torch.bfloat16, ops[name].complete_shape(torch.bfloat16, m=8192)
    assert CEILINGS.limit_ms(*point) == pytest.approx(2 * 8192**3 / tflops / 1e9)
    without = replace(CEILINGS, tflops={"bfloat16": 700.0})
    assert math.isnan(without.limit_ms(*point)) and without.memory_bound(*point)  # no other dtype's stands for it


@pytest.mark.gpu
def test_reading_is_a_little_faster_than_copying_and_bytes_multiplied_faster_than_halves():
    ceilings = measure_ceilings()
    assert 0.95 < ceilings.read_gb_per_s / ceilings.copy_gb_per_s < 1.25
    if torch.cuda.get_device_capability() >= (9, 0):
        assert all(ceilings.tflops[kind] > 1.3 * ceilings.tflops["bfloat16"] for kind in ("float8_e4m3fn", "int8"))


@pytest.mark.parametrize("count", [4, 8, 1000, 8192, 8196])
def test_the_read_ceilings_kernel_reads_all_and_writes_nothing(count):
    x = torch.randn(count)
    before = x.clone()
    args = (x, x, count // 4)
    blocks = -(-count // 4 // READ_BLOCK)
    read = kernel(READ_FILE, "read_all")
    assert sanitize(read, blocks, 256, args).clean
    counted = profile(read, blocks, 256, args)
    assert counted.global_load_bytes == 4 * count and counted.global_store_requests == 0
    assert [read.resources(arch).spill_load_bytes for arch in ("sm_80", "sm_90a")] == [0, 0]
    read_all(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", list(ops))
def test_recorded_frames_follow_the_schema(name, monkeypatch):
    monkeypatch.setattr(record, "environment", lambda: ENVIRONMENT)
    op = ops[name]
    frame = record.measure_sweeps(op, CEILINGS, 100.0, timer=pretend_to_measure)
    assert list(frame.columns[:3]) == ["op", "variant", "kind"]
    assert list(frame.columns[-15:]) == RESULT_COLUMNS + ENVIRONMENT_COLUMNS
    assert set(frame["variant"]) == {*op.variants, *op.peers}
    assert not frame.duplicated(list(frame.columns[: frame.columns.get_loc("ms")])).any()
    assert (frame["ms"].isna() == (frame["note"] != "")).all()


def test_calls_expected_to_take_too_long_are_left_out_and_say_so(monkeypatch):
    monkeypatch.setattr(record, "environment", lambda: ENVIRONMENT)
    frame = record.measure_sweeps(ops["attention"], CEILINGS, 100.0, timer=pretend_to_measure)
    left_out = frame[frame["note"].str.startswith("left out")]
    assert set(left_out["variant"]) == {"v1_naive"} and (left_out["seq_len"] == 8192).any()
    assert (left_out["dtype"] == "float32").any() and left_out["limit_ms"].notna().all()
    assert "left out: about 2.2 s a call" in set(left_out["note"])


def test_the_summary_of_a_recording_is_short(monkeypatch):
    monkeypatch.setattr(record, "environment", lambda: ENVIRONMENT)
    frame = record.measure_sweeps(ops["attention"], CEILINGS, 100.0, timer=pretend_to_measure)
    text = str(record._summary(ops["attention"], frame))
    assert len(text.splitlines()) < 40 and "head_dim 128, causal" in text and "8192" in text and "bfloat16" in text


def test_attention_is_recorded_at_the_sizes_of_the_book():
    swept = ops["attention"].record_sweeps[0]
    assert swept["seq_len"] == [512, 1024, 2048, 4096, 8192] and swept["head_dim"] == [64, 128]
    assert swept["dtype"] == ["float32", "bfloat16"]


@without_gpu
def test_recording_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(measured.LabKernelsError, match="this machine has none"):
        record.record(tmp_path / "h200")
    assert not (tmp_path / "h200").exists()


def test_recorded_columns_of_text_stay_text(figures):
    path = figures / "h200" / "softmax.csv"
    path.write_text(path.read_text().replace("0123456789ab", "12e456789012"))
    frame = measured.recorded("softmax")
    assert set(frame["commit"]) == {"12e456789012"} and set(frame["note"]) == {""}


def test_recorded_ceilings(figures):
    assert measured.recorded_ceilings() == CEILINGS


def test_commit_comes_from_the_repository_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LABKERNELS_COMMIT", raising=False)
    assert len(commit().rstrip("+")) == 12 or commit() == "unknown"
    monkeypatch.setenv("LABKERNELS_COMMIT", "fedcba987654")
    assert commit() == "fedcba987654"  # a copy of the files may lie in another repository, or in an older one
    monkeypatch.setattr("labkernels.lab.environment.REPOSITORY", tmp_path)
    assert commit() == "fedcba987654"
    monkeypatch.delenv("LABKERNELS_COMMIT")
    assert commit() == "unknown"


@pytest.mark.gpu
def test_times_on_a_gpu_are_measured_and_make_sense():
    def slow_softmax(x):
        for _ in range(4):
            y = torch.softmax(x, dim=-1)
        return y

    def wrong_softmax(x):
        return torch.softmax(x, dim=0)

    table = bench("softmax", ["torch", slow_softmax, wrong_softmax], cols=1024)
    rows = table.frame.set_index("variant")
    assert rows.loc["wrong_softmax", "note"] == "wrong result" and math.isnan(rows.loc["wrong_softmax", "ms"])
    assert rows.loc["torch", "ms_p20"] <= rows.loc["torch", "ms"] <= rows.loc["torch", "ms_p80"]
    assert 3 < rows.loc["slow_softmax", "ms"] / rows.loc["torch", "ms"] < 5
    assert 0.2 < rows.loc["torch", "share_of_limit"] < 1.1
    assert table.source.startswith("measured now on NVIDIA")


def test_figures_recorded_before_peak_memory_was_are_still_shown(figures):
    path = figures / "h200" / "softmax.csv"
    frame = pandas.read_csv(path)
    frame.drop(columns="peak_mb").to_csv(path, index=False)
    shown = bench("softmax", ["torch"], cols=1024).frame if not torch.cuda.is_available() else frame.assign(peak_mb=math.nan)
    assert shown["ms"].notna().all() and shown["peak_mb"].isna().all()


@pytest.mark.gpu
def test_peak_memory_is_what_a_call_adds_its_result_included():
    kept = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")

    def call():
        temporary = torch.empty(4 << 20, dtype=torch.uint8, device="cuda")
        result = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
        del temporary
        return result

    peak, result = peak_memory(call)
    assert peak == 5 << 20 and result.numel() == 1 << 20 and kept.numel() == 3 << 20


def test_recording_names_the_operations_that_time_was_too_short_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(record, "environment", dict)
    said = []
    record.record(tmp_path, ["softmax", "sum"], seconds=-1.0, say=said.append)
    assert said[0] == "not measured, -1 s have passed: softmax, sum"
    assert [path.name for path in tmp_path.iterdir()] == ["ceilings.csv"]


@pytest.mark.gpu
def test_recording_writes_every_file(tmp_path):
    record.record(tmp_path, op_names=["sum"], budget_ms=5.0)
    frame = pandas.read_csv(tmp_path / "sum.csv")
    assert frame["ms"].notna().any() and (frame["gpu"] == torch.cuda.get_device_name()).all()
    assert pandas.read_csv(tmp_path / "ceilings.csv")["name"].tolist()[:3] == ["copy", "read", "matmul_float32"]


@without_gpu
@pytest.mark.parametrize("name", sorted(ops))
def test_what_is_benchmarked_unless_sizes_are_given_was_recorded(name):
    """Else a reader without a GPU is shown a table of nothing."""
    rows = bench(name, [*ops[name].peers]).frame
    assert not rows["note"].eq("not recorded").any(), rows.loc[rows["note"].eq("not recorded")].to_string()
