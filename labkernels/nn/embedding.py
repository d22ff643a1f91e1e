"""`Embedding`: a table of word vectors whose gradient is the same bits each time."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.functional import embedding


class Embedding(nn.Module):
    """Rows of a table by number: `torch.nn.Embedding` on `lk.functional.embedding`, with its parameter's name, shape and initialisation.

        words = Embedding(128_256, 2048, device="cuda", dtype=torch.bfloat16)
        x = words(tokens)                                   # (...) int32 or int64 -> (..., embed_dim)

    Places of `padding_token` add nothing to the gradient, and its row begins as zeros. Tokens outside the table give zeros. ArgumentError.

    Parameter, by its name in state_dict():  weight (num_embeddings, embed_dim)
    """

    def __init__(
        self,
        num_embeddings: int,
        embed_dim: int,
        padding_token: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("num_embeddings", num_embeddings), ("embed_dim", embed_dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"Embedding: {name} is {value!r}; it must be an int of at least 1")
        if padding_token is not None and not 0 <= padding_token < num_embeddings:
            raise ArgumentError(f"Embedding: padding_token is {padding_token}; it must be None or 0 to {num_embeddings - 1}")
        self.num_embeddings, self.embed_dim, self.padding_token = num_embeddings, embed_dim, padding_token
        self.weight = nn.Parameter(torch.empty(num_embeddings, embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.padding_token is not None:
            with torch.no_grad():
                self.weight[self.padding_token].zero_()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (...) int32 or int64 to (..., embed_dim)."""
        return embedding(tokens, self.weight, self.padding_token)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embed_dim}" + (f", padding_token={self.padding_token}" if self.padding_token is not None else "")
