"""The operation `embedding_backward`: the gradient of the table, row t the sum of the gradients of all places where token t stands.

grad (n, cols) of the table's dtype, tokens (n,); returns (vocab, cols). The same inputs give the same bits each time: a token's rows are
added in the order of their places, or in shares of it whose number depends on nothing but how many there are, in float32. Places of the
token `padding_token` are left out, and so are tokens outside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.embedding.embedding_op import DTYPES, distinct, some_tokens, tokens_problem
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name


def reference(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    kept = grad if padding_token is None else grad * (tokens != padding_token)[:, None]
    return grad.new_zeros((vocab, grad.shape[1])).index_add_(0, tokens.long(), kept)


def native(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    return torch.ops.aten.embedding_dense_backward(grad, tokens, vocab, -1 if padding_token is None else padding_token, False)


def problem(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> str | None:
    if grad.dim() != 2 or tokens.dim() != 1 or grad.shape[0] != tokens.shape[0]:
        return f"grad has shape {tuple(grad.shape)}, tokens has {tuple(tokens.shape)}; they must be (n, cols) and (n,)"
    if grad.dtype not in DTYPES:
        return f"grad is {dtype_name(grad.dtype)}; it must be float32, bfloat16 or float16"
    if not isinstance(vocab, int) or vocab < 1:
        return f"vocab is {vocab!r}; it must be an int of at least 1"
    return tokens_problem(tokens, grad.device)


def make_inputs(
    generator, device, dtype, *, n: int, vocab: int, cols: int, text: str = "uniform", padding_token: int | None = None, layout: str = "contiguous"
) -> dict:
    """A normally distributed gradient; layout `apart` has rows with a gap behind them and int32 tokens, `transposed` is a view of (cols, n)."""
    stored = {"contiguous": (n, cols), "apart": (n, 2 * cols), "transposed": (cols, n)}[layout]
    grad = torch.randn(stored, generator=generator, device=generator.device).to(device, dtype)
    grad = grad.t() if layout == "transposed" else grad[:, :cols]
    tokens = some_tokens(generator, device, n, vocab, text, torch.int32 if layout == "apart" else torch.int64)
    return {"grad": grad, "tokens": tokens, "vocab": vocab, "padding_token": padding_token}


def tolerance(dtype: torch.dtype, *, n: int, vocab: int, text: str = "uniform", **_) -> Tolerance:
    """A sum of `longest` normally distributed numbers."""
    longest = n if text != "uniform" else min(n, 8 + 4 * n / vocab)
    return Tolerance(relative=2e-6, absolute=2e-7 * longest)


def bytes_moved(dtype: torch.dtype, *, n: int, vocab: int, cols: int, **_) -> int:
    """Each gradient read once, the table's gradient written once."""
    return (n + vocab) * cols * dtype.itemsize + 8 * n


def _hints(failure) -> str | None:
    given = failure.inputs
    grad, tokens = given["grad"].double(), given["tokens"].long()
    last = grad.new_zeros((given["vocab"], grad.shape[1])).index_copy_(0, tokens, grad) if not tokens.is_cuda else failure.want
    mistakes = [("the gradient of each token's last place only: places must be added, not written over", last)]
    if given["padding_token"] is not None:
        mistakes.append(("what comes out when the padding token's places are not left out", reference(grad, tokens, given["vocab"])))
    return failure.matching(mistakes)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.embedding.embedding_backward_variants import VARIANTS

    return VARIANTS


def _trivial(grad, tokens, vocab, padding_token=None):
    return grad.new_zeros((vocab, grad.shape[1])) if grad.numel() == 0 else None


OP = Op(
    name="embedding_backward",
    summary="the gradient of a table of embeddings: for each token, the sum over its places",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("token", "col"),
    dtypes=DTYPES,
    small_shapes=({"n": 1, "vocab": 1, "cols": 1}, {"n": 70, "vocab": 5, "cols": 33}, {"n": 70, "vocab": 2, "cols": 8, "text": "one"}),
    check_shapes=(
        {"n": 1, "vocab": 3, "cols": 1},
        {"n": 33, "vocab": 10, "cols": 3, "padding_token": 4},
        {"n": 100, "vocab": 70, "cols": 64, "text": "frequent"},
        {"n": 300, "vocab": 33, "cols": 24, "text": "one", "layout": "apart"},
        {"n": 40, "vocab": 5, "cols": 33, "layout": "transposed"},
        {"n": 20, "vocab": 3, "cols": 600},
    ),
    large_shapes=({"n": 5000, "vocab": 32_000, "cols": 1024}, {"n": 9001, "vocab": 1000, "cols": 129, "text": "frequent"}),
    tolerance=tolerance,
    hints=_hints,
    complete_shape=lambda dtype, *, n=16_384, vocab=128_256, cols=2048, text="uniform": {"n": n, "vocab": vocab, "cols": cols, "text": text},
    sweep={"dtype": ["bfloat16"], "n": [4096, 16_384]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "n": [4096, 16_384]},
        {"dtype": ["bfloat16"], "text": ["frequent"], "n": [16_384]},
    ),
    flops=lambda *, n, cols, **_: n * cols,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native)},
)
