"""From the stacked projection to the joined heads, RoPE and causal attention between, as one torch operator.

    labkernels::rope_attention(qkv, angles, positions, cu_seqlens, heads, kv_heads, cudnn=False) -> (out, q, k, lse)
    labkernels::rope_attention_backward(grad_out, qkv, q, k, out, lse, ...the same) -> grad_qkv

qkv (batch, seq, (heads + 2 kv_heads) head_dim), out (batch, seq, heads head_dim), q and k turned, (batch, seq, heads, head_dim).

Notable: what lies between the two products is never moved for its own sake. Queries, keys and values are views of the projection, the result lies as the
next product reads it, and on the way back the turned gradients are written where the projection's gradient has them, which no compiler can do for
kernels that it does not see into. In 16 bits whole batches go by the kernels for packed sequences, too, for those read and write tokens first; on Hopper
their backward pass ends in one kernel (rope_backward.cu). With `cudnn` their forward pass is cuDNN's, which reads and writes the same places.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from labkernels.attention import attention, attention_varlen
from labkernels.attention_backward import attention_backward, attention_backward_varlen
from labkernels.attention_backward.hopper import backward as hopper_backward, block_q
from labkernels.attention_backward.variants import VARIANTS as BACKWARD_VARIANTS
from labkernels.cuda.lasting import capturing, lasting
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.rope.launch import block_of, head_strides, heads_each, pairs_of, position_layout
from labkernels.rope.rope_op import OP as ROPE
from labkernels.rope.rope_variants import VARIANTS as ROPE_VARIANTS
from labkernels.torch_extension.operators import LIBRARY, define

FILE = Path(__file__).with_name("rope_backward.cu")
V3_BACKWARD = BACKWARD_VARIANTS["v3_hopper"]
_SIZES = "Tensor angles, Tensor? positions, Tensor? cu_seqlens, int heads, int kv_heads, bool cudnn=False"
SCHEMAS = {
    "rope_attention": f"(Tensor qkv, {_SIZES}) -> (Tensor out, Tensor q, Tensor k, Tensor lse)",
    "rope_attention_backward": f"(Tensor grad_out, Tensor qkv, Tensor q, Tensor k, Tensor out, Tensor lse, {_SIZES}) -> Tensor",
}


def parts(qkv: torch.Tensor, heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
    """q, k and v, (batch, seq, heads, head_dim): views."""
    return qkv.unflatten(-1, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads], dim=2)


def packs(qkv: torch.Tensor, cu_seqlens: torch.Tensor | None) -> bool:
    """Do the kernels for packed sequences take it? In float32 those for whole batches are faster."""
    return cu_seqlens is not None or qkv.dtype != torch.float32


def ends_of(qkv: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    return _equal_ends(*qkv.shape[:2], qkv.device) if cu_seqlens is None else cu_seqlens


_ends: dict[tuple, torch.Tensor] = {}  # kept for good: a CUDA graph may have been given it


def _equal_ends(batch: int, seq: int, device: torch.device) -> torch.Tensor:
    """The same for all layers and steps; nobody writes to it. While a graph is captured a new one is the graph's own: others would find it empty."""
    make = functools.partial(torch.arange, 0, batch * seq + 1, seq, dtype=torch.int32, device=device)
    key = batch, seq, device
    if key not in _ends:
        if device.type == "cuda" and capturing(device):
            return make()
        _ends[key] = lasting(make, device)
    return _ends[key]


def forward(qkv, angles, positions, cu_seqlens, heads, kv_heads, cudnn=False):
    qkv = qkv.contiguous()
    q, k, v = parts(qkv, heads, kv_heads)
    q, k = (turned.transpose(1, 2) for turned in ROPE.run(q=q.transpose(1, 2), k=k.transpose(1, 2), angles=angles, positions=positions))
    out, lse = attend(q, k, v, cu_seqlens, cudnn)
    return out, q, k, lse


