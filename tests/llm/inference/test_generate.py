"""Answers: the same as transformers', token for token; the same alone and in any batch; stops, seeds, penalties and streams do what they say."""

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference import drawing
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.inference.requests import Request, SamplingParams, StopStrings
from labkernels.llm.data.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SHAPES = {
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "one head each, tied": {"num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "llama 3's rope": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
}
PROMPT_LENGTHS = (3, 17, 40, 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function: the name of a shape to transformers' model and ours, of the same random weights."""
    made = {}

    def of(name: str):
        if name not in made:
            torch.manual_seed(len(name))
            config = transformers.LlamaConfig(
                vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, max_position_embeddings=256, initializer_range=0.3, **SHAPES[name]
            )
            theirs = transformers.LlamaForCausalLM(config).eval()
            folder = tmp_path_factory.mktemp("llama")
            theirs.save_pretrained(folder)
            made[name] = theirs, Transformer.from_pretrained(folder)
        return made[name]

    return of


@pytest.fixture(scope="module")
def ours(pair):
    return pair("grouped")[1]


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 97, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def by_transformers(theirs, prompt: list[int], new: int, **settings) -> list[int]:
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0, **settings)
    return found[0, len(prompt) :].tolist()


def answers(engine: Engine, prompts, new: int, **settings) -> list[list[int]]:
    return [list(completion.tokens) for completion in engine.generate(prompts, max_new_tokens=new, **settings)]


@pytest.mark.parametrize("runner", ["naive", "cached"])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_are_those_of_transformers_token_for_token(pair, prompts, shape, runner):
    theirs, model = pair(shape)
    wanted = [by_transformers(theirs, prompt, 24) for prompt in prompts]
    assert answers(Engine(model, runner=runner, chunk_tokens=16), prompts, 24) == wanted


def test_a_model_whose_rope_is_off_would_be_noticed(pair, prompts):
    theirs, model = pair("grouped")
    wrong = Transformer(model.config)
    wrong.load_state_dict(model.state_dict())
    wrong.angles = wrong.angles.roll(1, 0)
    wrong.angles[0] = torch.cat([torch.ones(4), torch.zeros(4)])
    assert answers(Engine(wrong), prompts, 24) != [by_transformers(theirs, prompt, 24) for prompt in prompts]


def test_a_repetition_penalty_is_that_of_transformers(pair, prompts):
    theirs, model = pair("grouped")
    wanted = [by_transformers(theirs, prompt, 16, repetition_penalty=1.3) for prompt in prompts]
    assert answers(Engine(model), prompts, 16, repetition_penalty=1.3) == wanted


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.8, "top_k": 30}, {"temperature": 1.5, "min_p": 0.02}], ids=str)
def test_an_answer_is_the_same_alone_and_in_any_batch_bit_for_bit(ours, prompts, settings):
    def bits(completion):
        return completion.tokens, completion.logprobs

    wanted = []
    for number, prompt in enumerate(prompts):
        wanted.append(bits(Engine(ours).generate(prompt, 10, seed=7 + number, logprobs=0, **settings)))
    for options in ({"max_batch": 4}, {"max_batch": 2, "chunk_tokens": 5}, {"max_batch": 3, "cache_tokens": 80}):
        engine = Engine(ours, **options)
        assert [bits(one) for one in engine.generate(prompts, 10, seed=7, logprobs=0, **settings)] == wanted, options
        engine.cache.pages.check()


def test_log_probabilities_are_the_models_own(pair, prompts):
    theirs, model = pair("grouped")
    found = Engine(model).generate(prompts[1], 6, temperature=0.7, top_k=5, seed=3, logprobs=3)
    with torch.no_grad():
        logits = theirs(torch.tensor([[*prompts[1], *found.tokens]])).logits[0, len(prompts[1]) - 1 : -1]
    wanted = logits.log_softmax(-1)
    torch.testing.assert_close(torch.tensor(found.logprobs), wanted.gather(1, torch.tensor(found.tokens)[:, None])[:, 0], atol=2e-4, rtol=0)
    assert [list(top) for top in found.top_logprobs] == wanted.topk(3).indices.tolist()


def test_seeds_give_the_same_answer_again_and_other_seeds_another(ours, prompts):
    engine = Engine(ours)
    draws = [answers(engine, prompts, 12, temperature=1.0, seed=seed) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    assert answers(engine, prompts[:1], 12, temperature=1.0) != answers(engine, prompts[:1], 12, temperature=1.0)


def test_of_rows_that_hold_nan_or_infinity_no_token_is_drawn_on_either_device():
    logits = torch.randn(6, 50)
    logits[1, 7], logits[2, 0], logits[3, 4], logits[4] = torch.nan, torch.inf, -torch.inf, -torch.inf
    logits[5, 9] = logits[5, 30] = 9.0  # the first of equals
    requests = [Request((1,), SamplingParams())] * 6
    found = drawing.draw(requests, logits)
    assert found == drawing._on_gpu(requests, logits, plain=True)
    assert [token == drawing.NOT_DRAWN for token in found] == [False, True, True, False, True, False] and found[5] == 9


def test_a_stop_token_ends_an_answer_and_is_no_part_of_it(ours, prompts):
    whole = Engine(ours).generate(prompts[0], 12).tokens
    cut = Engine(ours).generate(prompts[0], 12, stop=whole[5])
    assert cut.finish_reason == "stop" and cut.tokens == whole[: whole.index(whole[5])]


@pytest.fixture(scope="module")
def talking():
    """A model with a tokenizer, of text as it comes."""
    tokenizer = Tokenizer.train(["the cat sat on the mat, the bat sat on the cat"] * 20, vocab_size=300)
    torch.manual_seed(3)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 4, 2, 48, max_seq_len=128))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return Engine(model, tokenizer)


