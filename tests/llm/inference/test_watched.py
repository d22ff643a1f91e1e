"""Who is in which pass: a letter for each, and nobody is answered otherwise for being watched."""

import pytest
import torch

from labkernels.llm import Engine, ModelConfig, Transformer
from labkernels.llm.inference.watched import watched

ARRIVALS = {"first": (0, list(range(9)), 7), "second": (0, list(range(20, 26)), 8), "late": (2, list(range(40, 45)), 3)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(64, 16, 1, 2, 1, 32, max_seq_len=64)).eval().requires_grad_(False)


def test_each_pass_has_a_letter_and_answers_are_those_of_an_engine_alone(model):
    engine = Engine(model, runner="cached", invariant=True, max_batch=3, cache_tokens=24, page_size=4, share_prefixes=False)
    requests, rows, pages = watched(engine, ARRIVALS)
    assert {len(row) for row in rows.values()} == {len(pages)} and max(pages) <= 6 and pages[-1] == 0
    assert rows["first"].startswith("pddd") and rows["late"].startswith("  ") and rows["late"][2] in "wp"
    assert "x" in rows["second"] and requests["second"].preemptions == rows["second"].count("x"), "six pages are too few for two of 16 tokens"
    alone = Engine(model, runner="cached", invariant=True, max_batch=1)
    for name, (_, prompt, answer) in ARRIVALS.items():
        assert alone.generate(prompt, max_new_tokens=answer, ignore_eos=True).tokens == tuple(requests[name].tokens)
        assert rows[name].count("p") == 1 + requests[name].preemptions


def test_with_pages_for_all_nobody_waits(model):
    _, rows, _ = watched(Engine(model, runner="cached", max_batch=3, page_size=4), ARRIVALS)
    assert not set("".join(rows.values())) & set("wx")
