"""Operations that touch each element once: the SwiGLU activation and its gradients, residual addition."""

import torch


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up with silu(x) = x / (1 + exp(-x)), by the fastest variant that accepts the inputs.

    gate and up (..., cols) of one shape and dtype, float32, bfloat16 or float16, any strides; or gate alone, (..., 2 cols), which holds both,
    gate first: what one matmul with both weights stacked gives. Returns a new contiguous tensor (..., cols); everything between is float32,
    rounded once. Differentiable; under torch.compile it is `torch.ops.labkernels.swiglu`. Raises ArgumentError that names the wrong input.
    Source: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
    """
    from labkernels.elementwise.swiglu_op import OP

    if _through_torch(gate, up):
        return torch.ops.labkernels.swiglu(gate, up)
    return OP.run(gate=gate, up=up)


def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(grad_gate, grad_up) from the gradient of `swiglu`'s result, each of that one's shape.

    Inputs as for `swiglu`. Where gate holds both, the two results are halves of one new tensor of its shape. Raises ArgumentError.
    """
    from labkernels.elementwise.swiglu_backward_op import OP

    return OP.run(grad=grad, gate=gate, up=up)


def residual_add(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x + residual (+ bias), by the fastest variant that accepts the inputs.

    x and residual (..., cols) of one shape, bias (cols,); all of one dtype, float32, bfloat16 or float16. Returns a new contiguous tensor;
    sums are float32, rounded once. Differentiable; under torch.compile it is `torch.ops.labkernels.residual_add`. Raises ArgumentError.
    """
    from labkernels.elementwise.residual_add_op import OP

    if _through_torch(x, residual, bias):
        return torch.ops.labkernels.residual_add(x, residual, bias)
    return OP.run(x=x, residual=residual, bias=bias)


def _through_torch(*tensors: torch.Tensor | None) -> bool:
    """Must the torch operator be called: is it being compiled, or is a gradient wanted?"""
    import labkernels.torch_extension  # noqa: F401  defines the operators

    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:  # torch.vmap
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors if isinstance(tensor, torch.Tensor))
