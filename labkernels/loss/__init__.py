"""Cross-entropy, and the linear layer before it, without ever holding all logits."""

import torch


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of logits (rows, vocab) and target (rows,), as torch.nn.functional.cross_entropy, by the fastest variant.

    logits float32, bfloat16 or float16; target int64. A row whose target is `ignore_index` counts for nothing. `label_smoothing` s makes
    the target 1 - s at the target and s / vocab everywhere; `z_loss` adds itself times the square of log(sum(exp(logits))) to each row's loss
    (PaLM, arXiv 2204.02311). `reduction` is "mean" over the rows that count, "sum", or "none" for (rows,). Returns float32.

    The gradient is made along with the loss where one is wanted, by one more write, and needs no logits later. On a GPU a target that is no
    token makes its loss NaN. Raises ArgumentError that names the wrong input. It is the operator `torch.ops.labkernels.cross_entropy`.
    """
    import labkernels.torch_extension.loss as operators

    return operators.call_cross_entropy(logits, target, ignore_index, label_smoothing, z_loss, reduction)


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """cross_entropy(x @ weight.t(), target, ...) that never holds more logits than those of `chunk_tokens` tokens.

    x (..., hidden) and weight (vocab, hidden) of one dtype, float32, bfloat16 or float16; target of x's shape without the last axis, int64.
    Options and the result are those of `cross_entropy`. Logits are of the dtype of x, as those of a linear layer are.

    With "mean" and "sum" the gradients of x and weight are worked out together with the loss, chunk by chunk, and the backward pass only
    multiplies them by that of the loss (Liger-Kernel, arXiv 2410.10989). They can be asked for once. With "none" the backward pass computes
    the logits again. `chunk_tokens` not given makes the logits half of the weight's size, or those of 2048 tokens if they take at most 256 MB; fewer
    take less memory and more time, as dweight is read and written for each chunk. 0 takes the least: chunks lie in a part of dweight, whose logits are
    computed once more at the end, and beside the gradients there is but a sixteenth of the weight's size, or 256 logits a token.

    On Hopper, for bfloat16 without label_smoothing and z_loss, from 4096 tokens, a hidden size of 2048 and a vocabulary of 62500 on, no logit is
    ever written: their exponentials come out of the matmul, unrounded ones are summed up, and the gradients are a third as far from those of float32
    logits. Chunks borrow from dweight then, too, and beside the gradients there is a tenth of the weight's size and 7 MB, or half of that for 0.
    Raises ArgumentError that names the wrong input. It is the operator `torch.ops.labkernels.linear_cross_entropy`.
    """
    import labkernels.torch_extension.loss as operators

    return operators.call_linear_cross_entropy(x, weight, target, ignore_index, label_smoothing, z_loss, reduction, chunk_tokens)
