"""The engine, v4 and v6: a token is one launch. CUDA graphs of whole decode steps, drawing the token included; then with early launches.

v4 graphs
    Idea      The kernels of a step are the same each time; only what they read has changed, and that lies on the GPU. They are captured once for
              each number of sequences (1, 2, 4 ...) and each reach of the block table, and replayed, several steps in a row: a step notes the token
              it drew and begins the next one with it. A greedy one is found by the head itself (decode/head.cu). Passes over prompts are captured,
              too, in buffers of a few sizes (prompt_state.py): 64 tokens take 2 ms for Python's 16.
    Predicts  v3's Python, 1 to 2 ms a token, falls away; what is left is the kernels and 1 to 2 us between each two.
    Measured  data/measured/h200/engine.csv: 1140 tokens/s of Llama-3.2-1B for v3's 108.
    Wastes    Those 1 to 2 us, 82 times a token: memory stands still from the last bytes of one kernel to the first of the next.
v6 early
    Idea      Programmatic dependent launch, in the graph: each kernel begins when the one before has begun, asks for its first weights, which nobody
              writes, lets the next one do the same, and waits for the one before only then. What fits on an SM is on its way when it may go on.
    Predicts  A third of the gaps' time is left: 0.1 ms a token of Llama-3.2-1B.
    Measured  1473 tokens/s, 79% of the limit, and 1.7 times torch.compile's 861; int4 with a head of int8 2320, 40%.
    Wastes    From the last block's end to the wait's in the next kernel are 1.4 us, as a trace has them, 82 times a token: a quarter of it with int4.
    Next      Attention and the projection behind it in one launch; blocks that tell each other by counters that they are done; at last one
              persistent kernel.

A greedy answer in any batch of up to 8: products give the same bits for each row (gemv), attention shares its tokens out in the same way as long as
the longest sequence in the batch stays in the same reach; but prompts are computed packed, by cuBLAS, whose sums depend on how many rows there are.
So on a GPU answers in 16 bits may differ where two tokens are all but equally likely. Bit for bit the same is the CPU's engine (cached.py).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from labkernels import functional as lk
from labkernels.kvcache.caches import Step
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.llm.inference.fused import FusedRunner
from labkernels.llm.inference.prompt_state import PromptSize, PromptState
from labkernels.llm.inference.requests import Request


STEPS = 4  # in a graph, where as many are wanted: from one graph to the next a GPU stands still for 5 us


class GraphRunner(FusedRunner):
    """Captured when first needed: a batch's first step takes some 10 ms longer."""

    name, lookahead = "graphs", 32

    def __init__(self, model, cache, **options):
        super().__init__(model, cache, **options)
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, DecodeState | PromptState, torch.Tensor]] = {}
        self._seen: set[PromptSize] = set()
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None  # shared: one graph runs at a time
        self._stream = _stream_for(self) if self.device.type == "cuda" else None

    @staticmethod
    def refusal(model, cache) -> str | None:
        if model.embedding.weight.device.type != "cuda":
            return "captures CUDA graphs, and this model lies on the CPU"
        return FusedRunner.refusal(model, cache)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        rows, pages = len(step.sequences), self.cache.pages
        graph, state, logits = self._captured(rows, max(map(pages.length, step.sequences)), None)
        state.fill([(token, pages.length(s) - 1, pages.pages(s)) for token, s in zip(tokens.tolist(), step.sequences)])
        graph.replay()
        return logits[:rows]

    @torch.no_grad()
    def decode_steps(self, requests: Sequence[Request], counts: Sequence[int]) -> Iterator[list[list[int]]]:
        """So many tokens in a row for each of these, whose cache has reserved as many slots: all are under way before the first are read. They come
        in portions of a graph each, a list for each request, so that the CPU looks at one while the GPU draws the next."""
        pages, rows, count = self.cache.pages, len(requests), max(counts)
        greedy = all(request.params.greedy for request in requests) and self._bests(_places(rows)) is not None
        longest, runs = max(pages.length(r.sequence) for r in requests), [STEPS] * (count // STEPS) + [1] * (count % STEPS)
        draws = "likeliest" if greedy else "sampled"
        captured = {steps: self._captured(rows, longest, draws, steps) for steps in (STEPS, 1)}  # both now: else an answer waits 15 ms in its middle
        state = captured[STEPS][1]
        state.fill([(r.tokens[-1], pages.length(r.sequence) - own, pages.pages(r.sequence)) for r, own in zip(requests, counts)], requests, counts)
        done = 0
        for steps in runs:
            captured[steps][0].replay()
            done += steps
            if done == count:
                self._begin(state, self._bests(state.rows) if greedy else None)  # which notes the last tokens
            state.read(done if done == count else done - 1)
        yield from state.portions()

    @torch.no_grad()
    def prefill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        size = PromptSize.holding(len(tokens), len(step.sequences), self._reach(self._longest(step)), self._is_fresh(step))
        if size is None or size not in self._seen:  # one launch after the other is faster than to capture a size that never comes again
            self._seen.add(size)
            return super().prefill(tokens, step, ends)
        if size not in self._graphs:
            state = PromptState(size, self.cache.pages.page_size, self.device)
            graph, logits = self._capture(lambda: self._prompts(state.tokens, state, state.ends, size.reach, size.fresh))
            self._graphs[size] = graph, state, logits
        graph, state, logits = self._graphs[size]
        state.fill(tokens, step, ends)
        graph.replay()
        return logits[: len(ends)]

    def _captured(self, rows: int, longest: int, draws: str | None, steps: int = 1):
        key = _places(rows), self._reach(longest), draws, steps
        if key not in self._graphs:
            self._graphs[key] = self._capture_step(*key)
        return self._graphs[key]

    def _capture_step(self, rows: int, reach: int, draws: str | None, steps: int):
        """draws: None, and there are logits; "sampled", by the requests' settings; "likeliest", and there are candidates for it. `steps` in a row."""
        bests = self._bests(rows) if draws == "likeliest" else None
        state = self._state(rows, reach)
        state.fill([])  # the other graph of this size may have left its sequences here, whose pages are others' by now

        def step() -> torch.Tensor | None:
            for _ in range(steps):
                logits = self._step(state, bests)
                if draws == "sampled":
                    state.tokens.copy_(lk.sample_tokens(logits, **state.settings))
            return logits

        graph, logits = self._capture(step)
        return graph, state, logits

    def _capture(self, step: Callable[[], torch.Tensor | None]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor | None]:
        """A graph of `step`, and its result; step runs once before, of empty places: so kernels are compiled and loaded."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            step()
            self._stream.synchronize()
            with _nothing_collected(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                logits = step()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return graph, logits


_free_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


def _stream_for(runner: GraphRunner) -> torch.cuda.Stream:
    """One on which nobody else captures, free again when the runner is gone: PyTorch keeps 32 MiB for cuBLAS for each stream that there ever was."""
    free = _free_streams.setdefault(runner.device, [])
    stream = free.pop() if free else torch.cuda.Stream(runner.device)
    weakref.finalize(runner, free.append, stream).atexit = False
    return stream


def _places(rows: int) -> int:
    """Of a step's buffers."""
    return 1 << (rows - 1).bit_length()


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """No garbage is collected inside: an older engine's graphs may be among it, and to free a graph ends a capture on the same thread."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class EarlyRunner(GraphRunner):
    """v6: the same graphs, of kernels that begin early."""

    name, early = "early", True
