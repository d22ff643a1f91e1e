"""What is captured once and replayed: buffers of fixed size compute what the pass itself does, and nothing disturbs a capture."""

import contextlib
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from labkernels.llm.inference import graphs
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.graphs import GraphRunner
from labkernels.llm.inference.prompt_state import MOST_TOKENS, PromptSize
from labkernels.llm.inference.requests import Request, SamplingParams
from tests.llm.inference.random_models import logits_of, prompts_of, random_model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def pretended(monkeypatch):
    """torch.cuda's streams and graphs, which do nothing here; how each graph was captured is noted."""
    captures = []

    @contextlib.contextmanager
    def capture(graph, **options):
        captures.append((gc.isenabled(), options.get("capture_error_mode")))
        yield

    waits = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: waits)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    return SimpleNamespace(captures=captures, stream=waits)


class OnCPU(GraphRunner):
    refusal = staticmethod(lambda model, cache: None)


class Replayed(OnCPU):
    """A graph on the CPU: what was captured, once more, into the same result."""

    def _capture(self, step):
        logits = step()
        return SimpleNamespace(replay=lambda: step() if logits is None else logits.copy_(step())), logits


def test_the_first_step_of_a_graph_writes_into_nobodys_pages(model, pretended):
    """Two graphs share a state: what the one left in it are sequences whose pages may be others' when the other is captured."""

    class Noting(OnCPU):
        lengths = []

        def _step(self, state, bests=None):
            self.lengths.append(state.lengths.tolist())
            return super()._step(state, bests)

    runner = Noting(model, Engine(model).cache)
    runner._stream = pretended.stream
    for draws in (None, "sampled", "likeliest"):
        _, state, _ = runner._captured(1, 20, draws)
        state.fill([(4, 19, [2, 5])], [Request((1,), SamplingParams(seed=9), tokens=[4])])
    assert Noting.lengths == [[0]] * 6


def test_a_graph_is_captured_while_no_garbage_is_collected(model, pretended):
    """An older engine's graphs may be garbage: to free one ends a capture on the same thread."""
    runner = OnCPU(model, Engine(model).cache)
    runner._stream = pretended.stream
    runner._captured(1, 20, None)
    assert pretended.captures == [(False, "thread_local")] and gc.isenabled()


def test_an_engine_and_its_graphs_are_gone_with_the_last_reference(model):
    """Not at the garbage collector's next visit, which may be in the middle of another engine's capture."""
    engine = Engine(model, runner="fused")
    engine.generate(prompts_of(5), 3)
    there = weakref.ref(engine.runner)
    gc.disable()
    try:
        del engine
        assert there() is None
    finally:
        gc.enable()


