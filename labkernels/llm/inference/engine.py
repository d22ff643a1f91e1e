"""`Engine`: prompts in, answers out, many at a time.

Notable:
- one loop: `step()` computes chunks of prompts, then a token of every running answer (passes.py), and returns what is new; `generate` is
  that loop for a list
- who runs is the scheduler's business (scheduler.py), how a pass is computed the runner's (runner.py, the ladder), what may be shown the request's
- a greedy answer is the same alone and in any batch: on the CPU bit for bit (cached.py); on a GPU as far as graphs.py says
- whatever fails in a pass ends the requests in it, gives all pages back and is raised: the engine itself goes on. One whose logits hold NaN ends alone

    engine = lk.llm.Engine.from_pretrained(folder, quantize="int4")
    engine.generate(["Once upon a time", "1 + 1 ="], max_new_tokens=64, temperature=0.8, top_p=0.95, seed=1)
    for event in engine.generate("Once", stream=True): print(event.text, end="", flush=True)

A server calls `submit`, `step` and `cancel`; all may be called from several threads, `step` from one at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.options import affordable_pages, are_tokens, cache_dtype_of, check_counts, known_settings
from labkernels.llm.inference.passes import Passes
from labkernels.llm.inference.requests import Completion, Event, NoDistribution, Request, SamplingParams
from labkernels.llm.inference.runner import make_runner
from labkernels.llm.inference.scheduler import Scheduler


@dataclass(frozen=True)
class Stats:
    """What an engine has done, and how full it is."""

    waiting: int
    running: int
    free_pages: int
    num_pages: int
    prompt_tokens: int  # of all requests so far
    computed_prompt_tokens: int  # with those computed again, without those found in the cache
    shared_tokens: int
    generated_tokens: int
    preemptions: int
    passes: int


class Engine(Passes):
    """Text from a `Transformer`. Raises ArgumentError that names the argument.

    runner         "auto", or a rung of the ladder: "naive", "cached", "fused", "graphs", "early"
    max_batch      requests that run at a time; the others wait
    max_seq_len    tokens of prompt and answer together; the model's, unless given
    cache_tokens   room of the cache, in tokens of all requests; unless given, as much as max_batch requests of max_seq_len need or the memory allows
    cache_dtype    None, the model's own; "int8" or "fp8": keys and values in 8 bits, with a scale for each token and head
    page_size      tokens of a page; a multiple of 16 for the kernels
    chunk_tokens   of prompts in one pass: small ones keep answers flowing while a long prompt is read
    lookahead      tokens in a row that a GPU draws before the CPU looks at them; more are drawn than needed where a stop comes early
    memory         share of the GPU's free memory that the cache may take
    """

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        runner: str = "auto",
        max_batch: int = 8,
        max_seq_len: int | None = None,
        cache_tokens: int | None = None,
        cache_dtype: str | torch.dtype | None = None,
        page_size: int | None = None,
        chunk_tokens: int = 4096,
        share_prefixes: bool = True,
        lookahead: int = 8,
        memory: float = 0.9,
        **options,
    ):
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, model.config
        self.device, self.dtype = model.embedding.weight.device, model.embedding.weight.dtype
        self.max_seq_len = self.config.max_seq_len if max_seq_len is None else max_seq_len
        page_size = (64 if self.device.type == "cuda" else 16) if page_size is None else page_size
        counts = {"max_batch": max_batch, "chunk_tokens": chunk_tokens, "page_size": page_size, "lookahead": lookahead}
        check_counts(counts if cache_tokens is None else counts | {"cache_tokens": cache_tokens})
        if not 2 <= self.max_seq_len <= self.config.max_seq_len:
            raise ArgumentError(f"Engine: max_seq_len is {max_seq_len}; it must be from 2 to the model's {self.config.max_seq_len}")
        if not 0 < memory <= 1:
            raise ArgumentError(f"Engine: memory is {memory}; it must be above 0, and at most 1")
        cache_dtype = cache_dtype_of(cache_dtype, self.dtype)
        wanted = max_batch * -(-self.max_seq_len // page_size)  # pages
        pages = -(-cache_tokens // page_size) if cache_tokens else min(wanted, affordable_pages(self.config, self.device, page_size, cache_dtype, memory))
        self.cache = EngineCache(
            self.config.num_layers, pages, self.config.num_kv_heads, page_size, self.config.head_dim, cache_dtype, self.device, share_prefixes
        )
        self.runner = make_runner(runner, model, self.cache, max_batch=max_batch, max_seq_len=self.max_seq_len, **options)
        self.scheduler = Scheduler(self.cache, max_batch, chunk_tokens, self.max_seq_len)
        self.lookahead = min(lookahead, self.runner.lookahead)
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(("prompt_tokens", "computed_prompt_tokens", "generated_tokens", "passes"), 0)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id,
        quantize: str | None = None,
        *,
        group_size: int | None = None,
        head: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ) -> Engine:
        """The engine of a Hugging Face Llama folder, or of a hub's model, or of a folder that `save_quantized` wrote.

        quantize: None, "int8", "fp8", "int4", "nf4": layer by layer on the way to the device, which never holds more than one layer in full.
        head: the same for the head, which otherwise stays as it is. device: the GPU if there is one. dtype: of activations and of what is not
        quantised; the file's, but bfloat16 on a GPU where the file has float32. options: those of Engine. Raises ArgumentError, PretrainedError.
        """
        from labkernels.llm.quantisation.quantized import load_model
        from labkernels.llm.data.tokenizer import Tokenizer

        model, folder = load_model(folder_or_hub_id, quantize, group_size=group_size, head=head, device=device, dtype=dtype)
        tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
        return cls(model, tokenizer, **options)

    # For a program: prompts to answers

    def generate(
        self, prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], max_new_tokens: int = 128, *, stream: bool = False, **settings
    ) -> Completion | list[Completion] | Iterator[Event]:
        """The answers to one prompt, or to a list of them; with `stream` their tokens as events, as they come.

        A prompt is text or its tokens; a tensor holds one prompt, or a row for each. settings: those of SamplingParams: temperature (0: greedy),
        top_k, top_p, min_p, repetition_penalty, seed, stop, ignore_eos, logprobs. Of several prompts, number i has seed + i. One prompt gives one
        Completion, a list a list. Where the model's logits hold NaN, one prompt raises NoDistribution; of a list, those whose logits do have the
        finish_reason "error", and `error` says why.
        """
        prompts = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
        if not hasattr(prompts, "__len__"):
            raise ArgumentError(f"generate: prompts is {prompts!r}; it must be text, tokens, or a list of either")
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral))
        params = SamplingParams(max_new_tokens=max_new_tokens, **known_settings(settings))
        requests: list[Request] = []
        heard: deque[Event] = deque()
        try:
            for number, prompt in enumerate([prompts] if alone else prompts):
                seed = None if params.seed is None else params.seed + number
                requests.append(self.submit(prompt, SamplingParams(**{**vars(params), "seed": seed}), heard))
        except ArgumentError:
            self.cancel(*requests)
            raise
        if stream:
            return self._events(requests, heard)
        for _ in self._events(requests, heard):
            pass
        answers = [request.completion() for request in requests]
        if alone and answers[0].error is not None:
            raise NoDistribution(f"generate: {answers[0].error}")
        return answers[0] if alone else answers

    def chat(self, messages: Sequence[dict], max_new_tokens: int = 128, **settings) -> Completion | Iterator[Event]:
        """The answer to a conversation [{"role": "user", "content": "..."}, ...], by the tokenizer's chat template. As generate."""
        return self.generate(self._tokenizer("chat").apply_chat_template(messages), max_new_tokens, **settings)

    # For a server: one step at a time

    def submit(self, prompt: str | Sequence[int], params: SamplingParams, heard: deque[Event] | None = None) -> Request:
        """Put a prompt into the queue; its events go to `heard`, too. Raises ArgumentError for one that can never be computed: empty, unknown
        tokens, too long."""
        if not hasattr(prompt, "__len__"):
            raise ArgumentError(f"generate: a prompt is {prompt!r}; it must be text or tokens")
        tokens = tuple(self._tokenizer("generate").encode(prompt) if isinstance(prompt, str) else prompt)
        if not are_tokens(tokens, self.config.vocab_size):
            for token in tokens:
                if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= token < self.config.vocab_size:
                    raise ArgumentError(f"generate: a prompt has the token {token!r}; tokens are ints from 0 to {self.config.vocab_size - 1}")
            tokens = tuple(map(int, tokens))
        if any(isinstance(one, str) for one in params.stop):
            self._tokenizer("generate with stop strings")
        ends = frozenset(one for one in params.stop if isinstance(one, int))
        if self.tokenizer is not None and not params.ignore_eos:
            ends |= self.tokenizer.stop_ids
        stream = None if self.tokenizer is None else self.tokenizer.stream()
        with self._lock:
            request = Request(tokens, params, end_ids=ends, stream=stream, heard=heard)
            self.scheduler.add(request)
            self._counts["prompt_tokens"] += len(tokens)
        return request

    def cancel(self, *requests: Request) -> None:
        """Their pages are free, and they get no more tokens. No harm to what is finished."""
        with self._lock:
            for request in requests:
                if request.state != "finished":
                    self.scheduler.remove(request)
                    request.finish("cancelled")

    @property
    def idle(self) -> bool:
        """Is there nothing to compute?"""
        return self.scheduler.idle

    @property
    def stats(self) -> Stats:
        with self._lock:
            s, pages = self.scheduler, self.cache.pages
            return Stats(
                waiting=len(s.waiting), running=len(s.running), free_pages=pages.free_pages, num_pages=pages.num_pages,
                shared_tokens=s.shared_tokens, preemptions=s.preemptions, **self._counts,
            )  # fmt: skip

    def step(self) -> list[Event]:
        """A pass over chunks of prompts, if any wait, and one or more tokens of all that run. What came out, in order."""
        with self._lock:
            events: list[Event] = []
            try:
                if prefill := self.scheduler.prefill():
                    events += self._prefill(prefill)
                if decoding := self.scheduler.decode():
                    most = 1 if prefill else self.lookahead  # others wait for the pass
                    events += self._decode_steps(decoding, self.scheduler.steps(decoding, most)) if self._draws(decoding) else self._decode(decoding)
            except BaseException:
                self._abort()
                raise
            for event in events:
                if event.request.heard is not None:
                    event.request.heard.append(event)
            return events

    def _events(self, requests: list[Request], heard: deque[Event]) -> Iterator[Event]:
        """Steps until all of these are finished; their events may come from a step that somebody else made. Who stops listening cancels them."""
        try:
            while True:
                while heard:
                    yield heard.popleft()
                if all(request.state == "finished" for request in requests) and not heard:
                    return
                self.step()
        finally:
            self.cancel(*requests)

    def _abort(self) -> None:
        """A pass failed: what it wrote cannot be trusted, so that nobody may find its pages."""
        for request in [*self.scheduler.running]:
            self.scheduler.remove(request)
            request.finish("error")
        self.cache.pages.forget()

    def _tokenizer(self, what: str):
        if self.tokenizer is None:
            raise ArgumentError(f"{what}: the engine has no tokenizer; give tokens, or make it with Engine(model, tokenizer)")
        return self.tokenizer
