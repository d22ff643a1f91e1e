"""The rungs of the ladder compute the same: fused kernels in the emulator as PyTorch does, narrow and wide, with quantised weights and caches."""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.llm.inference.drawing import settings_of
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.fused import SAME_BITS, FusedRunner
from labkernels.llm.inference.several import MOST_FEW
from labkernels.llm.model import Transformer
from labkernels.llm.quantisation.quantized import quantize_model
from labkernels.llm.inference.requests import Request, SamplingParams
from tests.llm.inference.random_models import assert_as_good, logits_of, prompts_of, random_model

@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize("batch", [3, SAME_BITS + 1, MOST_FEW + 2])
def test_fused_kernels_give_the_logits_of_pytorch(model, batch):
    prompts = prompts_of(*[5, 17, 33, *[2] * batch][:batch])
    exact = logits_of(Engine(model.float(), runner="cached", max_batch=batch), prompts)
    model.bfloat16()
    plain = logits_of(Engine(model, runner="cached", max_batch=batch), prompts)
    fused = logits_of(Engine(model, runner="fused", max_batch=batch), prompts)
    assert (fused - exact).abs().max() < 2 * (plain - exact).abs().max()


def test_a_fused_row_does_not_depend_on_the_others_bit_for_bit(model):
    prompts = prompts_of(5, 17, 33)
    together = logits_of(Engine(model, runner="fused"), prompts)
    for number, prompt in enumerate(prompts):
        engine = Engine(model, runner="fused")
        tokens = [(7 * i + 3 * number + 1) % 80 for i in range(2)]
        sequence, _ = engine.cache.add(())
        engine.runner.prefill(torch.tensor(prompt), engine.cache.step({sequence: prompt}), [])
        for i, token in enumerate(tokens):
            row = engine.runner.decode(torch.tensor([token]), engine.cache.step({sequence: [token]}))
            assert torch.equal(row[0], together[1 + i, number])


def test_in_float32_fused_answers_are_those_of_the_cached_engine():
    config = ModelConfig(80, 64, 2, 4, 2, 96, head_dim=16, max_seq_len=128)
    model, prompts = random_model(config, torch.float32), prompts_of(3, 17, 9)
    wanted = [one.tokens for one in Engine(model, runner="cached").generate(prompts, 6)]
    assert [one.tokens for one in Engine(model, runner="fused").generate(prompts, 6)] == wanted


@pytest.mark.parametrize("scheme, size, batch", [("int8", 64, 2), ("int4", 128, 2), ("nf4", 64, 2), ("int4", 128, SAME_BITS + 1)])
def test_quantised_weights_compute_what_they_stand_for(scheme, size, batch):
    """As streams where their rows fit (128) and are few, else one product after the other."""
    config = ModelConfig(80, size, 2, 4, 2, 2 * size, head_dim=64, max_seq_len=128)
    quantised, prompts = quantize_model(random_model(config), scheme), prompts_of(*[5, 12, *[2] * batch][:batch])
    assert Engine(quantised, runner="fused").runner.streams == (scheme != "nf4")
    wanted = logits_of(Engine(quantised, runner="cached", max_batch=batch), prompts)
    assert_as_good(logits_of(Engine(quantised, runner="fused", max_batch=batch), prompts), wanted, 0.04)


@pytest.mark.parametrize("size, head, vocab", [(192, "int4", 80), (256, "nf4", 81)])
def test_a_head_of_another_scheme_that_does_not_fit_the_stream_is_multiplied_otherwise(size, head, vocab):
    """192 columns are a group of 128 and half of one; scales of nf4 are read two rows at a time."""
    config = ModelConfig(vocab, size, 1, 2, 1, 64, head_dim=64, max_seq_len=128)
    quantised, prompts = quantize_model(random_model(config), "int8", head=head), prompts_of(5)
    engine = Engine(quantised, runner="fused")
    assert engine.runner.streams and not engine.runner.streams_head
    assert_as_good(logits_of(engine, prompts, forced=1), logits_of(Engine(quantised, runner="cached"), prompts, forced=1), 0.08)


