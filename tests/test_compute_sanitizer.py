"""`tests/compute_sanitizer.py`: what it makes of compute-sanitizer's reports. (It runs on a GPU: `make gpu-sanitize`.)"""

import pytest

from tests.compute_sanitizer import OTHERS, errors_in, kernels_of, record

CLEAN = """========= COMPUTE-SANITIZER
CALLS {}
========= ERROR SUMMARY: 0 errors
"""
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void softmax_online<float>(const T1 *, T1 *, int, int, long long)+0x1d0 in v2_online.cu:31
=========     by thread (0,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x2a]
=========
========= Invalid __global__ read of size 4 bytes
=========     at void at::native::elementwise_kernel<2>(int)+0x10
=========
========= ERROR SUMMARY: 3 errors
"""
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void _Z16softmax_registersIfLi256EEvPKT_PS1_iix+0x2f0
=========     and Read access at void _Z16softmax_registersIfLi256EEvPKT_PS1_iix+0x350 [28 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_errors_are_those_of_the_variant_whose_kernel_is_named():
    kernels = kernels_of("softmax")
    assert errors_in(CLEAN, kernels) == {}
    assert errors_in(OUT_OF_BOUNDS, kernels) == {"v2_online": 1, OTHERS: 2}  # one of PyTorch's kernel, one that was not shown
    assert errors_in(RACE, kernels) == {"v3_registers": 1}


def test_a_tool_that_did_not_come_to_its_end_found_nothing_to_rely_on():
    with pytest.raises(ValueError, match="no summary"):
        errors_in("========= COMPUTE-SANITIZER\nCALLS {}\n", {})


def test_rows_replace_those_of_the_same_tool_and_variant(tmp_path):
    table = tmp_path / "new" / "table.csv"
    record([{"tool": "memcheck", "op": "sum", "variant": "v1", "errors": 4}, {"tool": "racecheck", "op": "sum", "variant": "v1", "errors": 0}], table)
    record([{"tool": "memcheck", "op": "sum", "variant": "v1", "errors": 0}, {"tool": "memcheck", "op": "sum", "variant": "v2", "errors": 0}], table)
    lines = [line.split(",")[:5] for line in table.read_text().splitlines()]
    assert lines == [["tool", "op", "variant", "calls", "errors"], ["racecheck", "sum", "v1", "", "0"], ["memcheck", "sum", "v1", "", "0"], ["memcheck", "sum", "v2", "", "0"]]
