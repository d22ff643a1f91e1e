"""RMSNorm and LayerNorm, their gradients, the norm of a residual sum, and norms written as 8-bit numbers."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, by the fastest variant that accepts the inputs.

    x (..., cols) float32, bfloat16 or float16; weight (cols,) of x's dtype or float32, or None for ones. Returns a new contiguous tensor of x's
    shape and dtype; everything between is float32, rounded once. Differentiable: by torch.autograd, and under torch.compile the operator
    `torch.ops.labkernels.rms_norm`. Raises ArgumentError that names the wrong input.
    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """
    from labkernels.norm.rms_norm_op import OP

    if _through_torch(x, weight):
        return torch.ops.labkernels.rms_norm(x, weight, eps)
    return OP.run(x=_rows(x), weight=weight, eps=eps).view(x.shape)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, by the fastest variant that accepts the inputs.

    weight and bias (cols,), both of x's dtype or both float32, or None; the rest is as for `rms_norm`.
    Source: Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.
    """
    from labkernels.norm.layer_norm_op import OP

    if _through_torch(x, weight, bias):
        return torch.ops.labkernels.layer_norm(x, weight, bias, eps)
    return OP.run(x=_rows(x), weight=weight, bias=bias, eps=eps).view(x.shape)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, sum): sum = x + residual (+ bias), rounded to x's dtype, and y = rms_norm(sum, weight, eps), in one pass.

    x and residual (..., cols) of one shape and dtype; bias (cols,) of x's dtype, as of the linear layer that made x. Both results are new and
    contiguous; the rest is as for `rms_norm`.
    """
    from labkernels.norm.add_rms_norm_op import OP

    if _through_torch(x, residual, weight, bias):
        return torch.ops.labkernels.add_rms_norm(x, residual, weight, bias, eps)
    y, total = OP.run(x=_rows(x), residual=_rows(residual), weight=weight, bias=bias, eps=eps)
    return y.view(x.shape), total.view(x.shape)


def rms_norm_quantized(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float8_e4m3fn,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """(values, scale): rms_norm(x, weight, eps) as 8-bit numbers, values * scale; with a residual (values, scale, sum), as `add_rms_norm`.

    values (..., cols) are of `dtype`, float8_e4m3fn or int8; scale (..., 1) float32, one a row: the row's largest |y| over 448 or 127, and 0 for a
    row of zeros. This is what `scaled_matmul` takes as a and scale_a. Forward only; the rest is as for `rms_norm`.
    """
    from labkernels.norm.rms_norm_quantized_op import OP

    if torch.compiler.is_compiling():
        import labkernels.torch_extension.norm  # noqa: F401  defines the operators

        ops, rest = torch.ops.labkernels, (weight, eps, dtype)
        return ops.rms_norm_quantized(x, *rest) if residual is None else ops.add_rms_norm_quantized(x, residual, bias, *rest)
    rows = {"x": _rows(x), "weight": weight, "eps": eps, "dtype": dtype}
    rows |= {} if residual is None else {"residual": _rows(residual)}
    values, scale, *total = OP.run(**rows, bias=bias)
    return values.view(x.shape), scale.view(*x.shape[:-1], 1), *(one.view(x.shape) for one in total)


def rms_norm_backward(
    grad_out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-5, grad_sum: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dweight) of `rms_norm`, from the gradient of its result, by the fastest variant that accepts the inputs.

    grad_out, x and grad_sum (..., cols) of one shape and dtype. grad_sum, if given, is added to dx: after `add_rms_norm` it is the gradient of
    the sum, x is the sum, and dx is the gradient of both x and residual. dweight (cols,) is of weight's dtype; without a weight it is the
    gradient of ones of x's dtype. The same inputs give the same bits each time.
    """
    from labkernels.norm.rms_norm_backward_op import OP

    options = {} if grad_sum is None else {"grad_sum": _rows(grad_sum)}
    dx, dweight = OP.run(grad_out=_rows(grad_out), x=_rows(x), weight=weight, eps=eps, **options)
    return dx.view(x.shape), dweight


def layer_norm_backward(
    grad_out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of `layer_norm`; as `rms_norm_backward`, and dbias is of dweight's dtype."""
    from labkernels.norm.layer_norm_backward_op import OP

    dx, dweight, dbias = OP.run(grad_out=_rows(grad_out), x=_rows(x), weight=weight, eps=eps)
    return dx.view(x.shape), dweight, dbias


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as (rows, cols), a view where that can be; what has no rows stays as it is, to be refused."""
    return x if x.dim() in (0, 2) else x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(x.shape[:-1].numel(), 0)


def _through_torch(*tensors: torch.Tensor | None) -> bool:
    """Is there a gradient to record, or a graph?"""
    import labkernels.torch_extension.norm  # noqa: F401  defines the operators

    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:  # torch.vmap
        return True
    return torch.is_grad_enabled() and any(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in tensors)
