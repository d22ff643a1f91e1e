"""The small operations as torch operators, with fake kernels and gradients. Their kernels are launched from Python.

    labkernels::rope(q, k, angles, positions, interleaved, inverse) -> (q_out, k_out)                 as labkernels.rope.rope
    labkernels::qkv_rope_cache(qkv, k_cache!, v_cache!, angles, positions, slots, bias, interleaved, k_scale!, v_scale!) -> q     forward only
    labkernels::swiglu(gate, up) -> Tensor                              as labkernels.elementwise.swiglu; up None: gate holds both
    labkernels::swiglu_backward(grad, gate, up) -> (grad_gate, grad_up), and swiglu_packed_backward(grad, gate) -> grad_gate
    labkernels::residual_add(x, residual, bias) -> Tensor
    labkernels::embedding(tokens, weight, padding_token) -> Tensor
    labkernels::embedding_backward(grad, tokens, vocab, padding_token) -> Tensor
    labkernels::unpad(x, indices) -> Tensor, labkernels::pad(packed, inverse) -> Tensor
    labkernels::attention_mask(lengths, seq_len, kv_len, causal, window_left, window_right, dtype, hidden) -> Tensor    forward only
    labkernels::masked_softmax(x, mask, scale, causal) -> Tensor

Any strides will do: what the kernels cannot read in place is copied first.
"""

from __future__ import annotations

import torch

from labkernels.elementwise.residual_add_op import OP as RESIDUAL_ADD
from labkernels.elementwise.swiglu_backward_op import OP as SWIGLU_BACKWARD
from labkernels.elementwise.swiglu_op import OP as SWIGLU
from labkernels.elementwise.swiglu_op import halves
from labkernels.embedding.embedding_backward_op import OP as EMBEDDING_BACKWARD
from labkernels.embedding.embedding_op import OP as EMBEDDING
from labkernels.errors import ArgumentError
from labkernels.masks.attention_mask_op import OP as ATTENTION_MASK
from labkernels.masks.masked_softmax_op import OP as MASKED_SOFTMAX
from labkernels.operation import Op
from labkernels.padding.pad_op import OP as PAD
from labkernels.padding.unpad_op import OP as UNPAD
from labkernels.rope.qkv_rope_cache_op import OP as QKV_ROPE_CACHE
from labkernels.rope.rope_op import OP as ROPE
from labkernels.torch_extension.operators import LIBRARY, define

_TURN = "Tensor angles, Tensor? positions=None, bool interleaved=False, bool inverse=False"
_TOKENS = "Tensor angles, Tensor positions, Tensor slots, Tensor? bias=None, bool interleaved=False"
_SCALES = "Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None"
_MASK = "bool causal=False, int? window_left=None, int? window_right=None, ScalarType dtype=bool, float? hidden=None"
SCHEMAS = {
    "rope": f"(Tensor q, Tensor k, {_TURN}) -> (Tensor, Tensor)",
    "qkv_rope_cache": f"(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, {_TOKENS}, {_SCALES}) -> Tensor",
    "swiglu": "(Tensor gate, Tensor? up=None) -> Tensor",
    "swiglu_backward": "(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    "swiglu_packed_backward": "(Tensor grad, Tensor gate) -> Tensor",
    "residual_add": "(Tensor x, Tensor residual, Tensor? bias=None) -> Tensor",
    "embedding": "(Tensor tokens, Tensor weight, int? padding_token=None) -> Tensor",
    "embedding_backward": "(Tensor grad, Tensor tokens, SymInt vocab, int? padding_token=None) -> Tensor",
    "unpad": "(Tensor x, Tensor indices) -> Tensor",
    "pad": "(Tensor packed, Tensor inverse) -> Tensor",
    "attention_mask": f"(Tensor lengths, SymInt seq_len, SymInt kv_len, {_MASK}) -> Tensor",
    "masked_softmax": "(Tensor x, Tensor? mask=None, float scale=1.0, bool causal=False) -> Tensor",
}


def rope(q, k, angles, positions=None, interleaved=False, inverse=False):
    return ROPE.run(q=_dense(q), k=_dense(k), angles=angles, positions=positions, interleaved=interleaved, inverse=inverse)


