"""A cache of 8 bits costs a decode step one launch a layer, and holds what rope and cache_append would have written."""

import pytest
import torch

from labkernels.llm.inference import fused
from labkernels.llm.inference.counted import counted
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.several import MOST_FEW
from tests.llm.inference.random_models import logits_of, prompts_of, random_model
from tests.rope.separately import separately


@pytest.fixture(scope="module")
def model():
    return random_model()


def step_of(engine: Engine, sequences: int):
    """What a step launches, its buffers made."""
    cache = engine.cache
    added = [cache.add(())[0] for _ in range(sequences)]
    engine.runner.prefill(torch.arange(3 * sequences), cache.step({sequence: [3, 1, 4] for sequence in added}), [])
    for _ in range(2):
        step = cache.step({sequence: [5] for sequence in added})
        with counted() as seen:
            engine.runner.decode(torch.full((sequences,), 5), step)
    return seen


@pytest.mark.parametrize("sequences", [2, MOST_FEW - 1, MOST_FEW + 2])
def test_a_step_takes_one_launch_a_layer_more_than_with_16_bits_and_of_many_sequences_none(model, sequences):
    whole, small = (step_of(Engine(model, runner="fused", max_batch=sequences, cache_dtype=dtype), sequences) for dtype in (None, "int8"))
    assert small.by_name["qkv_cache_bytes"] == len(model.blocks) and not any("append" in name for name in small.by_name)
    assert small.launches - whole.launches == (len(model.blocks) if sequences <= MOST_FEW else 0)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("lengths, cache_dtype", [((5, 33, 16), "int8"), ((5, 33, 16), "fp8"), ((7, *[2] * MOST_FEW), "int8")])
def test_logits_are_those_of_rope_and_cache_append_bit_for_bit(model, monkeypatch, lengths, cache_dtype, early):
    monkeypatch.setattr(fused.FusedRunner, "early", early)
    prompts, options = prompts_of(*lengths), {"runner": "fused", "cache_dtype": cache_dtype, "max_batch": len(lengths)}
    found = logits_of(Engine(model, **options), prompts)
    monkeypatch.setattr(fused, "bytes_written", separately)
    assert torch.equal(found, logits_of(Engine(model, **options), prompts))


def test_turns_of_other_sequences_are_noticed(model, monkeypatch):
    right = fused.bytes_written

    def wrong(qkv, cache, angles, positions, slots, **options):
        return right(qkv, cache, angles.flip(0) if positions is None else angles, positions, slots, **options)

    wanted = logits_of(Engine(model, runner="fused", cache_dtype="int8"), prompts_of(5, 33))
    monkeypatch.setattr(fused, "bytes_written", wrong)
    found = logits_of(Engine(model, runner="fused", cache_dtype="int8"), prompts_of(5, 33))
    assert torch.equal(found[0], wanted[0]) and (found[1:] - wanted[1:]).abs().max() > 0.1 * wanted.abs().max()