def test_an_engine_captures_on_the_stream_of_one_that_is_gone_but_on_nobody_elses(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(graphs, "_free_streams", {})

    class Runner:
        device = torch.device("cuda", 0)

    first, second = Runner(), Runner()
    streams = [graphs._stream_for(each) for each in (first, second)]
    assert streams[0] is not streams[1]
    del first
    assert graphs._stream_for(third := Runner()) is streams[0]
    assert graphs._stream_for(fourth := Runner()) not in streams and third is not fourth


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_a_captured_pass_over_prompts_is_the_pass_itself(model, cache_dtype):
    """42 tokens in buffers for 48, three sequences in buffers for four, other ones each time."""
    engines = [Engine(model, runner="fused", cache_dtype=cache_dtype) for _ in range(2)]
    engines[1].runner = Replayed(model, engines[1].cache)
    for lengths in ((5, 17, 20), (20, 17, 5), (1, 40), (13, 14, 15)):
        wanted, found = (logits_of(engine, prompts_of(*lengths), forced=1) for engine in engines)
        assert torch.equal(wanted, found)
    sizes = [key for key in engines[1].runner._graphs if isinstance(key, PromptSize)]
    assert sizes == [PromptSize(48, 4, 128, fresh=cache_dtype is None, whole=cache_dtype is None)]


def test_sizes_of_passes_hold_them_with_little_padding():
    for tokens in range(17, MOST_TOKENS + 1):
        assert tokens <= PromptSize.holding(tokens, 1, 1024).tokens < 1.5 * tokens
    assert PromptSize.holding(3, 5, 1024) == (16, 8, 1024, False, False)
    assert PromptSize.holding(MOST_TOKENS + 1, 1, 1024) is None and PromptSize.holding(100, 8, 131_072) is None


@pytest.mark.parametrize("rows, settings", [(3, {}), (17, {}), (3, {"temperature": 0.8, "top_p": 0.9, "seed": 1})])
def test_tokens_drawn_in_a_row_are_those_drawn_one_by_one(rows, settings):
    """Greedy ones by the head itself, of more than sixteen sequences in the logits where they lie; others by their settings."""
    model, prompts = random_model(std=0.3), prompts_of(*[5, 17, 2, *[3] * rows][:rows])
    wanted = [one.tokens for one in Engine(model, runner="fused", max_batch=rows).generate(prompts, 9, **settings)]
    engine = Engine(model, runner="fused", max_batch=rows, lookahead=4)
    engine.runner, engine.lookahead = Replayed(model, engine.cache), 4
    assert [one.tokens for one in engine.generate(prompts, 9, **settings)] == wanted
    assert {key[2] for key in engine.runner._graphs if not isinstance(key, PromptSize)} >= {"sampled" if settings else "likeliest"}


def answers(engine: Engine, prompts, news, **settings) -> list[list[int]]:
    """Of requests of which each wants another number of tokens."""
    requests = [engine.submit(prompt, SamplingParams(max_new_tokens=new, **settings)) for prompt, new in zip(prompts, news)]
    while not engine.idle:
        engine.step()
        engine.cache.pages.check()
    return [request.tokens for request in requests]


@pytest.mark.parametrize("settings, knows", [({}, True), ({"temperature": 0.8, "seed": 1}, True), ({}, False)])
def test_a_place_whose_answer_has_ended_disturbs_nobody(model, monkeypatch, settings, knows):
    """Two end in the middle of a row of nine steps. If the GPU did not know, they would write into page 0, which is another's."""
    prompts, news = prompts_of(2, 14, 13, 17, 16), [12, 3, 5, 11, 12]
    wanted = [answers(Engine(model, runner="fused"), [prompt], [new], **settings)[0] for prompt, new in zip(prompts, news)]
    engine = Engine(model, runner="fused", lookahead=32, cache_tokens=160)
    engine.runner, engine.lookahead = Replayed(model, engine.cache), 32
    filled = DecodeState.fill
    if not knows:
        monkeypatch.setattr(DecodeState, "fill", lambda self, rows, requests=(), counts=(): filled(self, rows, requests, [9] * len(counts)))
    assert (answers(engine, prompts, news, **settings) == wanted) == knows


def test_single_steps_beside_a_prompt_are_drawn_in_the_graph_unless_logits_are_wanted(model, monkeypatch):
    prompts, news, decoded = prompts_of(5, 40, 3), [9, 4, 12], []
    wanted = [answers(Engine(model, runner="fused"), [prompt], [new])[0] for prompt, new in zip(prompts, news)]
    decode = Engine._decode
    monkeypatch.setattr(Engine, "_decode", lambda self, requests: decoded.append(len(requests)) or decode(self, requests))
    for lookahead in (1, 4):
        engine = Engine(model, runner="fused", chunk_tokens=8)
        engine.runner, engine.lookahead = Replayed(model, engine.cache), lookahead
        assert answers(engine, prompts, news) == wanted and not decoded
    assert answers(engine, prompts, news, logprobs=0) == wanted and decoded


def test_a_row_with_nan_has_no_likeliest_token():
    model = random_model()
    engine = Engine(model, runner="fused")
    engine.runner, engine.lookahead = Replayed(model, engine.cache), 4
    model.embedding.weight[79] = torch.nan  # a row of the head, too
    answer = engine.generate([prompts_of(5)[0], [1, 2, 3]], 9)
    assert [one.finish_reason for one in answer] == ["error"] * 2


def test_an_engine_answers_for_it_that_its_weights_rest_in_a_capture_too(monkeypatch):
    from labkernels.cuda import settled

    monkeypatch.setattr(settled, "can_launch_early", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    weight = torch.ones(3)
    with settled.resting():
        with settled.resting(False):
            assert not settled.settled(weight), "a rung without early launches"
        assert settled.settled(weight)
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(settled.said_to_rest).result(), "a thread that trains meanwhile"
    with pytest.raises(ZeroDivisionError), settled.resting():
        1 / 0
    assert not settled.settled(weight) and not settled.said_to_rest()
