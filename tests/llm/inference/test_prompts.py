"""A pass over prompts computes what PyTorch does, in whole or in chunks, and in the last layer nothing that nobody asks for."""

import pytest
import torch

from labkernels.llm.inference import prompts as module
from labkernels.llm.inference.engine import Engine
from tests.llm.inference.random_models import assert_as_good, logits_of, prompts_of, random_model


@pytest.fixture(scope="module")
def model():
    return random_model()


def chunked(engine: Engine, prompt: list[int], *chunks: int) -> torch.Tensor:
    """Logits after a prompt that comes in chunks of so many tokens, (vocab,)."""
    sequence, start = engine.cache.add(())[0], 0
    for count in chunks:
        step = engine.cache.step({sequence: prompt[start : start + count]})
        start += count
        rows = engine.runner.prefill(torch.tensor(prompt[start - count : start]), step, [count - 1] if start == len(prompt) else [])
        assert len(rows) == (start == len(prompt))
    engine.cache.finish(sequence)
    return rows[0]


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_logits_after_a_prompt_do_not_depend_on_its_chunks(cache_dtype):
    """In float32, where rounding tells nothing from nothing: a whole prompt's keys come from the projection, those of a second chunk from the pages."""
    model, prompt = random_model(dtype=torch.float32), prompts_of(41)[0]
    engine = Engine(model, runner="fused", cache_dtype=cache_dtype)
    wanted = chunked(Engine(model, runner="cached", cache_dtype=cache_dtype), prompt, 41)
    whole = chunked(engine, prompt, 41)
    assert_as_good(whole, wanted, 1e-4 if cache_dtype is None else 0.03)
    torch.testing.assert_close(chunked(engine, prompt, 20, 1, 20), whole, rtol=1e-4, atol=1e-3)


def test_the_last_layer_goes_on_with_the_ends_alone(model, monkeypatch):
    rows, gated = [], module.Prompts._gated
    monkeypatch.setattr(module.Prompts, "_gated", lambda self, x, layer: rows.append(len(x)) or gated(self, x, layer))
    engine, prompts = Engine(model, runner="fused"), prompts_of(5, 17, 2)
    wanted = logits_of(Engine(model, runner="cached"), prompts, forced=0)
    assert_as_good(logits_of(engine, prompts, forced=0), wanted, 0.02)
    assert rows == [24, 3]
    rows.clear()
    chunked(engine, prompts[1], 9, 8)
    assert rows == [9, 8, 1]  # of the first chunk the last layer only keeps keys and values


def test_swiglu_in_the_first_products_epilogue_is_swiglu(model, monkeypatch):
    prompts = prompts_of(60, 9)
    wanted, found = (logits_of(Engine(model, runner=runner), prompts, forced=1) for runner in ("cached", "fused"))
    monkeypatch.setattr(module, "GATED_FROM", 70)
    without = logits_of(Engine(model, runner="fused"), prompts, forced=1)
    assert_as_good(found, wanted, 0.02)
    assert not torch.equal(found, without)


def test_an_end_that_looks_into_anothers_pages_is_noticed(model, monkeypatch):
    prompts, engine = prompts_of(33, 40), Engine(model, runner="fused")
    wanted, right = logits_of(engine, prompts, forced=0), module.Prompts._attend_ends

    def wrong(self, index, q, step, table, ends):
        return right(self, index, q, step, table.flip(0), ends)

    monkeypatch.setattr(module.Prompts, "_attend_ends", wrong)
    assert (logits_of(engine, prompts, forced=0) - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_turned_in_place_is_what_the_cache_gets(dtype):
    """Bit for bit as qkv_rope_cache has it; a token without a slot leaves nothing in the cache."""
    runners = [Engine(random_model(dtype=dtype), runner="fused").runner for _ in range(2)]
    caches = [runner.cache for runner in runners]
    steps = [cache.step({cache.add(())[0]: range(37)}) for cache in caches]
    for step in steps:
        step.slots[5] = -1
    qkv = torch.randn(37, runners[0].config.qkv_dim).to(dtype)
    wanted, kept = runners[1]._turn_and_write(1, qkv.clone(), steps[1].positions, steps[1].slots), qkv.clone()
    runners[0]._turn_in_place(1, qkv, steps[0])
    q, k, v = qkv.unflatten(1, (-1, 64)).split([4, 2, 2], dim=1)
    assert torch.equal(q, wanted) and torch.equal(v, kept.unflatten(1, (-1, 64))[:, 6:])
    assert torch.equal(caches[0].k, caches[1].k) and torch.equal(caches[0].v, caches[1].v) and caches[0].k[1].any() and not caches[0].k[0].any()
    page, place = steps[0].slots[36] // 16, steps[0].slots[36] % 16
    assert torch.equal(caches[0].k[1, page, :, place], k[36]) and not torch.equal(k[36], kept.unflatten(1, (-1, 64))[36, 4:6])