def rope_fake(q, k, angles, positions=None, interleaved=False, inverse=False):
    _check(ROPE, q=q, k=k, angles=angles, positions=positions)
    return torch.empty_like(_dense(q)), torch.empty_like(_dense(k))


def qkv_rope_cache(qkv, k_cache, v_cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    given = {"angles": angles, "positions": positions, "slots": slots, "bias": bias, "interleaved": interleaved}
    return QKV_ROPE_CACHE.run(qkv=_dense(qkv), cache=(k_cache, v_cache), **given, k_scale=k_scale, v_scale=v_scale)[0][0]


def qkv_rope_cache_fake(qkv, k_cache, v_cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    given = {"angles": angles, "positions": positions, "slots": slots, "bias": bias, "k_scale": k_scale, "v_scale": v_scale}
    _check(QKV_ROPE_CACHE, qkv=qkv, cache=(k_cache, v_cache), **given)
    head_dim = k_cache.shape[3]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // head_dim - 2 * k_cache.shape[1], head_dim)


def swiglu(gate, up=None):
    return SWIGLU.run(gate=gate, up=up)


def swiglu_fake(gate, up=None):
    _check(SWIGLU, gate=gate, up=up)
    return gate.new_empty(halves(gate, up)[0].shape)


def swiglu_backward(grad, gate, up):
    return SWIGLU_BACKWARD.run(grad=_dense(grad), gate=gate, up=up)


def swiglu_backward_fake(grad, gate, up):
    _check(SWIGLU_BACKWARD, grad=grad, gate=gate, up=up)
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def swiglu_packed_backward(grad, gate):
    """The gradient of both, whole: what the launchers return are its two halves."""
    if gate.numel() == 0:
        return gate.new_empty(gate.shape)
    first, _ = SWIGLU_BACKWARD.run(grad=_dense(grad), gate=gate)
    return first.as_strided(gate.shape, first.stride())


def swiglu_packed_backward_fake(grad, gate):
    _check(SWIGLU_BACKWARD, grad=grad, gate=gate)
    return gate.new_empty(gate.shape)


def residual_add(x, residual, bias=None):
    return RESIDUAL_ADD.run(x=x, residual=residual, bias=bias)


def residual_add_fake(x, residual, bias=None):
    _check(RESIDUAL_ADD, x=x, residual=residual, bias=bias)
    return x.new_empty(x.shape)


def embedding(tokens, weight, padding_token=None):
    return EMBEDDING.run(tokens=tokens, weight=_dense(weight))


def embedding_fake(tokens, weight, padding_token=None):
    _check(EMBEDDING, tokens=tokens, weight=weight)
    return weight.new_empty((*tokens.shape, weight.shape[1]))


def embedding_backward(grad, tokens, vocab, padding_token=None):
    return EMBEDDING_BACKWARD.run(grad=_dense(grad), tokens=tokens, vocab=vocab, padding_token=padding_token)


def embedding_backward_fake(grad, tokens, vocab, padding_token=None):
    return grad.new_empty((vocab, grad.shape[1]))


def unpad(x, indices):
    return UNPAD.run(x=x.contiguous(), indices=indices)


def unpad_fake(x, indices):
    _check(UNPAD, x=x, indices=indices)
    return x.new_empty((indices.shape[0], x.shape[2]))


def pad(packed, inverse):
    return PAD.run(packed=_dense(packed), inverse=inverse)


def pad_fake(packed, inverse):
    _check(PAD, packed=packed, inverse=inverse)
    return packed.new_empty((*inverse.shape, packed.shape[1]))


def attention_mask(lengths, seq_len, kv_len, causal=False, window_left=None, window_right=None, dtype=torch.bool, hidden=None):
    window = None if window_left is None and window_right is None else (window_left, window_right)
    hidden = -torch.inf if hidden is None else hidden
    return ATTENTION_MASK.run(lengths=lengths, seq_len=seq_len, kv_len=kv_len, causal=causal, window=window, dtype=dtype, hidden=hidden)


def attention_mask_fake(lengths, seq_len, kv_len, causal=False, window_left=None, window_right=None, dtype=torch.bool, hidden=None):
    return lengths.new_empty((lengths.shape[0], 1, seq_len, kv_len), dtype=dtype)


def masked_softmax(x, mask=None, scale=1.0, causal=False):
    return MASKED_SOFTMAX.run(x=_dense(x), mask=mask, scale=scale, causal=causal)


def masked_softmax_fake(x, mask=None, scale=1.0, causal=False):
    _check(MASKED_SOFTMAX, x=x, mask=mask)
    return x.new_empty(x.shape)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, the last axis dense in memory."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _check(op: Op, **inputs) -> None:
    problem = op.problem(**inputs)
    if problem is not None:
        raise ArgumentError(f"{op.name}: {problem}")


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])

