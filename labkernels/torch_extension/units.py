"""What the C++ extension is made of: one small .cu file for each kernel configuration, so that nvcc compiles them side by side.

A unit includes a launcher of csrc/, which includes the kernel's own file from the operation's folder, and puts one configuration on the list
that operators.cpp looks through. The configurations and their costs are those that the Python launchers use.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from labkernels.attention import hopper as attention_hopper
from labkernels.attention import tensor_cores as attention_tensor_cores
from labkernels.attention_backward import hopper as backward_hopper
from labkernels.matmul import hopper as matmul_hopper
from labkernels.matmul import tensor_cores as matmul_tensor_cores

CSRC = Path(__file__).parent / "csrc"
PACKAGE = Path(__file__).parents[1]
TYPES = {"bf16": "__nv_bfloat16", "fp16": "__half"}
HEAD_DIMS = (64, 128)
HOPPER_MATMULS = ((128, 256), (128, 192), (128, 128), (64, 128))  # tiles of v7's configurations; all of them would take nvcc minutes
MMA_MATMULS = ("128x256x32", "128x128x32", "64x64x64")  # of v6's configurations, those that every GPU from sm_80 on has shared memory for
COST = 1e-5  # of an element of the result in a stage of 64, in the unit of v6's costs


def units(arch: int) -> dict[str, str]:
    """File names and texts for a GPU of architecture `arch` (90: compute capability 9.0): Hopper's kernels there, else those for mma.sync."""
    return _hopper_units() if arch == 90 else _mma_units(arch)


def sources() -> list[Path]:
    """Every file whose change makes the extension another one: csrc/, the kernels and their headers."""
    folders = [CSRC, *(PACKAGE / name for name in ("cuda/include", "matmul", "attention", "attention_backward"))]
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".cpp", ".cu", ".cuh", ".h"))


def _hopper_units() -> dict[str, str]:
    found = {}
    for short, element in TYPES.items():
        for config, costs in matmul_hopper.COSTS.items():
            if (config.rows, config.columns) in HOPPER_MATMULS:
                sizes = config.rows, config.columns, config.consumers, config.stages, config.slabs, config.band
                template = _template("HopperMatmul", element, *sizes)
                found[f"matmul_{config.rows}x{config.columns}_{short}"] = _unit("matmul_hopper", "Matmul", template, *costs)
        for head_dim in HEAD_DIMS:
            for rows, causal in ((4096, False), (512, True)):
                config = attention_hopper.best_config(head_dim, rows, causal)
                if causal and config == attention_hopper.best_config(head_dim, 4096, False):
                    continue  # nothing special for short ones
                template = _template("HopperAttention", element, head_dim, *astuple(config))
                name = f"attention_{head_dim}{'_short' if causal else ''}_{short}"
                found[name] = _unit("attention_hopper", "Attention", template, str(causal).lower())
            block_q, shared = backward_hopper.block_q(head_dim), backward_hopper.shared_mem(head_dim)
            template = _template("HopperBackward", element, head_dim, block_q, shared)
            found[f"backward_{head_dim}_{short}"] = _unit("attention_backward_hopper", "Backward", template)
    return found


def _mma_units(arch: int) -> dict[str, str]:
    found = {}
    for short, element in TYPES.items():
        for name in MMA_MATMULS:
            c = matmul_tensor_cores.CONFIGS[name]
            sizes = c.block_m, c.block_n, c.block_k, c.warp_m, c.warp_n, c.stages, c.blocks, c.shared_mem
            template, cost = _template("TensorCoreMatmul", element, *sizes), COST * c.block_m * c.block_n * c.cost
            found[f"matmul_{name}_{short}"] = _unit("matmul_tensor_cores", "Matmul", template, arch, cost)
        for head_dim in HEAD_DIMS:
            template = _template("TensorCoreAttention", element, attention_tensor_cores.TILINGS[f"d{head_dim}"])
            found[f"attention_{head_dim}_{short}"] = _unit("attention_tensor_cores", "Attention", template, arch)
    return found


def _template(name: str, *arguments) -> str:
    return f"{name}<{', '.join(map(str, arguments))}>"


def _unit(header: str, kind: str, launcher: str, *arguments) -> str:
    numbers = ", ".join(f"{a}f" if isinstance(a, float) else str(a) for a in arguments)
    return (
        f'#include "{header}.cuh"\n\nusing namespace labkernels;\n'
        f"static const Register<{kind}Kernel> unit(labkernels::{launcher}::kernel({numbers}));\n"
    )