@pytest.mark.parametrize("runner", ["cached", "fused"])
def test_a_cache_of_8_bits_is_near_the_one_of_16_and_smaller(model, runner):
    prompts = prompts_of(5, 30)
    whole, small = Engine(model, runner=runner), Engine(model, runner=runner, cache_dtype="int8")
    wanted, found = logits_of(whole, prompts), logits_of(small, prompts)
    assert_as_good(found, wanted, 0.06)
    assert not torch.equal(found, wanted) and small.cache.nbytes < 0.6 * whole.cache.nbytes


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_attention_that_begins_early_is_the_one_that_waits(model, monkeypatch, cache_dtype):
    """decode/attend.cu, whose first keys and values come before the wait."""
    prompts = prompts_of(5, 33, 16, 47)
    wanted = logits_of(Engine(model, runner="fused", cache_dtype=cache_dtype), prompts)
    monkeypatch.setattr(FusedRunner, "early", True)
    found = logits_of(Engine(model, runner="fused", cache_dtype=cache_dtype), prompts)
    assert_as_good(found, wanted, 0.02)


def test_an_engine_that_reads_the_wrong_page_is_noticed(model):
    prompts, engine = prompts_of(20, 40), Engine(model, runner="fused")
    wanted = logits_of(engine, prompts)
    right = engine.cache.pages.pages
    engine.cache.pages.pages = lambda sequence: right(sequence)[::-1]
    assert (logits_of(engine, prompts)[1:] - wanted[1:]).abs().max() > 0.1 * wanted.abs().max()


def test_a_step_tells_itself_where_it_is():
    """begin.cu, three times in a row: lengths, slots, history, what stands in empty places, and in one whose sequence has all of its tokens."""
    from labkernels.cuda.variants import kernel
    from labkernels.llm.inference.fused import FOLDER

    state = DecodeState(4, 3, 5, 16, 8, torch.device("cpu"))
    requests = [Request((1,), SamplingParams(temperature=0.5, seed=9)), Request((1,), SamplingParams())]
    requests[0].tokens, requests[1].tokens = [4], [3, 6, 7]
    state.fill([(4, 15, [2, 5]), (7, 40, [1, 0, 8])], requests, [1, 4])
    embedding, hidden = torch.randn(10, 12), torch.zeros(4, 12)
    angles, seen = torch.randn(64, 8), []
    for drawn in ([4, 7], [9, 2], [8, 3]):
        state.tokens[:2] = torch.tensor(drawn)
        report = lk.sanitize(kernel(FOLDER / "begin.cu", "begin_step", torch.float32), 4, 64, state.begin(embedding, hidden, angles), write_back=True)
        assert not report.findings
        seen.append((state.lengths.tolist(), state.slots.tolist(), state.spots[:, 0].tolist()))
    assert [lengths for lengths, _, _ in seen] == [[16, 41, 0, 0], [0, 42, 0, 0], [0, 43, 0, 0]]
    assert [slots for _, slots, _ in seen] == [[2 * 16 + 15, 8 * 16 + 8, -1, -1], [-1, 8 * 16 + 9, -1, -1], [-1, 8 * 16 + 10, -1, -1]]
    assert [pages for _, _, pages in seen] == [[2, 8, -1, -1], [-1, 8, -1, -1], [-1, 8, -1, -1]]
    assert state.history[:3, :2].tolist() == [[4, 7], [9, 2], [0, 3]] and state.step.tolist() == [2, 3, 0, 0] and state.draws.tolist() == [2, 5, 0, 0]
    torch.testing.assert_close(hidden[1], embedding[3])
    torch.testing.assert_close(state.turns[1], angles[42])
    assert state.seeds[0] == 9 and state.temperature[:2].tolist() == [0.5, 0.0]


