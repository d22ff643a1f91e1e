"""Word embedding: rows of a table by number, and the table's gradient."""

import torch


def embedding(tokens: torch.Tensor, weight: torch.Tensor, padding_token: int | None = None) -> torch.Tensor:
    """weight[tokens], by the fastest variant that accepts the inputs.

    tokens (...) int32 or int64, weight (vocab, cols) float32, bfloat16 or float16. Returns (..., cols), zeros for a token outside the table.
    Differentiable in weight: each row's gradient is summed in float32 in the order of the tokens, so that the same inputs give the same bits;
    places of `padding_token` add nothing to it. Under torch.compile it is `torch.ops.labkernels.embedding`. Raises ArgumentError.
    """
    from labkernels.elementwise import _through_torch
    from labkernels.embedding.embedding_op import OP

    if _through_torch(weight):
        return torch.ops.labkernels.embedding(tokens, weight, padding_token)
    return OP.run(tokens=tokens, weight=weight)


def embedding_backward(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    """The gradient of an embedding's table, (vocab, cols): row t is the sum of grad's rows where token t stands, in float32, in order.

    grad (n, cols) float32, bfloat16 or float16, tokens (n,) int32 or int64; tokens outside the vocabulary and `padding_token` are left out.
    The same inputs give the same bits. Raises ArgumentError that names the wrong input.
    """
    from labkernels.embedding.embedding_backward_op import OP

    return OP.run(grad=grad, tokens=tokens, vocab=vocab, padding_token=padding_token)
