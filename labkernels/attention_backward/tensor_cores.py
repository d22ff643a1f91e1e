"""How v2 of `attention_backward` is launched: its tilings, and what it can run on."""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from labkernels.attention.visible import mask_operand, window_sides
from labkernels.attention_backward.host import BackwardPass
from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.operation import Variant

FILE = Path(__file__).with_name("v2_tensor_cores.cu")


@dataclass(frozen=True)
class Tiling:
    """How the work is split; the fields are explained in v2_tensor_cores.cu."""

    head_dim: int
    pairs: int
    row_tiles: int
    queries: int
    blocks: int

    @property
    def keys(self) -> int:
        return 16 * self.pairs * self.row_tiles

    @property
    def threads(self) -> int:
        return 64 * self.pairs

    @property
    def shared_bytes(self) -> int:
        tiles = (2 * self.keys + 4 * self.queries) * self.head_dim * 2
        return tiles + 3 * self.keys * self.queries * 2 + 4 * self.queries * 4

    def __str__(self) -> str:
        return f"Tiling<{', '.join(map(str, astuple(self)))}>"


TILINGS = {  # by name: for each head_dim the first one that fits in shared memory is taken
    "d64": Tiling(64, 2, 2, 64, 3),
    "d128": Tiling(128, 4, 2, 64, 1),
    "d128_small": Tiling(128, 4, 2, 32, 1),
    "d256": Tiling(256, 4, 1, 64, 1),
    "d256_small": Tiling(256, 4, 1, 32, 1),
}


@functools.cache
def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 227 * 1024


def best_tiling(q) -> Tiling:
    fitting = (tiling for tiling in TILINGS.values() if tiling.head_dim >= q.shape[-1] and tiling.shared_bytes <= _shared_memory(q.device))
    return next(fitting)


def backward(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None):
    options = {"window": window, "mask": mask, "deterministic": deterministic, "packed": packed}
    return configured(best_tiling(q), grad_out, q, k, v, out, lse, causal, scale, **options)


def configured(
    tiling: Tiling | str, grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None
):  # fmt: skip
    """v2 with this tiling, or the one of TILINGS with this name. Its head_dim is that of q or more."""
    tiling = TILINGS[tiling] if isinstance(tiling, str) else tiling
    of = BackwardPass(tiling, grad_out, q, k, v, out, lse, packed, deterministic)
    sizes = (of.heads, of.seq_len, of.head_dim, of.row_tiles)
    prepare = kernel(FILE, "attention_backward_prepare", q.dtype, tiling.head_dim, tiling.queries)
    args = (of.grad_out, of.out, of.lse, of.row_lse, of.delta, of.steps(of.grad_out), of.steps(of.out), *of.lse_strides, of.cu_q, *sizes)
    of.launch(prepare, (of.tiles,), of.heads, 256, args)

    kind, mask, mask_strides = mask_operand(mask, of.q, of.kv_len)
    scale = 1 / math.sqrt(of.head_dim) if scale is None else scale
    own = (of.heads, of.heads // of.kv_heads, of.seq_len, of.kv_len, of.head_dim, of.row_tiles, *window_sides(causal, window))
    strided = map(of.steps, (of.q, of.k, of.v, of.grad_out, of.dk, of.dv))
    problem = b"".join((*strided, mask_strides, struct.pack("<8if", *own, scale * math.log2(math.e)), bytes(4)))
    main = kernel(FILE, "attention_backward_tensor_cores", q.dtype, tiling, kind, str(deterministic).lower())
    args = (of.q, of.k, of.v, of.grad_out, of.row_lse, of.delta, of.sums, of.turns, of.dk, of.dv, mask, of.cu_q, of.cu_k, problem)
    of.launch(main, (ceil_div(of.kv_len, tiling.keys),), of.kv_heads, tiling.threads, args, tiling.shared_bytes)

    finish = kernel(FILE, "attention_backward_rows", q.dtype, tiling)
    of.launch(finish, (of.tiles,), of.heads, tiling.threads, (of.sums, of.dq, of.steps(of.dq), of.cu_q, *sizes, scale))
    return of.results


def accepts(grad_out, q, k, v, out, lse, *_, **__) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "takes bfloat16 and float16"
    if q.shape[-1] > 256:
        return "takes a head_dim of at most 256"
    for name, tensor in (("grad_out", grad_out), ("q", q), ("k", k), ("v", v), ("out", out)):
        if vector_width(8, tensor) == 1:
            return f"takes rows that lie on 16 bytes, {name}'s do not"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    return None


IDEA = "tensor cores: one warp of a pair sums dv, the other dk; P handed over, dq added in float32"
VARIANT = Variant("v2_tensor_cores", backward, IDEA, FILE, accepts)