def test_a_table_of_pages_is_that_of_the_last_fill_whatever_stood_there():
    state = DecodeState(3, 3, 5, 16, 8, torch.device("cpu"))
    for pages in ([(2, 5), (1,)], [(2, 5, 7), (1, 4)], [(2, 6), (9, 4), (8,)], [(9, 4, 2), (9, 4)], [(9, 1)], [(5,), (9, 4, 3)]):
        state.fill([(4, 15, own) for own in pages])
        assert [tuple(row[: len(own)].tolist()) for row, own in zip(state.block_table, pages)] == pages
        assert state.lengths.tolist() == [15] * len(pages) + [0] * (3 - len(pages))


def test_no_settings_of_one_request_fail_the_pass_of_all():
    """What a client may ask for fits the numbers that the kernels take."""
    widest = SamplingParams(temperature=1e6, top_k=10**15, seed=10**40, repetition_penalty=1e6)
    request = Request((1,), widest, tokens=[4])
    settings = settings_of([request], "cpu")
    assert settings["top_k"] == 2**31 - 1 and torch.isfinite(settings["repetition_penalty"]).all()
    state = DecodeState(1, 3, 5, 16, 8, torch.device("cpu"))
    state.fill([(4, 15, [2])], [request])
    assert state.top_k == 2**31 - 1 and state.seeds == settings["seed"]
    with pytest.raises(ArgumentError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=1e300)


def test_a_rung_says_why_it_cannot_run(model):
    with pytest.raises(ArgumentError, match="QK-norm"):
        Engine(Transformer(ModelConfig(80, 64, 1, 4, 2, 96, qk_norm=True, max_seq_len=64)), runner="fused")
    with pytest.raises(ArgumentError, match="on the CPU"):
        Engine(model, runner="graphs")
    with pytest.raises(ArgumentError, match="'naive'"):
        Engine(model, runner="fast")


@pytest.mark.parametrize("options, culprit", [({"max_batch": 0}, "max_batch"), ({"max_seq_len": 9999}, "max_seq_len"), ({"cache_dtype": "int3"}, "cache_dtype")])
def test_wrong_options_are_named(model, options, culprit):
    with pytest.raises(ArgumentError, match=culprit):
        Engine(model, **options)


def test_models_of_other_kinds_run_on_the_cached_engine():
    config = ModelConfig(60, 32, 2, 4, 2, 48, activation="gelu", qk_norm=True, max_seq_len=64)
    model, prompt = random_model(config, torch.float32), [3, 1, 4]
    naive, cached = (Engine(model, runner=name).generate(prompt, 8).tokens for name in ("naive", "cached"))
    assert naive == cached


GPU_CONFIG = ModelConfig.preset("llama-3.2-1b", num_layers=3, vocab_size=4096, max_seq_len=4096)
GPU_LENGTHS = (3, 70, 200, 1, 1500)


