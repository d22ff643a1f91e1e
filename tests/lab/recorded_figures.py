"""Made-up figures in the form of data/measured, for tests of what shows and draws them."""

import torch

from labkernels.lab.ceilings import Ceilings
from labkernels.lab.measure import Entry, empty_row
from labkernels.operation import Op

ENVIRONMENT = {"gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11.0", "commit": "0123456789ab", "date": "2026-11-20"}
CEILINGS = Ceilings(copy_gb_per_s=4000.0, tflops={"float32": 50.0, "bfloat16": 700.0, "float16": 650.0, "tf32": 400.0, "float8_e4m3fn": 1400.0, "int8": 1500.0})
SHARES = {"v1_naive": 0.01, "v1_naive_cuda": 0.05, "v2_online": 0.1, "v3_tiled": 0.5, "flash": 0.4, "cudnn": 0.8}


def pretend_to_measure(op: Op, entry: Entry, dtype: torch.dtype, shape: dict, ceilings: Ceilings, budget_ms: float) -> dict:
    """What `measure` returns, the time made up: half of the limit's speed unless SHARES says otherwise."""
    limit_ms = ceilings.limit_ms(op, dtype, shape)
    row = empty_row(op, entry, dtype, shape, "") | ENVIRONMENT | {"limit_ms": limit_ms}
    if entry.name in ("flash", "cudnn") and dtype == torch.float32:
        return row | {"note": "no float32"}
    share = SHARES.get(entry.name, 0.5)
    ms = limit_ms / share
    rates = {"tflops": op.flops(**shape) / ms / 1e9, "gb_per_s": op.bytes_moved(dtype, **shape) / ms / 1e6}
    return row | rates | {"ms": ms, "ms_p20": 0.99 * ms, "ms_p80": 1.01 * ms, "share_of_limit": share}
