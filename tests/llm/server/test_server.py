"""The server, by OpenAI's own client: many at a time, some of whom leave early, and what each answer must be."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.llm.server.tiny_server import NAME, engine, served, tokenizer

PROMPTS = ["the cat", "def f(x):", "naïve", "猫は", "the dog sat on", "über", "log and mat", "x + 1"]


@pytest.fixture(scope="module")
def server():
    with served(engine(cache_tokens=2048)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def alone():
    """What a prompt is answered when nobody else is served."""
    own = engine()
    return lambda prompt, tokens, **settings: own.generate(prompt, tokens, **settings)


def test_a_completion_is_what_the_engine_says(client, alone):
    found = client.completions.create(model=NAME, prompt="the cat", max_tokens=20, temperature=0.9, seed=3, extra_body={"top_k": 40})
    want = alone("the cat", 20, temperature=0.9, seed=3, top_k=40)
    assert found.choices[0].text == want.text != "" and found.choices[0].finish_reason == want.finish_reason
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(want.prompt_tokens), len(want.tokens))
    assert found.id.startswith("cmpl-") and found.object == "text_completion" and found.model == NAME


def test_several_prompts_and_several_answers_to_each_have_seeds_of_their_own(client, alone):
    tokens = tokenizer().encode("def")
    found = client.completions.create(model=NAME, prompt=["the cat", "def"], n=2, max_tokens=8, temperature=1, seed=5)
    want = [alone(prompt, 8, temperature=1, seed=seed).text for prompt in ("the cat", "def") for seed in (5, 6)]
    assert [choice.text for choice in found.choices] == want and [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert len(set(want)) > 1
    assert client.completions.create(model=NAME, prompt=tokens, max_tokens=8, temperature=1, seed=5).choices[0].text == want[2]


def test_chat_goes_through_the_models_own_template(client, alone):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "猫"}]}]
    found = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=12, temperature=0.8, seed=1)
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "猫"}]
    want = alone(tokenizer().apply_chat_template(plain), 12, temperature=0.8, seed=1)
    assert found.choices[0].message.content == want.text and found.choices[0].message.role == "assistant"
    assert found.usage.prompt_tokens == len(want.prompt_tokens)


def test_a_stream_is_the_same_text_in_pieces_without_broken_characters(client, alone):
    events = list(client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "猫"}], max_tokens=40, temperature=1, seed=2, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    want = alone(tokenizer().apply_chat_template([{"role": "user", "content": "猫"}]), 40, temperature=1, seed=2)
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == want.text and len([piece for piece in pieces if piece]) > 3
    assert events[0].choices[0].delta.role == "assistant" and events[-2].choices[0].finish_reason == want.finish_reason
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == len(want.tokens)


def test_a_stop_string_is_no_part_of_the_answer(client, alone):
    whole = alone("the cat", 30, temperature=1, seed=4).text
    stop = whole[5:8]
    found = client.completions.create(model=NAME, prompt="the cat", max_tokens=30, temperature=1, seed=4, stop=stop)
    assert found.choices[0].text == whole[: whole.index(stop)] and found.choices[0].finish_reason == "stop"
    events = list(client.completions.create(model=NAME, prompt="the cat", max_tokens=30, temperature=1, seed=4, stop=[stop], stream=True))
    assert (
        "".join(event.choices[0].text for event in events) == whole[: whole.index(stop)] and events[-1].choices[0].finish_reason == "stop"
    )


def test_log_probabilities_come_in_both_forms(client, alone):
    want = alone("the cat", 5, logprobs=2)
    text = client.completions.create(model=NAME, prompt="the cat", max_tokens=5, temperature=0, logprobs=2).choices[0].logprobs
    assert text.token_logprobs == pytest.approx(want.logprobs) and len(text.tokens) == len(text.top_logprobs) == 5
    pieces = list(client.completions.create(model=NAME, prompt="the cat", max_tokens=5, temperature=0, logprobs=2, stream=True))
    streamed = [piece.choices[0].logprobs.text_offset for piece in pieces if piece.choices[0].logprobs]
    assert sum(streamed, []) == text.text_offset and text.text_offset[-1] > 0
    chat = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "x"}], max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    ).choices[0].logprobs.content  # fmt: skip
    assert len(chat) == 5 and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in chat)
    assert chat[0].logprob == pytest.approx(max(top.logprob for top in chat[0].top_logprobs))


def test_echo_begins_with_the_prompt(client, alone):
    found = client.completions.create(model=NAME, prompt="the cat", max_tokens=4, temperature=0, echo=True)
    assert found.choices[0].text == "the cat" + alone("the cat", 4).text


def test_64_streams_a_third_of_them_cut_off_each_as_alone_and_no_page_lost(server, alone):
    tokens = 40
    jobs = [{"prompt": PROMPTS[i % len(PROMPTS)] + f" {i}", "seed": i, "temperature": (0.0, 0.7, 1.0)[i % 3]} for i in range(64)]

    def cancelled() -> float:
        return server.service.metrics.registry.get_sample_value("labkernels_answers_total", {"reason": "cancelled"}) or 0

    before = cancelled()

    async def listen(client, number: int, job: dict) -> tuple[str, bool]:
        text = ""
        async with await client.completions.create(model=NAME, max_tokens=tokens, stream=True, **job) as stream:
            seen = 0
            async for event in stream:
                text += event.choices[0].text
                seen += 1
                if number % 3 == 0 and seen > number % 7:
                    return text, False  # leaves, and with it the connection
        return text, True

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(listen(client, number, job) for number, job in enumerate(jobs)))

    for (text, whole), job in zip(asyncio.run(all_of_them()), jobs):
        want = alone(job["prompt"], tokens, seed=job["seed"], temperature=job["temperature"]).text
        assert (text == want) if whole else want.startswith(text), job
    assert server.idle()
    stats = server.engine.stats
    assert stats.free_pages == stats.num_pages and stats.running == stats.waiting == 0
    server.engine.cache.pages.check()
    assert cancelled() - before > 10  # of 22: the others had their last token before they were missed


def test_who_leaves_without_streaming_is_cancelled_too(server):
    before = server.engine.stats.generated_tokens

    async def leave():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
            asking = [
                asyncio.create_task(client.completions.create(model=NAME, prompt=p, max_tokens=240, extra_body={"ignore_eos": True}))
                for p in PROMPTS
            ]
            await asyncio.sleep(0.1)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(leave())
    assert server.idle()
    assert server.engine.stats.generated_tokens - before < 240 * len(PROMPTS)
    assert server.engine.stats.free_pages == server.engine.stats.num_pages


def test_it_says_which_models_it_has(client):
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).owned_by == "labkernels"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here; this server has 'tiny'"):
        client.completions.create(model="gpt-4", prompt="x")
