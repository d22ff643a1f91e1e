"""How each version of `attention_backward` is launched, and on what it can run.

Each takes the inputs of `attention_backward` and returns (dq, dk, dv), new and contiguous. With `packed` (packing.py) the tensors are those of
`attention_backward_varlen`: (tokens, heads, head_dim), and lse (heads, tokens). v2 is launched in tensor_cores.py, v3 in hopper.py, v4 in split.py.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from labkernels.attention import hopper as forward_hopper
from labkernels.attention.launches import from_batch, launches
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.attention_backward import hopper, split, tensor_cores
from labkernels.attention_backward.packing import as_heads, gradients_like, varlen
from labkernels.cuda.variants import ceil_div, kernel, strides
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
WARPS = 8  # queries, or keys, a block in v1
HOPPER_HEAD_DIM = 128  # of v3 at most: more does not fit in shared memory


def v1_plain(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None):
    cu_q, cu_k, seq_len, kv_len = packed or (None, None, q.shape[2], k.shape[2])
    batch = len(cu_q) - 1 if packed else q.shape[0]
    results = gradients_like(q, k, v)
    grad_out, q, k, v, out, *gradients = as_heads(packed, grad_out, q, k, v, out, *results)
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    heads, head_dim, kv_heads = q.shape[1], q.shape[3], k.shape[1]
    kind, mask, mask_strides = mask_operand(mask, q, kv_len)
    all_strides = [strides(tensor) if packed is None else struct.pack("<q", 0) + strides(tensor)[8:] for tensor in (grad_out, q, k, v, out, *gradients)]
    lse_strides = struct.pack("<2q", 0 if packed else heads * seq_len, lse.stride(-2))
    sizes = (heads, heads // kv_heads, seq_len, kv_len, head_dim, *window_sides(causal, window))
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    problem = b"".join((*all_strides, mask_strides, lse_strides, struct.pack("<7if", *sizes, scale)))

    dq, dk, dv = gradients
    template = q.dtype, ceil_div(head_dim, 32), kind
    queries = kernel(FOLDER / "v1_plain.cu", "attention_backward_queries", *template)
    for first, batches in launches(batch):
        args = (*from_batch(first, (grad_out, q, k, v, out, lse, delta, dq, mask), (cu_q, cu_k)), problem)
        queries((ceil_div(seq_len, WARPS), heads, batches), 32 * WARPS, args)
    keys = kernel(FOLDER / "v1_plain.cu", "attention_backward_keys", *template)
    for first, batches in launches(batch):
        args = (*from_batch(first, (grad_out, q, k, v, lse, delta, dk, dv, mask), (cu_q, cu_k)), problem)
        keys((ceil_div(kv_len, WARPS), kv_heads, batches), 32 * WARPS, args)
    return results


def v3_hopper(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None):
    options = {"window": window, "mask": mask, "deterministic": deterministic, "packed": packed}
    return hopper.backward(grad_out, q, k, v, out, lse, causal, scale, **options)


def _rows(grad_out, q, k, v, out, *_, **__) -> str | None:
    if q.shape[-1] > 256:
        return "takes a head_dim of at most 256"
    named = {"grad_out": grad_out, "q": q, "k": k, "v": v, "out": out}
    strided = [name for name, tensor in named.items() if tensor.stride(-1) != 1 and tensor.shape[-1] > 1]
    return f"takes rows whose elements are neighbours in memory, {strided[0]}'s are not" if strided else None


def _hopper(grad_out, q, k, v, out, lse, *_, **__) -> str | None:
    if q.shape[-1] > HOPPER_HEAD_DIM:
        return f"takes a head_dim of at most {HOPPER_HEAD_DIM}"
    # q of the forward kernel's test stands for each tensor of q's size in turn
    refusals = {name: forward_hopper.accepts(tensor, k, v) for name, tensor in (("q", q), ("grad_out", grad_out), ("out", out))}
    return next((refusal.replace("q's", f"{name}'s") for name, refusal in refusals.items() if refusal), None)


PLAIN = "a warp a query, then a warp a key: scores twice, nothing shared, nothing atomic"
HOPPER = "copy engine and wgmma: S and dP transposed, P and dS in registers, sums of dq by the copy engine"

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_plain", v1_plain, PLAIN, FOLDER / "v1_plain.cu", _rows),
        tensor_cores.VARIANT,
        Variant("v3_hopper", v3_hopper, HOPPER, hopper.FILE, _hopper),
        split.VARIANT,
    )
}

VARLEN = {  # the same on packed sequences: `attention_backward_varlen`
    variant.name: Variant(variant.name, varlen(variant.fn), variant.idea, variant.source, variant.accepts) for variant in VARIANTS.values()
}
