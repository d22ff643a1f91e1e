"""What a decode step needs to know, on the device: of each sequence its last token, its length, its pages, and how to draw its next token.

Notable: one copy fills all of it (packed.py); from then on a step updates it itself (decode/begin.cu), so that a CUDA graph of it may be
replayed without the CPU. Rows of length 0 are empty places: their keys and values go nowhere. A row becomes one when its last token is drawn, so
that sequences may end at different steps of a row of replays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from labkernels.llm.inference.packed import Packed
from labkernels.llm.inference.requests import Request

COLUMNS = {  # one number a row
    "tokens": torch.int64, "draws": torch.int64, "seeds": torch.int64, "temperature": torch.float32, "top_p": torch.float32,
    "min_p": torch.float32, "top_k": torch.int32, "lengths": torch.int32, "step": torch.int32, "last": torch.int32,
}  # fmt: skip


class DecodeState:
    """For at most `rows` sequences of `width` pages each, and `steps` steps in a row."""

    def __init__(self, rows: int, width: int, steps: int, page_size: int, head_dim: int, device: torch.device):
        self.rows, self.width, self.steps, self.page_size, self.head_dim = rows, width, steps, page_size, head_dim
        self._packed = Packed({name: (dtype, (rows,)) for name, dtype in COLUMNS.items()} | {"block_table": (torch.int32, (rows, width))}, device)
        for name, tensor in self._packed.tensors.items():
            setattr(self, name, tensor)
        self.slots = torch.zeros(rows, dtype=torch.int64, device=device)
        self.spots = torch.zeros(rows, 2, dtype=torch.int32, device=device)
        self.history = torch.zeros(steps + 1, rows, dtype=torch.int64, device=device)
        self.turns = torch.zeros(rows, head_dim, dtype=torch.float32, device=device)
        self._drawn = torch.zeros(steps + 1, rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._known: list[Sequence[int]] = [()] * rows  # the pages of each row, as they stand in the table
        self._counts: Sequence[int] = ()
        self._reads: list[tuple[int, torch.cuda.Event | None]] = []  # how many tokens each brought in all, and when they are there

    def fill(self, rows: Sequence[tuple[int, int, Sequence[int]]], requests: Sequence[Request] = (), counts: Sequence[int] = ()) -> None:
        """rows: of each sequence its last token, how many tokens the cache holds before it, its pages. `requests`: how to draw; `counts`: how many
        tokens of each. Without them a step gives logits, and nothing is drawn."""
        self._counts = counts
        self._reads.clear()
        host = self._packed.arrays()
        for name in COLUMNS:
            host[name].fill(0)
        host["last"][: len(rows)] = counts or 1
        for row, (token, length, pages) in enumerate(rows):
            host["tokens"][row], host["lengths"][row] = token, length
            self._write_pages(host["block_table"], row, pages)
        for row, request in enumerate(requests):
            p = request.params
            host["draws"][row], host["seeds"][row] = len(request.tokens) - 1, request.seed % 2**63
            host["temperature"][row], host["top_p"][row], host["min_p"][row], host["top_k"][row] = p.temperature, p.top_p, p.min_p, p.top_k
        self._packed.send()

    def _write_pages(self, table: np.ndarray, row: int, pages: Sequence[int]) -> None:
        """Those that are new: a sequence keeps its pages from one row of steps to the next, and NumPy takes long for many."""
        known, self._known[row] = self._known[row], tuple(pages)
        same = len(known) if pages[: len(known)] == known else 0
        table[row, same : len(pages)] = pages[same:]

    def read(self, count: int) -> None:
        """Have the tokens brought that the steps up to now drew, `count` since `fill`, beside those that were brought before. Nobody waits."""
        first = 1 + (self._reads[-1][0] if self._reads else 0)  # row 0 of the history is what was there before
        self._drawn[first : count + 1].copy_(self.history[first : count + 1], non_blocking=True)
        arrived = None
        if self.history.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.history.device))
        self._reads.append((count, arrived))

    def portions(self) -> Iterator[list[list[int]]]:
        """What each `read` brings of each sequence, as soon as it is there: nothing of those that have got all of their tokens."""
        before = 0
        for count, arrived in self._reads:
            if arrived is not None:
                arrived.synchronize()
            drawn = self._drawn[before + 1 : count + 1, : len(self._counts)].t().tolist()
            yield [tokens[: max(0, last - before)] for tokens, last in zip(drawn, self._counts)]
            before = count

    def begin(self, embedding: torch.Tensor, hidden: torch.Tensor, angles: torch.Tensor, bests: torch.Tensor | None = None) -> tuple:
        """The arguments of begin.cu, which is launched with `rows` blocks. bests: candidates (rows, n, 2) of the head, where it draws."""
        candidates = 0 if bests is None else bests.shape[1]
        places = (self.slots, self.spots, self.history, self.step, self.last, self.lengths, self.block_table, self.turns)
        row_bytes = embedding.shape[1] * embedding.element_size()
        pieces = row_bytes // 16 if row_bytes % 16 == 0 and embedding.data_ptr() % 16 == 0 else 0
        sizes = (self.width, self.page_size, self.head_dim, pieces, *reversed(embedding.shape), len(angles))
        return self.tokens, bests, candidates, self.draws, *places, embedding, hidden, angles, *sizes

    @property
    def settings(self) -> dict[str, torch.Tensor]:
        """As sample_tokens takes them."""
        return {
            "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, "seed": self.seeds, "position": self.draws,
        }  # fmt: skip