ops = torch.ops.labkernels


def _rope_saves(ctx, inputs, output) -> None:
    _, _, angles, positions, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(angles, positions)


def _rope_gradient(ctx, grad_q, grad_k):
    """A rotation's transpose is its inverse."""
    return *ops.rope(grad_q, grad_k, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse), None, None, None, None


def _swiglu_saves(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx, grad):
    gate, up = ctx.saved_tensors
    return (ops.swiglu_packed_backward(grad, gate), None) if up is None else ops.swiglu_backward(grad, gate, up)


def _residual_add_saves(ctx, inputs, output) -> None:
    ctx.has_bias = inputs[2] is not None


def _residual_add_gradient(ctx, grad):
    return grad, grad, grad.sum(list(range(grad.dim() - 1))) if ctx.has_bias else None


def _embedding_saves(ctx, inputs, output) -> None:
    tokens, weight, ctx.padding_token = inputs
    ctx.save_for_backward(tokens)
    ctx.vocab = weight.shape[0]


def _embedding_gradient(ctx, grad):
    (tokens,) = ctx.saved_tensors
    grad = grad.reshape(-1, grad.shape[-1])
    return None, ops.embedding_backward(grad, tokens.reshape(-1), ctx.vocab, ctx.padding_token), None


def _unpad_saves(ctx, inputs, output) -> None:
    x, indices = inputs
    ctx.save_for_backward(indices)
    ctx.sizes = x.shape[:2]


def _unpad_gradient(ctx, grad):
    """Padding put back: where each position's token lies follows from the indices."""
    (indices,) = ctx.saved_tensors
    batch, seq_len = ctx.sizes
    inverse = torch.full((batch * seq_len,), -1, dtype=torch.int32, device=indices.device)
    inverse = inverse.scatter(0, indices.long(), torch.arange(indices.shape[0], dtype=torch.int32, device=indices.device))
    return ops.pad(grad, inverse.view(batch, seq_len)), None


def _pad_saves(ctx, inputs, output) -> None:
    packed, inverse = inputs
    ctx.save_for_backward(inverse)
    ctx.total = packed.shape[0]


def _pad_gradient(ctx, grad):
    """Padding taken out: every token's position follows from the inverse; what stands for padding goes to a place beyond them."""
    (inverse,) = ctx.saved_tensors
    flat = inverse.reshape(-1).long()
    indices = torch.zeros(ctx.total + 1, dtype=torch.int32, device=flat.device)
    positions = torch.arange(flat.shape[0], dtype=torch.int32, device=flat.device)
    indices = indices.scatter(0, torch.where(flat < 0, ctx.total, flat), positions)
    return ops.unpad(grad, indices[:-1]), None


def _masked_softmax_saves(ctx, inputs, output) -> None:
    x, mask, ctx.scale, _ = inputs
    if mask is not None and mask.requires_grad:
        raise ArgumentError("masked_softmax: mask requires a gradient, and gets none here; pass a detached mask")
    ctx.save_for_backward(output)


def _masked_softmax_gradient(ctx, grad):
    (y,) = ctx.saved_tensors
    return torch.ops.aten._softmax_backward_data(grad, y, -1, y.dtype) * ctx.scale, None, None, None


for _name, _gradient, _saves in (
    ("rope", _rope_gradient, _rope_saves),
    ("swiglu", _swiglu_gradient, _swiglu_saves),
    ("residual_add", _residual_add_gradient, _residual_add_saves),
    ("embedding", _embedding_gradient, _embedding_saves),
    ("unpad", _unpad_gradient, _unpad_saves),
    ("pad", _pad_gradient, _pad_saves),
    ("masked_softmax", _masked_softmax_gradient, _masked_softmax_saves),
):
    torch.library.register_autograd(f"labkernels::{_name}", _gradient, setup_context=_saves, lib=LIBRARY)
