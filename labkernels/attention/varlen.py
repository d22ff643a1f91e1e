"""The operation `attention_varlen`: attention within sequences that lie packed one after the other. What it is and on what it is judged.

q is (total_q, heads, head_dim), k and v are (total_k, kv_heads, head_dim); cu_seqlens_q and cu_seqlens_k (int32, batch + 1 long) say where
each sequence begins and ends. A batch of prompts of different lengths is computed without padding: no query, no key and no byte too many.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.attention import op, peers
from labkernels.attention.reference import reference as dense_reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name


def problem(
    q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, return_lse=False, max_seqlen_q=None
) -> str | None:  # fmt: skip
    """What is wrong with these inputs, or None. Looks into cu_seqlens only where that does not make a GPU wait: on the CPU."""
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        if tensor.dim() != 3:
            return f"{name} has shape {tuple(tensor.shape)}; it must have three axes, (tokens, heads, head_dim)"
    if wrong := op.together(tensors, {"head_dim": 2}):
        return wrong
    if k.shape != v.shape:
        return f"k has shape {tuple(k.shape)}, v has {tuple(v.shape)}; both must be equal"
    if wrong := op.heads_problem(q.shape[1], k.shape[1]) or op.window_problem(window):
        return wrong
    for name, ends, of, tokens in (("cu_seqlens_q", cu_seqlens_q, "q", q.shape[0]), ("cu_seqlens_k", cu_seqlens_k, "k", k.shape[0])):
        if ends.dtype != torch.int32 or ends.dim() != 1 or ends.shape[0] < 1 or not ends.is_contiguous():
            return f"{name} is {dtype_name(ends.dtype)} of shape {tuple(ends.shape)}; it must be int32 of shape (batch + 1,), contiguous"
        if ends.device != q.device:
            return f"{name} is on {ends.device}, q is on {q.device}; both must be on one device"
        if ends.device.type == "cpu" and (int(ends[0]) != 0 or int(ends[-1]) != tokens or (ends.diff() < 0).any()):
            return f"{name} is {ends.tolist()}; it must rise from 0 to {tokens}, the tokens of {of}"
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        return f"cu_seqlens_q has {cu_seqlens_q.shape[0]} elements, cu_seqlens_k has {cu_seqlens_k.shape[0]}; both must be equal"
    if max_seqlen_q is not None and q.device.type == "cpu" and max_seqlen_q < longest(cu_seqlens_q):
        return f"max_seqlen_q is {max_seqlen_q}, but the longest sequence has {longest(cu_seqlens_q)} queries"
    return None


def longest(cu_seqlens: torch.Tensor) -> int:
    """The length of the longest sequence. For a tensor on a GPU this waits for the GPU."""
    return int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0


def sequences(q, k, v, cu_seqlens_q, cu_seqlens_k):
    """q, k and v of one sequence after the other, each as (1, heads, seq_len, head_dim)."""
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for first_q, end_q, first_k, end_k in zip(starts_q, starts_q[1:], starts_k, starts_k[1:]):
        pieces = q[first_q:end_q], k[first_k:end_k], v[first_k:end_k]
        yield tuple(piece.transpose(0, 1)[None] for piece in pieces)


def _each(attention, q, k, v, cu_seqlens_q, cu_seqlens_k, **options) -> torch.Tensor:
    results = [attention(*one, **options)[0].transpose(0, 1) for one in sequences(q, k, v, cu_seqlens_q, cu_seqlens_k)]
    return torch.cat([q.new_zeros(0, *q.shape[1:]), *results])


def reference(
    q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, return_lse=False, max_seqlen_q=None
):  # fmt: skip
    """Attention of each sequence by itself, in the precision of the inputs. Arguments as in `labkernels.attention.attention_varlen`."""
    packed, options = (q, k, v, cu_seqlens_q, cu_seqlens_k), {"causal": causal, "scale": scale, "window": window}
    out = _each(dense_reference, *packed, **options)
    if not return_lse:
        return out
    lse = [dense_reference(*one, **options, return_lse=True)[1][0] for one in sequences(*packed)]
    return out, torch.cat([q.new_zeros(q.shape[1], 0), *lse], dim=1)


def native(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, max_seqlen_q=None) -> torch.Tensor:
    """`scaled_dot_product_attention` of each sequence by itself."""
    return _each(peers.native, q, k, v, cu_seqlens_q, cu_seqlens_k, causal=causal, scale=scale, window=window)


def trivial(q, k, v, cu_seqlens_q, cu_seqlens_k, return_lse=False, **_):
    """The result if there is no query, or no key at all: zeros."""
    if q.numel() and k.shape[0]:
        return None
    out = q.new_zeros(q.shape)
    return (out, q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32)) if return_lse else out


def make_inputs(generator, device, dtype, *, lengths, heads=1, kv_heads=1, head_dim=64, causal=False, window=None, **options) -> dict:
    """Sequences of `lengths`: pairs of (seq_len, kv_len), or one number where both are the same."""
    both = [length if isinstance(length, tuple) else (length, length) for length in lengths]
    ends_q, ends_k = (torch.tensor([0, *column], dtype=torch.int32).cumsum(0, dtype=torch.int32) for column in zip(*both))

    def tensor(tokens, heads):
        return torch.randn(tokens, heads, head_dim, generator=generator, device=generator.device).to(device, dtype)

    q, k, v = tensor(int(ends_q[-1]), heads), tensor(int(ends_k[-1]), kv_heads), tensor(int(ends_k[-1]), kv_heads)
    options |= {} if window is None else {"window": window}
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": ends_q.to(device), "cu_seqlens_k": ends_k.to(device), "causal": causal, **options}


def _dense(*, lengths, heads=1, kv_heads=1, head_dim=64, causal=False, window=None, **_):
    """The shape of each sequence, as the operation `attention` describes it."""
    for length in lengths:
        seq_len, kv_len = length if isinstance(length, tuple) else (length, length)
        sizes = {"heads": heads, "kv_heads": kv_heads, "kv_len": kv_len, "head_dim": head_dim}
        yield op.shape(seq_len, **sizes, causal=causal, window=window)


def tolerance(dtype, **shape) -> Tolerance:
    return max(op.tolerance(dtype, **one) for one in _dense(**shape))


def load_variants() -> Mapping[str, Variant]:
    from labkernels.attention.variants import VARLEN

    return VARLEN


OP = Op(
    name="attention_varlen",
    summary="attention within each of several sequences packed one after the other",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("token", "head", "dim"),
    dtypes=op.DTYPES,
    small_shapes=(
        {"lengths": (5, 1, 19), "causal": True},
        {"lengths": ((3, 40), (0, 7), (20, 0)), "heads": 2},
    ),
    check_shapes=(
        {"lengths": (1,)},
        {"lengths": (33, 1, 70)},
        {"lengths": (70, 3, 0, 65), "causal": True, "heads": 2},
        {"lengths": ((3, 70), (0, 20), (40, 0), (66, 33)), "heads": 4, "kv_heads": 2},
        {"lengths": ((1, 131), (1, 5), (1, 64)), "heads": 6, "kv_heads": 1, "causal": True},
        {"lengths": (40, 67), "window": (20, 3), "head_dim": 128},
        {"lengths": ((66, 20), (20, 66)), "causal": True, "window": (9, None), "head_dim": 80},
    ),
    large_shapes=(
        {"lengths": (1000, 17, 2048, 1), "heads": 8, "kv_heads": 2, "causal": True, "head_dim": 128},
        {"lengths": ((1, 3000), (500, 1500), (130, 130)), "heads": 4, "causal": True},
    ),
    tolerance=tolerance,
    flops=lambda **shape: sum(op.OP.flops(**one) for one in _dense(**shape)),
    bytes_moved=lambda dtype, **shape: sum(op.bytes_moved(dtype, **one) for one in _dense(**shape)),
)
