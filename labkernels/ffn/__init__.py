"""The feed-forward network of a transformer: two products with GELU between them, or three with SwiGLU."""

import torch


def ffn(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    b1: torch.Tensor | None = None,
    b2: torch.Tensor | None = None,
    activation: str = "gelu",
) -> torch.Tensor:
    """act(x w1^T + b1) w2^T + b2, by the fastest variant that accepts the inputs.

    x (..., embed), w1 (ffn, embed), w2 (embed, ffn), as nn.Linear keeps weights; b1 (ffn,), b2 (embed,); all float32, bfloat16 or float16, on one
    device, with a dense last axis; sums are kept in float32. `activation` is "gelu" (by erf, PyTorch's default), "gelu_tanh", or "swiglu":
    silu(gate) * up, for which w1 (2 ffn, embed) and b1 (2 ffn,) hold the rows of all gates and then those of all ups, as
    `torch.cat([gate_proj.weight, up_proj.weight])` has them (Shazeer 2020, https://arxiv.org/abs/2002.05202). Returns a new contiguous tensor of
    the shape and dtype of x, under autocast of autocast's dtype. All tensors get gradients. Where one is wanted, and under torch.compile, this is
    the operator `torch.ops.labkernels.ffn`. Raises ArgumentError that names the wrong input.
    """
    from labkernels.errors import ArgumentError
    from labkernels.ffn.op import OP

    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w1, w2, b1, b2 = (None if tensor is None else tensor.to(dtype) for tensor in (x, w1, w2, b1, b2))
    tensors = [tensor for tensor in (x, w1, w2, b1, b2) if tensor is not None]
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if x.dim() == 0:
        raise ArgumentError("ffn: x has shape (); it must have two axes or more, (..., embed)")
    tokens = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if save or torch.compiler.is_compiling():
        import labkernels.torch_extension.ffn  # noqa: F401  defines the operator

        y, _ = torch.ops.labkernels.ffn(tokens, w1, w2, b1, b2, activation, save)
    else:
        y = OP.run(x=tokens, w1=w1, w2=w2, b1=b1, b2=b2, activation=activation)
    return y if x.dim() == 2 else y.view(x.shape)


def ffn_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    pre: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: str = "gelu",
    bias: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dw1, dw2, db1, db2) of `ffn`, from the gradient of its result, by the fastest variant that accepts the inputs.

    grad_out and x (tokens, embed), pre = x w1^T + b1 (tokens, rows of w1), w1, w2 and `activation` as in `ffn`. The activation is worked out again
    from `pre`. Each gradient has the shape and dtype of what it is the gradient of; db1 and db2 have no elements unless `bias`. The same inputs
    give the same bits each time. Raises ArgumentError that names the wrong input.
    """
    from labkernels.ffn.ffn_backward_op import OP

    return OP.run(grad_out=grad_out, x=x, pre=pre, w1=w1, w2=w2, activation=activation, bias=bias)


def ffn_fp8(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    scale_1: torch.Tensor,
    scale_2: torch.Tensor,
    b1: torch.Tensor | None = None,
    b2: torch.Tensor | None = None,
    activation: str = "gelu",
) -> torch.Tensor:
    """act(x (scale_1 w1)^T + b1) (scale_2 w2)^T + b2, where w1 and w2 are float8_e4m3fn, as `labkernels.ffn.fp8.fp8_rows` makes them.

    x (..., embed), b1 and b2 are bfloat16; scale_1 (rows of w1,) and scale_2 (embed,) float32; for the rest as in `ffn`. Tokens and the rows of h
    are rounded to float8 with a scale each: the result errs by some 4% of its size. embed and ffn are multiples of 16. Raises ArgumentError that
    names the wrong input. Forward only.
    """
    from labkernels.errors import ArgumentError
    from labkernels.ffn.ffn_fp8_op import OP

    if x.dim() == 0:
        raise ArgumentError("ffn_fp8: x has shape (); it must have two axes or more, (..., embed)")
    tokens = x.reshape(-1, x.shape[-1])
    y = OP.run(x=tokens, w1=w1, w2=w2, scale_1=scale_1, scale_2=scale_2, b1=b1, b2=b2, activation=activation)
    return y.view(x.shape)