def test_the_text_of_a_stream_is_the_text_of_the_answer(talking):
    whole = talking.generate("the cat", 40, temperature=1.0, seed=2, ignore_eos=True)
    events = list(talking.generate("the cat", 40, temperature=1.0, seed=2, ignore_eos=True, stream=True))
    assert "".join(event.text for event in events) == whole.text
    assert [event.token for event in events] == list(whole.tokens) and events[-1].finish_reason == "length"
    assert whole.text == talking.tokenizer.decode(whole.tokens, skip_special_tokens=True)


def test_a_stop_string_is_never_shown_not_even_in_part(talking):
    whole = talking.generate("the cat", 40, temperature=1.0, seed=2, ignore_eos=True).text
    stop = whole[len(whole) // 2 :][:4]
    events = list(talking.generate("the cat", 40, temperature=1.0, seed=2, ignore_eos=True, stop=[stop, "never comes"], stream=True))
    assert "".join(event.text for event in events) == whole[: whole.index(stop)] and events[-1].finish_reason == "stop"


def test_text_is_held_back_only_as_long_as_it_may_begin_a_stop_string():
    stops = StopStrings(["abc", "bd"])
    shown = [stops.push(text) for text in ("xa", "b", "e", "ab", "d!")]
    assert shown == [("x", False), ("", False), ("abe", False), ("", False), ("a", True)]


def test_a_conversation_goes_through_the_chat_template(talking):
    messages = [{"role": "user", "content": "the cat?"}]
    assert talking.chat(messages, 8).prompt_tokens == tuple(talking.tokenizer.apply_chat_template(messages))


def test_two_streams_at_a_time_lose_nothing_to_each_other(talking):
    wanted = [talking.generate(prompt, 20, temperature=1.0, seed=2, ignore_eos=True) for prompt in ("the cat", "the mat")]
    streams = [talking.generate(prompt, 20, temperature=1.0, seed=2, ignore_eos=True, stream=True) for prompt in ("the cat", "the mat")]
    found = list(zip(*streams, strict=True))
    for number, whole in enumerate(wanted):
        assert tuple(events[number].token for events in found) == whole.tokens
        assert "".join(events[number].text for events in found) == whole.text


def test_who_stops_listening_gives_the_pages_back(talking):
    stream = talking.generate(["the cat", "the mat"], 60, ignore_eos=True, stream=True)
    next(stream)
    assert talking.stats.running == 2
    stream.close()
    assert talking.idle and talking.stats.free_pages == talking.stats.num_pages


@pytest.mark.parametrize(
    "settings, culprit",
    [
        ({"temperature": -1.0}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_k": 1.0}, "top_k"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": [""]}, "stop"), ({"stop": "text"}, "tokenizer"), ({"heat": 1}, "heat"), ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": -1}, "logprobs"), ({"seed": 0.5}, "seed"), ({"max_new_tokens": 1000}, "max_seq_len"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(ours, settings, culprit):
    engine = Engine(ours)
    with pytest.raises(ArgumentError, match=culprit):
        engine.generate([1, 2, 3], **settings)
    assert engine.idle


@pytest.mark.parametrize("prompt, culprit", [([], "at least one"), ([1, 97], "97"), ("text", "tokenizer"), ([True], "True"), (None, "a prompt is None")])
def test_wrong_prompts_are_named(ours, prompt, culprit):
    engine = Engine(ours)
    with pytest.raises(ArgumentError, match=culprit):
        engine.generate([[1, 2], prompt])
    assert engine.idle
    with pytest.raises(ArgumentError, match="prompts is 5; it must be text, tokens, or a list of either"):
        engine.generate(5)


def test_a_prompt_may_be_a_tensor_or_numpys_numbers(ours):
    wanted = Engine(ours).generate([3, 1, 4], 4).tokens
    tensor = torch.tensor([3, 1, 4])
    assert Engine(ours).generate(tensor, 4).tokens == Engine(ours).generate(list(tensor.numpy()), 4).tokens == wanted
    assert [one.tokens for one in Engine(ours).generate(tensor[None].repeat(2, 1), 4)] == [wanted, wanted]


def test_a_request_knows_what_the_cache_lacks():
    request = Request((1, 2, 3, 4), SamplingParams(max_new_tokens=4))
    request.tokens, request.computed = [5, 6], 3
    assert request.upcoming(1) == [4] and request.upcoming(2) == [4, 5] and request.upcoming(9) == [4, 5, 6]