def attend(q, k, v, cu_seqlens, cudnn: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k and v (batch, seq, heads, head_dim), of which q and k are turned: the joined heads (batch, seq, heads head_dim), and log-sum-exps."""
    batch, seq, heads, _ = q.shape
    if not packs(q, cu_seqlens):
        out, lse = attention(*(each.transpose(1, 2) for each in (q, k, v)), causal=True, return_lse=True)
        return out.transpose(1, 2).reshape(batch, seq, -1), lse
    if cudnn and cu_seqlens is None and cudnn_takes(q):
        out, lse = by_cudnn(q, k, v)
        return out.reshape(batch, seq, -1), lse
    ends = ends_of(q, cu_seqlens)
    flat = (each.flatten(0, 1) for each in (q, k, v))  # (tokens, heads, head_dim)
    out, lse = attention_varlen(*flat, ends, ends, True, return_lse=True, max_seqlen_q=seq)
    return out.reshape(batch, seq, -1), lse


def cudnn_takes(q: torch.Tensor) -> bool:
    """Measured on Hopper alone; elsewhere ours are taken, and so they are where the same bits are asked for each time."""
    there = q.is_cuda and torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(q.device) == (9, 0)
    return there and not torch.are_deterministic_algorithms_enabled() and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def by_cudnn(q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, seq, heads, head_dim), causal, by cuDNN; log-sum-exps (heads, tokens)."""
    views = (each.transpose(1, 2) for each in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(*views, None, True, 0.0, True, False)[:2]
    return out.transpose(1, 2), lse.view(lse.shape[:3]).transpose(0, 1).reshape(q.shape[2], -1)


def forward_fake(qkv, angles, positions, cu_seqlens, heads, kv_heads, cudnn=False):
    batch, seq, _ = qkv.shape
    head_dim = qkv.shape[2] // (heads + 2 * kv_heads)
    rows = (heads, batch * seq) if packs(qkv, cu_seqlens) else (batch, heads, seq)
    q, k = qkv.new_empty(batch, seq, heads, head_dim), qkv.new_empty(batch, seq, kv_heads, head_dim)
    return qkv.new_empty(batch, seq, heads * head_dim), q, k, qkv.new_empty(rows, dtype=torch.float32)


def backward(grad_out, qkv, q, k, out, lse, angles, positions, cu_seqlens, heads, kv_heads, cudnn=False):
    v = parts(qkv.contiguous(), heads, kv_heads)[2]
    return gradient_of_projection(grad_out, q, k, v, out, lse, angles, positions, cu_seqlens)


def gradient_of_projection(grad_out, q, k, v, out, lse, angles, positions, cu_seqlens) -> torch.Tensor:
    """The gradient of the stacked projection, (batch, seq, qkv_dim), from that of the joined heads. q and k are turned, all (batch, seq, heads, head_dim)."""
    batch, seq, heads, head_dim = q.shape
    tensors = [grad_out.contiguous().view(q.shape), q, k, v, out.view(q.shape)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    if cu_seqlens is None and joins(tensors, lse, angles):
        return joined_gradient(*tensors, lse, angles, positions, deterministic)
    if packs(q, cu_seqlens):
        ends, longest = ends_of(q, cu_seqlens), {"max_seqlen_q": seq, "max_seqlen_k": seq}
        flat = (each.flatten(0, 1) for each in tensors)
        found = attention_backward_varlen(*flat, lse, ends, ends, True, deterministic=deterministic, **longest)
        dq, dk, dv = (each.unflatten(0, (batch, seq)) for each in found)
    else:
        found = attention_backward(*(each.transpose(1, 2) for each in tensors), lse, causal=True, deterministic=deterministic)
        dq, dk, dv = (each.transpose(1, 2) for each in found)
    grad = q.new_empty(batch, seq, (heads + 2 * k.shape[2]) * head_dim)
    grad_q, grad_k, grad_v = parts(grad, heads, k.shape[2])
    turn(dq, dk, grad_q, grad_k, angles, positions, back=True)
    copy_heads(dv, grad_v)
    return grad


def joins(tensors: list[torch.Tensor], lse: torch.Tensor, angles: torch.Tensor) -> bool:
    """Can the backward pass end with rope_backward.cu?"""
    q, head_dim = tensors[1], tensors[1].shape[3]
    heads_first = [each.transpose(1, 2) for each in tensors]
    ours = packs(q, None) and head_dim in (64, 128) and angles.dim() == 2 and angles.shape[1] == head_dim
    places = q.shape[0] * (q.shape[2] + tensors[2].shape[2]) <= 65535  # of its grid's y
    return ours and places and V3_BACKWARD.accepts(*heads_first, lse) is None


def joined_gradient(grad_out, q, k, v, out, lse, angles, positions, deterministic) -> torch.Tensor:
    """gradient_of_projection in 16 bits, of whole batches, on Hopper: dk and dv are written where they belong, and dq and dk turned there in one walk."""
    batch, seq, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    grad = q.new_empty(batch, seq, (heads + 2 * kv_heads) * head_dim)
    angles, places = angles.contiguous(), position_layout(positions)

    def turn_sums(sums: torch.Tensor, scale: float) -> None:
        rows = block_q(head_dim)
        args = (sums, grad, angles, positions, places, len(angles), heads, kv_heads, seq, scale)
        kernel(FILE, "rope_backward", q.dtype, head_dim, rows)((ceil_div(seq, rows), batch * (heads + kv_heads)), 256, args)

    lse = lse.unflatten(1, (batch, seq)).transpose(0, 1)  # (batch, heads, seq)
    heads_first = (each.transpose(1, 2) for each in (grad_out, q, k, v, out))
    into = [each.transpose(1, 2) for each in parts(grad, heads, kv_heads)[1:]]
    hopper_backward(*heads_first, lse, True, deterministic=deterministic, into=into, finish=turn_sums)
    return grad


def copy_heads(source: torch.Tensor, target: torch.Tensor) -> None:
    """target.copy_(source), where a head is dense: in words of 8 bytes, which PyTorch's copy of strided tensors does not do of itself."""
    if source.dtype.itemsize * source.shape[-1] % 8 == 0:
        source, target = source.view(torch.int64), target.view(torch.int64)
    target.copy_(source)


def backward_fake(grad_out, qkv, *_):
    return qkv.new_empty(qkv.shape)


def turn(q, k, q_out, k_out, angles, positions, back: bool = False) -> None:
    """q and k (batch, seq, heads, head_dim), turned by their angles, or by minus these, into q_out and k_out, which may be the same: rope's v2_vectors, with
    somewhere to write to."""
    q, k, q_out, k_out = (each.transpose(1, 2) for each in (q, k, q_out, k_out))
    vectors = ROPE_VARIANTS["v2_vectors"]
    if any(vectors.accepts(*pair, angles) for pair in ((q, k), (q_out, k_out))):
        for target, turned in zip((q_out, k_out), ROPE.run(q=q, k=k, angles=angles, positions=positions, inverse=back)):
            target.copy_(turned)
        return
    batch, heads, seq, head_dim = q.shape
    (pairs, rows), width, all_heads = pairs_of(angles), 16 // q.element_size(), heads + k.shape[1]
    threads = pairs // width
    each = heads_each(batch * seq * all_heads * threads, q)
    block, slices = block_of(threads, all_heads, each)
    sizes = (batch, seq, heads, k.shape[1], pairs, head_dim, rows, -1.0 if back else 1.0)
    args = (q, k, q_out, k_out, angles.contiguous(), positions, *sizes, *map(head_strides, (q, k, q_out, k_out)), position_layout(positions))
    rope = kernel(vectors.source, "rope_vectors", q.dtype, width, each, "false")
    rope((ceil_div(batch * seq, block[2]), slices), block, args)


def _save(ctx, inputs, output) -> None:
    qkv, angles, positions, cu_seqlens, *ctx.sizes = inputs
    out, q, k, lse = output
    ctx.mark_non_differentiable(q, k, lse)
    ctx.save_for_backward(qkv, q, k, out, lse, angles, positions, cu_seqlens)


def _gradient(ctx, grad, *_):
    return torch.ops.labkernels.rope_attention_backward(grad, *ctx.saved_tensors, *ctx.sizes), *[None] * 6


define("rope_attention", SCHEMAS["rope_attention"], forward, forward_fake)
define("rope_attention_backward", SCHEMAS["rope_attention_backward"], backward, backward_fake)
torch.library.register_autograd("labkernels::rope_attention", _gradient, setup_context=_save, lib=LIBRARY)
