"""How each version of `embedding_backward` is launched, and on what it can run. Each returns a new (vocab, cols) tensor."""

from __future__ import annotations

import torch

from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.embedding.gather import FOLDER
from labkernels.operation import Variant

NO_TOKEN = -1
THREADS, ROWS, SLICES = 256, 32, 2  # of a block of v2: its rows, and 32 vectors of columns so many times
DIGIT_BITS, SORT_THREADS, CHUNK = 9, 512, 2048  # of v3's sort


def v1_sorted(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    out = torch.empty((vocab, grad.shape[1]), dtype=grad.dtype, device=grad.device)
    ordered, order = tokens.sort(stable=True)
    backward = kernel(FOLDER / "v1_backward_sorted.cu", "embedding_backward_sorted", grad.dtype)
    pointers = (grad, ordered, ordered.dtype == torch.int64, order, out)
    backward(ceil_div(out.numel(), THREADS), THREADS, (*pointers, len(order), *out.shape, *grad.stride(), _number(padding_token)))
    return out


def v2_rows(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    return _sum_rows(grad, *tokens.sort(stable=True), vocab, padding_token)


def v3_token_sort(grad: torch.Tensor, tokens: torch.Tensor, vocab: int, padding_token: int | None = None) -> torch.Tensor:
    return _sum_rows(grad, *sorted_tokens(tokens, vocab), vocab, padding_token)


def sorted_tokens(tokens: torch.Tensor, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens in order, those outside the vocabulary as `vocab` at the end, and where each stood: int32, equal ones in their order."""
    n, device = len(tokens), tokens.device
    chunks = ceil_div(n, CHUNK)
    counts = torch.empty((chunks, 1 << DIGIT_BITS), dtype=torch.int32, device=device)
    keys, order = tokens.contiguous(), None
    for shift in range(0, vocab.bit_length(), DIGIT_BITS):
        moved, moved_order = (torch.empty(n, dtype=torch.int32, device=device) for _ in range(2))
        given = (keys, keys.dtype == torch.int64)
        kernel(FOLDER / "v3_token_sort.cu", "count_digits")(chunks, SORT_THREADS, (*given, counts, n, vocab, shift))
        kernel(FOLDER / "v3_token_sort.cu", "scatter_digits")(chunks, SORT_THREADS, (*given, order, counts, moved, moved_order, n, vocab, shift))
        keys, order = moved, moved_order
    return keys, order


def _sum_rows(grad: torch.Tensor, ordered: torch.Tensor, order: torch.Tensor, vocab: int, padding_token: int | None) -> torch.Tensor:
    out = torch.empty((vocab, grad.shape[1]), dtype=grad.dtype, device=grad.device)
    begins = torch.empty(vocab + 1, dtype=torch.int32, device=grad.device)
    find = kernel(FOLDER / "v2_backward_rows.cu", "find_begins")
    find(ceil_div(vocab + 1, THREADS), THREADS, (ordered, ordered.dtype == torch.int64, begins, len(order), vocab))
    width = vector_width(16 // grad.element_size(), grad)
    backward = kernel(FOLDER / "v2_backward_rows.cu", "embedding_backward_rows", grad.dtype, width)
    slices = ceil_div(grad.shape[1], 32 * SLICES * width)
    pointers = (grad, begins, order, order.dtype == torch.int64, out)
    backward(ceil_div(vocab, ROWS) * slices, THREADS, (*pointers, *out.shape, grad.stride(0), _number(padding_token), slices))
    return out


def _number(padding_token: int | None) -> int:
    return NO_TOKEN if padding_token is None else padding_token


def _accepts_rows(grad, tokens, vocab, padding_token=None) -> str | None:
    return None if grad.stride(1) == 1 or grad.shape[1] == 1 else "takes rows whose elements are neighbours in memory"


def _accepts_sort(grad, tokens, vocab, padding_token=None) -> str | None:
    if len(tokens) >= 2**31 or vocab >= 2**31 - 1:
        return "counts tokens in 31 bits"
    return _accepts_rows(grad, tokens, vocab)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_sorted", v1_sorted, "tokens sorted, one thread sums one column of one row", FOLDER / "v1_backward_sorted.cu"),
        Variant(
            "v2_rows",
            v2_rows,
            "16 bytes a lane, all bisections at once, frequent tokens by all warps",
            FOLDER / "v2_backward_rows.cu",
            _accepts_rows,
        ),
        Variant("v3_token_sort", v3_token_sort, "a sort of our own, of as many bits as tokens have", FOLDER / "v3_token_sort.cu", _accepts_sort),
    )
}
