"""`LinearCrossEntropy`: the last layer of a language model and its loss as one layer, without the logits in between."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.functional import linear_cross_entropy


class LinearCrossEntropy(nn.Module):
    """A linear layer without bias to `vocab_size` logits, and their cross-entropy, by `lk.functional.linear_cross_entropy`.

        head = LinearCrossEntropy(2048, 128256, weight=embedding.weight).to("cuda", torch.bfloat16)
        loss = head(x, target)                   # (..., hidden_dim) and (...) -> one number
        logits = head.logits(x[:, -1])           # where they are wanted: for the next token

    `weight` (vocab_size, hidden_dim) is a parameter to share, such as an embedding's; without it the layer has its own, as nn.Linear's. The other
    options are those of `lk.functional.linear_cross_entropy`. Raises ArgumentError that names the argument.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str = "mean",
        chunk_tokens: int | None = None,
        *,
        weight: nn.Parameter | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("hidden_dim", hidden_dim), ("vocab_size", vocab_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"LinearCrossEntropy: {name} is {value!r}; it must be an int of at least 1")
        if weight is not None and weight.shape != (vocab_size, hidden_dim):
            raise ArgumentError(f"LinearCrossEntropy: weight has shape {tuple(weight.shape)}; it must be ({vocab_size}, {hidden_dim})")
        self.options = {
            "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss, "reduction": reduction, "chunk_tokens": chunk_tokens,
        }  # fmt: skip
        self.weight = nn.Linear(hidden_dim, vocab_size, bias=False, device=device, dtype=dtype).weight if weight is None else weight

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of x (..., hidden_dim) and target (...), float32."""
        return linear_cross_entropy(x, self.weight, target, **self.options)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden_dim) -> (..., vocab_size)."""
        return nn.functional.linear(x, self.weight)

    def extra_repr(self) -> str:
        vocab_size, hidden_dim = self.weight.shape
        return ", ".join([f"hidden_dim={hidden_dim}, vocab_size={vocab_size}", *(f"{name}={value}" for name, value in self.options.items() if value)])
