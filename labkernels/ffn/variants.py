"""How each version of `ffn` is launched, and on what it can run; and the whole ladder.

Each takes x (tokens, embed), w1, w2, b1, b2 and an activation's name, as `labkernels.ffn.ffn` does, and returns a new contiguous (tokens, embed).
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.kernel import MAX_GRID
from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel
from labkernels.ffn.reference import activation_number, is_gated
from labkernels.ffn.boxes import V6_BOXES, V6_TWO_KERNELS
from labkernels.ffn.few import V7_TF32
from labkernels.ffn.single import MOST_TOKENS, V6_ROWS
from labkernels.matmul import hopper, split
from labkernels.matmul.hopper import V7
from labkernels.matmul.split import V8
from labkernels.matmul.tensor_cores import V6 as TENSOR_CORES
from labkernels.operation import Variant, dtype_name

FOLDER = Path(__file__).parent
BLOCK = (32, 8)  # threads of v1
TILE, SIDE = 64, 16  # of v2


def v1_naive(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    def linear(x, w, bias):
        (rows, k), cols = x.shape, w.shape[0]
        y = torch.empty((rows, cols), dtype=x.dtype, device=x.device)
        grid = ceil_div(cols, BLOCK[0]), ceil_div(rows, BLOCK[1])
        kernel(FOLDER / "v1_naive.cu", "ffn_linear_naive", x.dtype)(grid, BLOCK, (x, w, bias, y, rows, cols, k, x.stride(0), w.stride(0)))
        return y

    pre = linear(x, w1, b1)
    h = torch.empty((x.shape[0], w2.shape[1]), dtype=x.dtype, device=x.device)
    activate = kernel(FOLDER / "v1_naive.cu", "ffn_activate_naive", x.dtype, activation_number(activation))
    activate(ceil_div(h.numel(), 256), 256, (pre, h, h.numel(), h.shape[1]))
    return linear(h, w2, b2)


def v2_fused(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    def linear(x, w, bias, cols, number):
        rows, k = x.shape
        y = torch.empty((rows, cols), dtype=x.dtype, device=x.device)
        grid = ceil_div(cols, TILE), ceil_div(rows, TILE)
        fused = kernel(FOLDER / "v2_fused.cu", "ffn_linear_fused", x.dtype, number)
        fused(grid, (SIDE, SIDE), (x, w, bias, y, rows, cols, k, x.stride(0), w.stride(0)))
        return y

    h = linear(x, w1, b1, w2.shape[1], activation_number(activation))
    return linear(h, w2, b2, w2.shape[0], 0)


def v3_tensor_cores(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    if is_gated(activation):
        return TENSOR_CORES(activated(TENSOR_CORES(x, w1.t(), b1), activation), w2.t(), b2)
    return TENSOR_CORES(TENSOR_CORES(x, w1.t(), b1, activation), w2.t(), b2)


def v4_hopper(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    h = hopper.gated(x, w1.t(), b1) if is_gated(activation) else V7(x, w1.t(), b1, activation)
    return V7(h, w2.t(), b2)


def v5_split(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    h = split.gated(x, w1.t(), b1) if is_gated(activation) else V8(x, w1.t(), b1, activation)
    return V8(h, w2.t(), b2)


def activated(pre: torch.Tensor, activation: str) -> torch.Tensor:
    """h (tokens, ffn) = act(pre), by a kernel of its own. pre is contiguous."""
    ffn = pre.shape[1] // (2 if is_gated(activation) else 1)
    h = torch.empty((pre.shape[0], ffn), dtype=pre.dtype, device=pre.device)
    if h.numel():
        width = widest(ffn, pre)
        activate = kernel(FOLDER / "activate.cu", "ffn_activation", pre.dtype, activation_number(activation), width)
        activate(ceil_div(h.numel(), 256 * width), 256, (pre, h, h.numel(), ffn))
    return h


def widest(columns: int, *tensors: torch.Tensor) -> int:
    """How many neighbours a thread may take at a time: as many as 16 bytes hold if rows have a multiple of that, else 1."""
    width = 16 // tensors[0].element_size()
    return width if columns % width == 0 and all(t.data_ptr() % 16 == 0 for t in tensors) else 1


def _few_tokens_a_column(height: int):
    def accepts(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
        return f"takes at most {height * MAX_GRID[1]} tokens" if x.shape[0] > height * MAX_GRID[1] else None

    return accepts


def _tensor_cores(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    return TENSOR_CORES.accepts(x, w1.t(), b1)


def _hopper(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    if x.dtype != torch.float32 and is_gated(activation) and w2.shape[1] % 8:
        return "takes an ffn that is a multiple of 8"
    return V7.accepts(x, w1.t(), b1) or V7.accepts(w2[:1], w2.t(), b2)  # h lies as a row of w2 does, or better


def _split(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    if x.dtype != torch.float32:
        return f"takes float32, not {dtype_name(x.dtype)}"
    if x.is_cuda and x.shape[0] <= MOST_TOKENS:
        return f"takes more than {MOST_TOKENS} tokens: for fewer it costs more to split the weights than to multiply them"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "three kernels: product, activation, product", FOLDER / "v1_naive.cu", _few_tokens_a_column(BLOCK[1])),
        Variant("v2_fused", v2_fused, "the first product activates its sums before it writes them", FOLDER / "v2_fused.cu", _few_tokens_a_column(TILE)),
        Variant("v3_tensor_cores", v3_tensor_cores, "matmul's v6 on tensor cores, GELU in its epilogue", FOLDER / "activate.cu", _tensor_cores),
        Variant("v4_hopper", v4_hopper, "matmul's v7: gates and ups of SwiGLU in one tile, neither goes through memory", hopper.FILE, _hopper),
        Variant("v5_split", v5_split, "float32 from halves, matmul's v8, with the same epilogues", split.FILE, _split),
        V6_TWO_KERNELS,
        V6_ROWS,
        V6_BOXES,
        V7_TF32,  # the fastest last: that is the order in which they are picked
    )
}