@pytest.fixture(scope="module")
def on_gpu():
    return random_model(GPU_CONFIG, std=0.04, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("batch", [5, 12, 40])
@pytest.mark.parametrize("runner", ["fused", "graphs", "early"])
def test_on_a_gpu_every_rung_is_as_near_to_float32_as_pytorch(on_gpu, runner, batch, cache_dtype):
    prompts, options = prompts_of(*[*GPU_LENGTHS, *[7] * batch][:batch], vocab=4096), {"max_batch": batch, "cache_tokens": 8192}
    exact = logits_of(Engine(on_gpu.float(), runner="cached", **options), prompts)
    plain = logits_of(Engine(on_gpu.bfloat16(), runner="cached", cache_dtype=cache_dtype, **options), prompts)
    found = logits_of(Engine(on_gpu, runner=runner, cache_dtype=cache_dtype, **options), prompts)
    assert (found - exact).abs().max() < 2 * (plain - exact).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("scheme, batch", [("int8", 5), ("fp8", 5), ("int4", 5), ("nf4", 5), ("int4", 12), ("int8", 40)])
def test_on_a_gpu_quantised_weights_compute_what_they_stand_for(scheme, batch):
    quantised = quantize_model(random_model(GPU_CONFIG, std=0.04, device="cuda"), scheme, head="int8")
    prompts, options = prompts_of(*[*GPU_LENGTHS, *[7] * batch][:batch], vocab=4096), {"max_batch": batch, "cache_tokens": 8192}
    wanted = logits_of(Engine(quantised, runner="cached", **options), prompts)
    for runner in ("graphs", "early"):
        engine = Engine(quantised, runner=runner, **options)
        assert engine.runner.streams
        assert_as_good(logits_of(engine, prompts), wanted, 0.04)


@pytest.mark.gpu
@pytest.mark.parametrize("runner", ["graphs", "early"])
@pytest.mark.parametrize("batch", [5, 12, 40])
def test_on_a_gpu_many_tokens_in_a_row_are_those_one_by_one(on_gpu, runner, batch):
    prompts = prompts_of(*[*GPU_LENGTHS, *[7] * batch][:batch], vocab=4096)
    for given in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 1}):
        drawn = []
        for lookahead, logprobs in ((1, 0), (1, None), (7, None), (32, None)):  # from logits, then in graphs
            engine = Engine(on_gpu, runner=runner, max_batch=batch, cache_tokens=64 * 150, lookahead=lookahead)
            drawn.append([one.tokens for one in engine.generate(prompts, 40, logprobs=logprobs, **given)])
            engine.cache.pages.check()
            assert engine.stats.free_pages == engine.stats.num_pages
        assert drawn[0] == drawn[1] == drawn[2] == drawn[3]


@pytest.mark.gpu
@pytest.mark.parametrize("runner", ["graphs", "early"])
def test_on_a_gpu_answers_that_end_in_the_middle_of_a_row_of_steps_are_those_one_by_one(on_gpu, runner):
    prompts, news = prompts_of(70, 200, 3, 1, 66, 64, 1500, 7, vocab=4096), [9, 21, 14, 40, 33, 38, 40, 40]
    for given in ({}, {"temperature": 0.8, "seed": 1}):
        drawn = []
        for lookahead in (1, 32):
            engine = Engine(on_gpu, runner=runner, max_batch=8, cache_tokens=64 * 40, lookahead=lookahead)
            requests = [engine.submit(prompt, SamplingParams(max_new_tokens=new, **given)) for prompt, new in zip(prompts, news)]
            while not engine.idle:
                engine.step()
                engine.cache.pages.check()
            drawn.append([request.tokens for request in requests])
        assert drawn[0] == drawn[1] and [*map(len, drawn[0])] == news


@pytest.mark.gpu
def test_on_a_gpu_a_captured_pass_over_prompts_is_the_pass_itself(on_gpu):
    """The first pass of a size is launched one kernel after the other, the second is captured, the third replayed; 274 tokens in buffers for 384."""
    prompts, engine = prompts_of(3, 70, 200, 1, vocab=4096), Engine(on_gpu, runner="early", cache_tokens=8192)
    first, *others = (logits_of(engine, prompts, forced=0) for _ in range(3))
    for other in others:
        assert_as_good(other, first, 0.02)


@pytest.mark.gpu
def test_on_a_gpu_pre_empted_answers_come_to_their_end(on_gpu):
    engine = Engine(on_gpu, runner="early", cache_tokens=64 * 12, max_batch=8, lookahead=8)
    answers = engine.generate(prompts_of(*[100] * 12, vocab=4096), 120)
    assert [len(one.tokens) for one in answers] == [120] * 12 and engine.stats.preemptions > 0
    engine.cache.pages.check()
    assert engine.stats.free_pages == engine.stats.num_pages
