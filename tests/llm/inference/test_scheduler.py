"""Over random schedules every answer is the one alone, nothing hangs, no page is lost: long prompts and short ones, few pages, cancelled requests."""

import random
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkernels.errors import ArgumentError
from labkernels.llm.inference.cache import EnginePages
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.inference.requests import NoDistribution, SamplingParams
from labkernels.llm.inference.scheduler import Scheduler

VOCAB = 50
MODEL = Transformer(ModelConfig(VOCAB, 16, 1, 1, 1, 16, max_seq_len=200))


def next_token(tokens) -> int:
    """What follows these tokens, in the place of a model: another one if any of them is."""
    return zlib.crc32(bytes(tokens)) % VOCAB


class Remembering:
    """A runner that keeps tokens where keys and values would be, and reads them back through the block table."""

    def __init__(self, cache, lookahead: int):
        self.cache, self.lookahead, self.slots, self.rows_of_steps = cache, lookahead, {}, []

    def prefill(self, tokens, step, ends):
        return self._logits(tokens.tolist(), step, ends)

    def decode(self, tokens, step):
        return self._logits(tokens.tolist(), step, range(len(tokens)))

    def decode_steps(self, requests, counts):
        self.rows_of_steps.append(list(counts))
        drawn = []
        for request, count in zip(requests, counts):
            pages, own, token = self.cache.pages, [], request.tokens[-1]
            first = pages.length(request.sequence) - count
            for at in range(first, first + count):
                self.slots[self._slot(pages.pages(request.sequence), at)] = token
                token = next_token(self._read(pages.pages(request.sequence), at + 1))
                own.append(token)
            drawn.append(own)
        for at in range(0, max(counts), 3):  # in portions
            yield [own[at : at + 3] for own in drawn]

    def _logits(self, tokens, step, ends):
        for slot, token in zip(step.slots.tolist(), tokens):
            self.slots[slot] = token
        bounds, rows = step.cu_seqlens_q.tolist(), []
        for end in ends:
            b = next(b for b in range(len(bounds) - 1) if end < bounds[b + 1])
            length = int(step.lengths[b]) - (bounds[b + 1] - 1 - end)
            rows.append(next_token(self._read(step.block_table[b].tolist(), length)))
        return torch.nn.functional.one_hot(torch.tensor(rows, dtype=torch.int64), VOCAB).float()

    def _slot(self, pages, position: int) -> int:
        size = self.cache.pages.page_size
        return pages[position // size] * size + position % size

    def _read(self, pages, length: int) -> list[int]:
        return [self.slots[self._slot(pages, position)] for position in range(length)]


def alone(prompt, new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def engine_of(lookahead: int = 1, **options) -> Engine:
    engine = Engine(MODEL, page_size=4, **options)
    engine.runner = Remembering(engine.cache, lookahead)
    engine.lookahead = lookahead
    return engine


def run_schedule(seed: int, pages: int, max_batch: int, chunk: int, lookahead: int) -> Engine:
    """Requests come at random, some with a beginning in common, some are cancelled; after each step every page is accounted for."""
    chance = random.Random(seed)
    engine = engine_of(lookahead, cache_tokens=4 * pages, max_batch=max_batch, chunk_tokens=chunk)
    beginnings = [[chance.randrange(VOCAB) for _ in range(9)] for _ in range(2)]
    to_come, living, finished = chance.randint(2, 12), [], []
    for _ in range(3000):
        if to_come and chance.random() < 0.3:
            to_come -= 1
            prompt = chance.choice(beginnings)[: chance.randint(0, 9)] + [chance.randrange(VOCAB) for _ in range(chance.randint(1, 4 * pages // 3))]
            new = chance.randint(1, max(1, 4 * pages - len(prompt)) if chance.random() < 0.2 else min(12, max(1, 4 * pages - len(prompt))))
            stop = (chance.randrange(VOCAB),) if chance.random() < 0.3 else ()
            try:
                living.append(engine.submit(prompt, SamplingParams(max_new_tokens=new, stop=stop)))
            except ArgumentError:
                assert len(prompt) + new - 1 > 4 * pages
        if living and chance.random() < 0.03:
            engine.cancel(living.pop(chance.randrange(len(living))))
        engine.step()
        engine.cache.pages.check()
        for request in [request for request in living if request.state == "finished"]:
            living.remove(request)
            finished.append(request)
        if not to_come and engine.idle:
            break
    assert engine.idle, "it ends"
    assert engine.cache.pages.free_pages == engine.cache.pages.num_pages, "no page is lost"
    for request in finished:
        wanted = alone(request.prompt, request.params.max_new_tokens)
        stops = [wanted.index(token) for token in request.params.stop if token in wanted]
        assert request.tokens == wanted[: min(stops, default=None)], "the answer is the one alone"
    return engine


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(3, 30), st.integers(1, 6), st.integers(1, 40), st.sampled_from([1, 4, 32]))
def test_over_random_schedules_answers_are_those_alone_and_no_page_is_lost(seed, pages, max_batch, chunk, lookahead):
    run_schedule(seed, pages, max_batch, chunk, lookahead)


def test_the_schedules_meet_every_case():
    seen = [run_schedule(seed, 8, 4, 16, 1 + 3 * (seed % 2)) for seed in range(20)]
    assert sum(engine.scheduler.preemptions for engine in seen) > 10
    assert sum(engine.scheduler.shared_tokens for engine in seen) > 10


def test_pages_that_are_found_after_they_were_given_to_others_are_caught(monkeypatch):
    monkeypatch.setattr(EnginePages, "_forget", lambda self, page: None)
    monkeypatch.setattr(EnginePages, "check", lambda self: None)  # by the answers alone
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(20):
            run_schedule(seed, 8, 4, 16, 1)


def test_a_common_beginning_is_computed_once():
    engine = engine_of(cache_tokens=400)
    beginning = list(range(40))
    engine.generate([*beginning, 1], 2)
    before = engine.stats.computed_prompt_tokens
    engine.generate([*beginning, 2], 2)
    assert engine.stats.computed_prompt_tokens - before == 1 and engine.stats.shared_tokens == 40


def test_short_answers_are_not_kept_waiting_by_a_long_prompt():
    engine = engine_of(cache_tokens=400, chunk_tokens=8)
    short = engine.submit([1, 2], SamplingParams(max_new_tokens=10))
    engine.step()
    engine.submit(list(range(50)) * 3, SamplingParams(max_new_tokens=2))
    for step in range(8):
        engine.step()
    assert short.state == "finished", "a token with each chunk of the other's prompt"


def test_whoever_came_first_is_never_preempted():
    engine = engine_of(cache_tokens=48, max_batch=4)
    requests = [engine.submit([n] * 8, SamplingParams(max_new_tokens=30)) for n in range(4)]
    while not engine.idle:
        engine.step()
    assert requests[0].preemptions == 0 < engine.stats.preemptions
    assert [request.finished_at for request in requests] == sorted(request.finished_at for request in requests)


def test_several_tokens_in_a_row_stop_where_an_answer_ends():
    engine = engine_of(lookahead=8, cache_tokens=400)
    wanted = alone([3, 4, 5], 40)
    stop = wanted[13]
    found = engine.generate([3, 4, 5], 40, stop=stop)
    assert list(found.tokens) == wanted[: wanted.index(stop)]
    engine.cache.pages.check()
    assert engine.stats.free_pages == engine.stats.num_pages


def run_requests(engine: Engine, news) -> list[list[int]]:
    """Prompts of one token, each with as many new ones; each answer is the one alone. What was drawn in a row, of each that ran."""
    requests = [engine.submit([n % VOCAB], SamplingParams(max_new_tokens=new)) for n, new in enumerate(news)]
    while not engine.idle:
        engine.step()
        engine.cache.pages.check()
    assert [request.tokens for request in requests] == [alone(request.prompt, new) for request, new in zip(requests, news)]
    assert engine.stats.free_pages == engine.stats.num_pages
    return engine.runner.rows_of_steps


def test_answers_that_end_one_after_the_other_do_not_end_the_row_of_steps_of_the_others():
    """Until half of them have ended, when a pass for half as many is the quicker one. Two tokens came with the prompts."""
    rows = run_requests(engine_of(lookahead=32, cache_tokens=4000, max_batch=16), range(18, 34))
    assert rows[1:3] == [[*range(16, 24), *[23] * 8], [1, 2, 3, 4, *[4] * 4]]


def test_whoever_waits_for_a_place_gets_the_first_that_is_free():
    rows = run_requests(engine_of(lookahead=32, cache_tokens=4000, max_batch=2), [9, 30, 5])
    assert rows[:4] == [[1, 1], [7, 7], [1, 1], [3, 3]]


def test_pages_are_reserved_for_no_more_tokens_than_are_to_come():
    """In 7 pages of 4 tokens there is room for 3 + 9 + 9 tokens, and not for three times 9."""
    assert run_requests(engine_of(lookahead=32, cache_tokens=28, max_batch=3), [3, 9, 9])[1] == [1, 7, 7]


def test_a_pass_that_fails_ends_its_requests_and_leaves_nothing_behind():
    engine = engine_of(cache_tokens=400)
    beginning = list(range(20))
    request = engine.submit([*beginning, 1], SamplingParams(max_new_tokens=5))
    working, engine.runner.prefill = engine.runner.prefill, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert request.finish_reason == "error" and engine.idle and engine.stats.free_pages == engine.stats.num_pages
    engine.runner.prefill = working
    assert list(engine.generate([*beginning, 1], 5).tokens) == alone([*beginning, 1], 5), "nobody finds the pages of the failed pass"


def test_a_request_whose_logits_hold_nan_ends_alone():
    engine, good, bad = engine_of(lookahead=1, cache_tokens=400), [3, 4, 5], [6, 7]
    computed = engine.runner.decode

    def decode(tokens, step):
        logits = computed(tokens, step).clone()
        pages = engine.cache.pages
        logits[[pages.tokens(s)[0] == bad[0] and pages.length(s) == len(bad) + 3 for s in step.sequences]] = torch.nan  # after its third token
        return logits

    engine.runner.decode = decode
    answers = engine.generate([good, bad], 9)
    assert list(answers[0].tokens) == alone(good, 9) and answers[0].finish_reason == "length"
    assert list(answers[1].tokens) == alone(bad, 9)[:3] and answers[1].finish_reason == "error" and "NaN" in answers[1].error
    assert engine.idle and engine.stats.free_pages == engine.stats.num_pages
    with pytest.raises(NoDistribution, match="after 5 tokens"):
        engine.generate(bad, 9)


def test_a_token_that_cannot_be_drawn_is_no_token_in_a_row_of_several_either():
    engine = engine_of(lookahead=4, cache_tokens=400)
    drawn = engine.runner.decode_steps

    def lost(requests, counts):  # from the third on
        tokens = [token for (portion,) in drawn(requests, counts) for token in portion]
        yield [tokens[:2]]
        yield [[-1] * (counts[0] - 2)]

    engine.runner.decode_steps = lost
    request = engine.submit([3, 4, 5], SamplingParams(max_new_tokens=9))
    engine.step()  # the prompt, and a token alone
    assert engine.step()[-1].finish_reason == "error" and "NaN" in request.error
    assert request.tokens == alone([3, 4, 5], 4) and request.finish_reason == "error"
    assert engine.idle and engine.stats.free_pages == engine.stats.num_pages
