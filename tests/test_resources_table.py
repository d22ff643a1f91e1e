"""Every CUDA source of the package compiles for sm_80 and sm_90a, and takes the registers that data/resources.csv says, without new spills."""

import zlib
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.cuda import Kernel
from labkernels.cuda.source import INCLUDE_DIR
from labkernels.lab import launched, resource_table
from labkernels.lab.launched import launched_kernels
from labkernels.lab.resource_table import ARCHITECTURES, PACKAGE, Row, architectures, compile_rows, complaints, kernels_in_sources, read_table, write_table

MANY_VALUES = """
__global__ void BOUNDS f(float* y, int n) {
    float a[60], sum = 0;
#pragma unroll
    for (int i = 0; i < 60; i++) a[i] = y[threadIdx.x + 64 * i];
    for (int j = 0; j < n; j++) {
#pragma unroll
        for (int i = 0; i < 60; i++) a[i] = a[i] * a[(7 * i + 1) % 60] + 1.0f;
    }
#pragma unroll
    for (int i = 0; i < 60; i++) sum += a[i];
    y[threadIdx.x] = sum;
}
"""
ROW = Row("softmax/v9.cu", "softmax", "float, 4", "sm_80", 40, 0, 0, 128, 16, "13.0")


def test_every_kernel_takes_what_the_table_says_and_spills_nothing_new():
    """Compiled is what has changed since the table was written, and every thirty-second of the rest; `labkernels resources` compiles all."""
    table = read_table()
    trusted = [row for row in table if zlib.crc32(repr(row.key).encode()) % 32]
    found = complaints(table, compile_rows(launched_kernels(), trusted=trusted))
    assert not found, "\n".join([*found, "if that is as it should be, `labkernels resources --update` records it"])


def test_every_kernel_in_the_sources_is_in_the_table_for_each_architecture_that_it_is_for():
    listed = {(row.file, row.kernel, row.arch) for row in read_table()}
    no_operation = {"gemv/quantised.cu", "kvcache/append.cu", "kvcache/gather.cu"}  # functions, which have no shapes to be measured on
    of_operations = {(file, kernel) for file, kernel in kernels_in_sources() if not file.startswith(("lab/", "llm/")) and file not in no_operation}
    assert {(file, kernel, arch) for file, kernel in of_operations for arch in architectures(PACKAGE / file)} <= listed
    assert {file for file, _, _ in listed} == {file for file, _ in of_operations}  # of which some have kernels in their headers


def test_what_uses_hoppers_instructions_is_not_compiled_for_others():
    assert architectures(PACKAGE / "matmul" / "v6_tensor_cores.cu") == ARCHITECTURES
    assert architectures(PACKAGE / "matmul" / "v7_hopper.cu") == ("sm_90a",)
    assert architectures(PACKAGE / "attention_backward" / "v3_hopper.cu") == ("sm_90a",)


def test_what_converts_8_bit_floats_is_not_compiled_for_gpus_that_cannot():
    assert architectures(PACKAGE / "ffn" / "quantise.cu") == ("sm_90a",)
    assert architectures(PACKAGE / "quant" / "v4_tensor_cores.cu", "f<Scheme::kInt4>") == ARCHITECTURES
    assert architectures(PACKAGE / "quant" / "v4_tensor_cores.cu", "f<Scheme::kFp8>") == ("sm_90a",)


@pytest.mark.parametrize("header", sorted(path.name for path in INCLUDE_DIR.glob("*.cuh")))
def test_every_header_compiles_alone_for_both_architectures(header):
    kernel = Kernel(f'#include "{header}"\nextern "C" __global__ void nothing() {{}}', "nothing")
    assert all(kernel.resources(arch).registers > 0 for arch in ARCHITECTURES)


def test_the_table_has_each_kernel_once_and_all_of_it_from_one_version_of_nvrtc():
    rows = read_table()
    assert len({row.key for row in rows}) == len(rows) and len({row.nvrtc for row in rows}) == 1
    assert {row.arch for row in rows} == set(ARCHITECTURES)


def test_finding_the_kernels_launches_none_and_leaves_launching_as_it_was():
    launch = Kernel.__call__
    names = [kernel.name for kernel in launched_kernels("sum", "softmax")]
    assert {"sum_tree", "sum_warp<4>", "softmax_online<__nv_bfloat16>", "softmax_streamed<float, 4>"} <= set(names)
    assert Kernel.__call__ is launch


