"""The engine, v4 and v6: a token is one launch. CUDA graphs of whole decode steps, drawing the token included; then with early launches.

v4 graphs
    Idea      The kernels of a step are the same each time; only what they read has changed, and that lies on the GPU. They are captured once for
              each number of sequences (1, 2, 4 ...) and each reach of the block table, and replayed, several steps in a row: a step notes the token
              it drew and begins the next one with it.
    Predicts  v3's Python, 1 to 2 ms a token, falls away; what is left is the kernels and 1 to 2 us between each two.
    Wastes    Those 1 to 2 us, 84 times a token: memory stands still from the last bytes of one kernel to the first of the next.
v6 early
    Idea      Programmatic dependent launch, in the graph: each kernel begins when the one before has begun, asks for its first weights, which nobody
              writes, and waits for the one before only then. Up to 8 MB are on their way when it may go on.
    Predicts  A third of the gaps' time is left: 0.1 ms a token of Llama-3.2-1B.
    Wastes    Attention of one short sequence: 4 us a layer in which little but the next weights comes; drawing and beginning again, four launches of
              which none begins early.
    Next      The largest logit in the head's epilogue; attention and the projection behind it in one launch; at last one persistent kernel.

A greedy answer in any batch of up to 8: products give the same bits for each row (gemv), attention shares its tokens out in the same way as long as
the longest sequence in the batch stays in the same reach; but prompts are computed packed, by cuBLAS, whose sums depend on how many rows there are.
So on a GPU answers in 16 bits may differ where two tokens are all but equally likely. Bit for bit the same is the CPU's engine (cached.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkernels import functional as lk
from labkernels.kvcache.caches import Step
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.llm.inference.fused import FusedRunner
from labkernels.llm.inference.requests import Request


class GraphRunner(FusedRunner):
    """Captured when first needed: a batch's first step takes some 10 ms longer."""

    name, lookahead = "graphs", 32

    def __init__(self, model, cache, **options):
        super().__init__(model, cache, **options)
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph | None, DecodeState, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None  # shared: one graph runs at a time
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @staticmethod
    def refusal(model, cache) -> str | None:
        if model.embedding.weight.device.type != "cuda":
            return "captures CUDA graphs, and this model lies on the CPU"
        return FusedRunner.refusal(model, cache)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        rows, pages = len(step.sequences), self.cache.pages
        graph, state, logits = self._captured(rows, max(map(pages.length, step.sequences)), draws=False)
        state.fill([(token, pages.length(s) - 1, pages.pages(s)) for token, s in zip(tokens.tolist(), step.sequences)])
        graph.replay()
        return logits[:rows]

    @torch.no_grad()
    def decode_steps(self, requests: Sequence[Request], count: int) -> list[list[int]]:
        """`count` tokens in a row for each of these, whose cache has reserved as many slots."""
        pages = self.cache.pages
        graph, state, _ = self._captured(len(requests), max(pages.length(r.sequence) for r in requests), draws=True)
        state.fill([(r.tokens[-1], pages.length(r.sequence) - count, pages.pages(r.sequence)) for r in requests], requests)
        for _ in range(count):
            graph.replay()
        return state.drawn(len(requests), count)

    def _captured(self, rows: int, longest: int, draws: bool):
        key = 1 << (rows - 1).bit_length(), self._reach(longest), draws
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
        return self._graphs[key]

    def _capture(self, rows: int, reach: int, draws: bool):
        state = self._state(rows, reach)
        state.fill([])  # the other graph of this size may have left its sequences here, whose pages are others' by now

        def step() -> torch.Tensor:
            logits = self._step(state)
            if draws:
                state.tokens.copy_(lk.sample_tokens(logits, **state.settings))
            return logits

        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            step()  # of empty places: kernels are compiled and loaded
            self._stream.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                logits = step()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return graph, state, logits


class EarlyRunner(GraphRunner):
    """v6: the same graphs, of kernels that begin early."""

    name, early = "early", True
