"""The operation `attention_backward_varlen`: the gradients of attention within sequences that lie packed one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.attention import varlen as forward
from labkernels.attention_backward import op, peers
from labkernels.attention_backward.reference import reference as dense_reference
from labkernels.operation import Op, Tolerance, Variant


def problem(
    grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, deterministic=False,
    max_seqlen_q=None, max_seqlen_k=None,
) -> str | None:  # fmt: skip
    """What is wrong with these inputs, or None."""
    wrong = forward.problem(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale, window=window, max_seqlen_q=max_seqlen_q)
    if wrong or (wrong := op.results_problem(grad_out, out, lse, q, (q.shape[1], q.shape[0]))):
        return wrong
    if max_seqlen_k is not None and q.device.type == "cpu" and max_seqlen_k < forward.longest(cu_seqlens_k):
        return f"max_seqlen_k is {max_seqlen_k}, but the longest sequence has {forward.longest(cu_seqlens_k)} keys"
    return None


def _each(backward, grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, **options):
    """The gradients of one sequence after the other, put together."""
    results = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v))
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for first_q, end_q, first_k, end_k in zip(starts_q, starts_q[1:], starts_k, starts_k[1:]):
        if first_q == end_q or first_k == end_k:
            continue
        rows = slice(first_q, end_q), slice(first_q, end_q), slice(first_k, end_k), slice(first_k, end_k), slice(first_q, end_q)
        pieces = [tensor[own].transpose(0, 1)[None] for tensor, own in zip((grad_out, q, k, v, out), rows)]
        found = backward(*pieces, lse[None, :, first_q:end_q], **options)
        for result, gradient, own in zip(results, found, rows[1:4]):
            result[own] = gradient[0].transpose(0, 1)
    return results


def reference(
    grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, deterministic=False,
    max_seqlen_q=None, max_seqlen_k=None,
):  # fmt: skip
    """(dq, dk, dv) of each sequence by itself, in the precision of the inputs."""
    return _each(dense_reference, grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=causal, scale=scale, window=window)


def native(
    grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, deterministic=False,
    max_seqlen_q=None, max_seqlen_k=None,
):  # fmt: skip
    """The gradients of `scaled_dot_product_attention` of each sequence by itself."""
    return _each(peers.native, grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=causal, scale=scale, window=window)


def make_inputs(generator, device, dtype, *, deterministic=None, **shape) -> dict:
    """Sequences as `attention_varlen` makes them, a random grad_out, and the forward pass's out and lse."""
    inputs = forward.make_inputs(generator, device, dtype, **shape)
    grad = torch.randn(inputs["q"].shape, generator=generator, device=generator.device).to(device, dtype)
    exact = {name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value for name, value in inputs.items()}
    out, lse = forward.reference(**exact, return_lse=True)
    tensors = {"grad_out": grad, **{name: inputs.pop(name) for name in ("q", "k", "v")}, "out": out.to(dtype), "lse": lse.float()}
    return tensors | inputs | ({} if deterministic is None else {"deterministic": deterministic})


def trivial(q, k, v, **_):
    """The gradients if there is no query, or no key at all: zeros."""
    if q.numel() and k.shape[0]:
        return None
    return tuple(torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (q, k, v))


def tolerance(dtype, *, deterministic=None, **shape) -> Tolerance:
    return max(op.tolerance(dtype, **one) for one in forward._dense(**shape))


def load_variants() -> Mapping[str, Variant]:
    from labkernels.attention_backward.variants import VARLEN

    return VARLEN


OP = Op(
    name="attention_backward_varlen",
    summary="the gradients of attention within each of several sequences packed one after the other",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("token", "head", "dim"),
    results=op.RESULTS,
    dtypes=op.DTYPES,
    deterministic=False,
    small_shapes=(
        {"lengths": (5, 1, 19), "causal": True},
        {"lengths": ((3, 40), (0, 7), (20, 0)), "heads": 2},
    ),
    check_shapes=(
        {"lengths": (1,)},
        {"lengths": (70, 3, 0, 65), "causal": True, "heads": 2},
        {"lengths": ((3, 70), (0, 20), (40, 0), (66, 33)), "heads": 4, "kv_heads": 2},
        {"lengths": (40, 67), "window": (20, 3), "head_dim": 128},
        {"lengths": ((66, 20), (20, 66)), "causal": True, "window": (9, None), "head_dim": 80, "deterministic": True},
    ),
    large_shapes=({"lengths": (1000, 17, 2048, 1), "heads": 8, "kv_heads": 2, "causal": True, "head_dim": 128},),
    tolerance=tolerance,
    element_times=op.OP.element_times,
    flops=lambda **shape: 2.5 * forward.OP.flops(**shape),
)