def test_trusted_rows_are_compiled_again_when_their_code_a_header_or_nvrtc_changes(tmp_path, monkeypatch):
    (tmp_path / "f.cu").write_text('#include "f.cuh"\n' + MANY_VALUES.replace("BOUNDS", ""))
    header = tmp_path / "f.cuh"
    header.write_text("// nothing\n")
    compiled = []
    resources = Kernel.resources
    monkeypatch.setattr(Kernel, "resources", lambda kernel, arch: compiled.append(arch) or resources(kernel, arch))

    def rows(trusted=()):
        compiled.clear()
        return compile_rows([Kernel(tmp_path / "f.cu", "f")], trusted=trusted)

    table = rows()
    assert rows(table) == table and compiled == []
    header.write_text("// said in other words\n")
    assert rows(table) == table and compiled == []
    assert rows([replace(row, nvrtc="12.1") for row in table]) == table and len(compiled) == 2
    header.write_text("#define ANY 1\n")
    changed = rows(table)
    assert len(compiled) == 2 and complaints(table, changed) == [] and changed[0].source != table[0].source


def test_a_kernel_that_begins_to_spill_is_found(tmp_path):
    rows = []
    for bounds in ("", "__launch_bounds__(1024, 2)"):
        (tmp_path / "f.cu").write_text(MANY_VALUES.replace("BOUNDS", bounds))
        rows.append(compile_rows([Kernel(tmp_path / "f.cu", "f")]))
    assert complaints(rows[0], rows[0]) == []
    found = complaints(*rows)
    assert len(found) == 2 and all("f.cu: f on sm_" in line and "spills, which it did not" in line for line in found)
    assert complaints([replace(row, nvrtc="12.1") for row in rows[0]], rows[1]) == found  # whichever version compiled the table


@pytest.mark.parametrize(
    "recorded, compiled, said",
    [
        ([ROW], [ROW], []),
        ([], [ROW], ["softmax/v9.cu: softmax<float, 4> on sm_80: is not in the table"]),
        ([], [replace(ROW, spill_stores=8)], ["softmax/v9.cu: softmax<float, 4> on sm_80: is not in the table; it spills 8 bytes"]),
        ([ROW], [], ["softmax/v9.cu: softmax<float, 4> on sm_80: is in the table, and nothing launches it"]),
        ([ROW], [replace(ROW, registers=41, stack=0)], ["softmax/v9.cu: softmax<float, 4> on sm_80: registers 40 -> 41, stack 16 -> 0"]),
        ([replace(ROW, nvrtc="12.9")], [replace(ROW, registers=50, stack=0, shared=0)], []),
        (
            [replace(ROW, nvrtc="12.9")],
            [replace(ROW, registers=51)],
            ["softmax/v9.cu: softmax<float, 4> on sm_80: more than a quarter more registers: NVRTC 12.9 used 40, 13.0 uses 51"],
        ),
        ([replace(ROW, spill_stores=8, nvrtc="12.9")], [replace(ROW, spill_stores=16)], []),
        ([replace(ROW, spill_stores=8)], [replace(ROW, spill_stores=16)], ["softmax/v9.cu: softmax<float, 4> on sm_80: spill_stores 8 -> 16"]),
    ],
)
def test_what_is_a_complaint(recorded, compiled, said):
    assert complaints(recorded, compiled) == said


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [ROW, replace(ROW, instantiation="", spill_loads=4)]
    write_table(rows, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == rows


def test_the_command_updates_compares_and_refuses(tmp_path, monkeypatch):
    table = tmp_path / "resources.csv"
    monkeypatch.setattr(resource_table, "TABLE", table)
    monkeypatch.setattr(launched, "launched_kernels", lambda: launched_kernels("sum"))
    monkeypatch.setattr(resource_table.read_table, "__defaults__", (table,))
    monkeypatch.setattr(resource_table.write_table, "__defaults__", (table,))

    def run(*arguments):
        result = CliRunner().invoke(app, ["resources", *arguments])
        return result.exit_code, result.output

    code, shown = run()
    assert code == 1 and "sum_tree on sm_80: is not in the table" in shown and "resources --update" in shown
    code, shown = run("--update")
    assert code == 0 and "6 rows, 3 kernels, 0 rows with spills" in shown
    assert run() == (0, "6 rows, 3 kernels, 0 rows with spills\n")
    rows = read_table(table)
    write_table([replace(rows[0], registers=rows[0].registers + 1), *rows[1:]], table)
    code, shown = run()
    assert code == 1 and f"registers {rows[0].registers + 1} -> {rows[0].registers}" in shown
