"""The caches: prompts in chunks and decode steps give what attention over the whole sequence gives, whatever is shared, forked or quantised."""

import random

import pytest
import torch
import torch.nn.functional as F

from labkernels.errors import ArgumentError
from labkernels.kvcache import prefill_attention
from labkernels.kvcache.caches import ContiguousKVCache, PagedKVCache
from labkernels.kvcache.decode_attention_op import make_inputs, shape
from labkernels.kvcache.pages import OutOfPages
from labkernels.kvcache.reference import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64


class Model:
    """Keys, values and queries that depend on the token and where it stands, as a model's do."""

    def __init__(self, device, dtype=torch.float32, vocabulary=5, positions=200):
        generator = torch.Generator().manual_seed(0)
        self.tables = {
            name: (torch.randn(vocabulary, heads, HEAD_DIM, generator=generator), torch.randn(positions, heads, HEAD_DIM, generator=generator))
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        }
        self.device, self.dtype = device, dtype

    def __call__(self, name, tokens, positions):
        of_token, of_position = self.tables[name]
        return (of_token[torch.as_tensor(tokens)] + of_position[torch.as_tensor(positions).cpu()]).to(self.device, self.dtype)

    def attention(self, tokens):
        """Of every token against all up to it, (tokens, heads, head_dim)."""
        q, k, v = (self(name, list(tokens), range(len(tokens))).transpose(0, 1).double() for name in "qkv")
        out = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True)
        return out.transpose(0, 1)


def run_step(cache, model, new):
    step = cache.step(new)
    tokens = [token for each in new.values() for token in each]
    cache.write(0, model("k", tokens, step.positions), model("v", tokens, step.positions), step)
    return cache.attend(0, model("q", tokens, step.positions), step).double().split([len(each) for each in new.values()])


@pytest.mark.parametrize("device", DEVICES)
def test_a_random_schedule_on_pages_gives_attention_over_whole_sequences(device):
    chance, model = random.Random(0), Model(device)
    cache = PagedKVCache(1, 14, KV_HEADS, 4, HEAD_DIM, torch.float32, device)
    waiting, out, shared_tokens = {}, 0, 0
    for _ in range(25):
        what = chance.choice(["add", "add", "step", "step", "fork", "finish"])
        living = list(cache.pages.sequences)
        if what == "add":
            prompt = chance.choice(([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1], [1] * 14))[: chance.randint(1, 14)]
            sequence, shared = cache.add(prompt)
            waiting[sequence] = prompt[shared:]
            shared_tokens += shared
        elif what == "fork" and living:
            sequence = chance.choice(living)
            waiting[cache.fork(sequence)] = list(waiting[sequence])
        elif what == "finish" and len(living) > 3:
            cache.finish(living[0])
            del waiting[living[0]]
        new = {}
        for sequence in cache.pages.sequences:  # a chunk of the prompt, or a token that was made
            new[sequence] = waiting[sequence][:6] or [chance.randint(0, 4)]
        try:
            results = run_step(cache, model, new) if new else ()
        except OutOfPages:
            out += 1
            first = cache.pages.sequences[0]
            cache.finish(first)
            del waiting[first]
            continue
        for (sequence, tokens), got in zip(new.items(), results):
            waiting[sequence] = waiting[sequence][len(tokens) :]
            torch.testing.assert_close(got, model.attention(cache.pages.tokens(sequence))[-len(tokens) :].to(device), rtol=1e-4, atol=1e-4)
        cache.pages.check()
    assert out > 0 and shared_tokens > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_contiguous_cache_prompt_first_then_token_by_token(device):
    model, tokens = Model(device, torch.bfloat16), [1, 2, 3, 4, 0, 1, 2, 2, 2, 1]
    cache = ContiguousKVCache(2, 1, KV_HEADS, 16, HEAD_DIM, torch.bfloat16, device)
    want, at = model.attention(tokens).to(device), 0
    for count in (6, 1, 2, 1):
        q, k, v = (model(name, tokens[at : at + count], range(at, at + count)).transpose(0, 1)[None] for name in "qkv")
        cache.write(1, k, v)
        got = cache.attend(1, q)[0].transpose(0, 1)
        torch.testing.assert_close(got.double(), want[at : at + count], rtol=2e-2, atol=2e-2)
        at += count
        cache.advance(count)
    assert cache.lengths.tolist() == [10] and not cache.k[0].any()
    if device == "cpu":
        with pytest.raises(ArgumentError, match="10 tokens and 7 more are too many for max_seq 16"):
            cache.advance(7)
    cache.reset()
    assert cache.lengths.tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cache", ["same", "int8"])
def test_prefill_against_pages_of_sequences_of_different_lengths(cache, device):
    inputs = make_inputs(
        torch.Generator().manual_seed(0), device, torch.bfloat16, **shape(3, 90, heads=4, kv_heads=2, queries=20, page_size=16, cache=cache, fill="mixed")
    )
    want = reference(**{name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value for name, value in inputs.items()})
    got = prefill_attention(**inputs)
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)
    ends = torch.tensor([0, 20, 40, 60], dtype=torch.int32, device=device)
    packed = prefill_attention(**{**inputs, "q": inputs["q"].transpose(1, 2).flatten(0, 1)}, cu_seqlens_q=ends, max_seqlen_q=20, max_length=90)
    assert torch.equal(packed.view(3, 20, 4, 64).transpose(1, 2), got)


def test_a_step_that_does_not_fit_changes_nothing():
    cache = PagedKVCache(1, 3, 1, 4, HEAD_DIM, torch.float32, "cpu")
    first, second = cache.add()[0], cache.add()[0]
    cache.step({first: [1, 2, 3]})
    with pytest.raises(OutOfPages, match="a step of 2 sequences needs 3 more pages, and 2 of 3 are free"):
        cache.step({first: [1, 2], second: [1] * 5})
    assert cache.pages.length(first) == 3 and cache.pages.length(second) == 0
    with pytest.raises(ArgumentError, match="dtype is float64"):
        PagedKVCache(1, 3, 1, 4, 8, torch.float64, "cpu")


def test_a_copied_page_keeps_its_scales():
    cache = PagedKVCache(2, 4, 1, 4, HEAD_DIM, torch.int8, "cpu")
    first, _ = cache.add()
    step = cache.step({first: [1, 2]})
    k = torch.randn(2, 1, HEAD_DIM)
    cache.write(1, k, k, step)
    second = cache.fork(first)
    cache.step({second: [3]})
    (old,), (new,) = cache.pages.pages(first), cache.pages.pages(second)
    assert old != new and torch.equal(cache.k[:, old], cache.k[:, new]) and torch.equal(cache.v_scale[:, old], cache.v_scale[:, new])
    assert cache.k[1, new].any() and cache.nbytes == 2 * (2 * 4 * 4 * HEAD_DIM + 4 * 2 * 4 * 4)
