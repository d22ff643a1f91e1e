"""The server's refusals, its figures, and its end: each says what is wrong, and none costs a page."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
from tests.llm.server.tiny_server import NAME, engine, model, served, tokenizer

from labkernels.errors import ArgumentError
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.requests import SamplingParams
from labkernels.llm.server import Limits, create_app
from labkernels.llm.server.limits import Gate, Refused
from labkernels.llm.server.loop import EngineLoop

LIMITS = Limits(body_bytes=4000, new_tokens=50, choices=4, queue=2, top_logprobs=5)
ASK = {"model": NAME, "prompt": "the cat", "max_tokens": 4}
SAY = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server():
    with served(engine(max_batch=2), limits=LIMITS, api_key="secret") as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.address, headers={"Authorization": "Bearer secret"}, timeout=30) as made:
        yield made


def error(response: httpx.Response) -> tuple[int, str]:
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return response.status_code, found["message"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "secret", "Basic secret"])
def test_without_the_key_nobody_gets_in_but_to_ask_for_its_health(server, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics"):
        answer = httpx.get(server.address + path, headers=headers)
        assert (
            answer.status_code == 401
            and "the API key is missing or wrong" in answer.text
            and answer.headers["www-authenticate"] == "Bearer"
        )
    assert httpx.post(server.address + "/v1/completions", headers=headers, json=ASK).status_code == 401
    assert httpx.get(server.address + "/health", headers=headers).json() == {"status": "ok", "model": NAME}


def test_openais_client_sends_the_key(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="secret", max_retries=0) as client:
        assert client.completions.create(**ASK).choices
    with (
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(**ASK)


@pytest.mark.parametrize(
    "path, body, says",
    [
        ("completions", {**ASK, "max_tokens": 51}, "max_tokens is 51; this server gives at most 50"),
        ("completions", {**ASK, "max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ("completions", {**ASK, "n": 5}, "asks for 5 answers; this server gives at most 4"),
        ("completions", {**ASK, "prompt": ["x"] * 3, "n": 2}, "asks for 6 answers"),
        ("completions", {**ASK, "prompt": "x " * 600}, "context is 256 tokens; the prompt has"),
        ("completions", {**ASK, "prompt": []}, "prompt"),
        ("completions", {**ASK, "prompt": [9999]}, "a prompt has the token 9999"),
        ("completions", {**ASK, "prompt": ""}, "prompt"),
        ("completions", {**ASK, "logprobs": 6}, "logprobs is 6; this server gives at most 5"),
        ("completions", {**ASK, "temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ("completions", {**ASK, "logit_bias": {"3": 1}}, "logit_bias is not supported"),
        ("completions", {**ASK, "best_of": 3}, "best_of is not supported"),
        ("completions", {**ASK, "echo": True, "logprobs": 1}, "echo with logprobs is not supported"),
        ("completions", {**ASK, "wrong": 3}, "unrecognized request argument: wrong"),
        ("completions", {"model": NAME}, "prompt: Field required"),
        ("chat/completions", {**SAY, "messages": []}, "messages"),
        (
            "chat/completions",
            {**SAY, "messages": [{"role": "cook", "content": "x"}]},
            "Input should be 'system', 'developer', 'user' or 'assistant'",
        ),
        ("chat/completions", {**SAY, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'"),
        ("chat/completions", {**SAY, "tools": [{"type": "function"}]}, "tools is not supported"),
        ("chat/completions", {**SAY, "response_format": {"type": "json_object"}}, "response_format is not supported"),
        ("chat/completions", {**SAY, "top_logprobs": 2}, "top_logprobs needs logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http, path, body, says):
    status, message = error(http.post(f"/v1/{path}", json=body))
    assert status == 400 and says in message


def test_no_json_is_no_json(http):
    assert error(http.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"})) == (400, "the body is not JSON")
    assert error(http.get("/v1/nothing"))[0] == 404 and error(http.get("/v1/completions"))[0] == 405


def test_a_request_that_is_too_long_is_refused_whether_its_length_is_announced_or_not(http):
    assert error(http.post("/v1/completions", content=b" " * 4001)) == (
        413,
        "the request is longer than 4000 bytes, which is this server's limit",
    )
    assert error(http.post("/v1/completions", content=iter([b" " * 1000] * 5)))[0] == 413
    assert (
        http.post(
            "/v1/completions", content=json.dumps(ASK).encode() + b" " * 1000, headers={"Content-Type": "application/json"}
        ).status_code
        == 200
    )


def test_a_full_queue_says_when_to_come_again(server, http):
    held = threading.Event()
    step = server.engine.step
    server.engine.step = lambda: (held.wait(20), step())[1]  # nobody gets further for now
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(http.post("/v1/completions", json={**ASK, "n": 2}))) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 10
        while server.service.loop.open < 4 and time.monotonic() < end:
            time.sleep(0.01)
        refused = http.post("/v1/completions", json=ASK)
    finally:
        held.set()
        server.engine.step = step
    for thread in threads:
        thread.join(20)
    assert error(refused) == (429, "4 answers are under way or waiting already; come again later")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [answer.status_code for answer in answers] == [200, 200] and server.idle()
    assert http.post("/v1/completions", json=ASK).status_code == 200


def test_a_pass_that_fails_is_told_to_those_in_it_and_the_next_are_served(server, http, caplog):
    prefill = server.engine.runner.prefill
    server.engine.runner.prefill = lambda *_: (_ for _ in ()).throw(RuntimeError("planted"))
    try:
        status, message = error(http.post("/v1/completions", json=ASK))
        streamed = http.post("/v1/completions", json={**ASK, "stream": True}).text
    finally:
        server.engine.runner.prefill = prefill
    assert (status, message) == (500, "a pass through the model failed; the server's log says why") and "planted" in caplog.text
    assert '"server_error"' in streamed and "[DONE]" not in streamed
    assert server.idle() and server.engine.stats.free_pages == server.engine.stats.num_pages
    assert http.post("/v1/completions", json=ASK).status_code == 200


def test_the_figures_are_those_of_what_was_served(http, server):
    def figures() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = figures()
    http.post("/v1/completions", json={**ASK, "max_tokens": 7, "ignore_eos": True})
    http.post("/v1/completions", json={**ASK, "max_tokens": 99})
    after = figures()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('labkernels_requests_total{path="/v1/completions",status="200"}') == 1
    assert more('labkernels_requests_total{path="/v1/completions",status="400"}') == 1
    assert more('labkernels_answers_total{reason="length"}') == 1 and more("labkernels_generated_tokens_total") == 7
    assert more("labkernels_prompt_tokens_total") == len(tokenizer().encode(ASK["prompt"]))
    assert (
        more("labkernels_first_token_seconds_count")
        == more("labkernels_answer_seconds_count")
        == more("labkernels_token_seconds_count")
        == 1
    )
    assert after["labkernels_cache_pages_free"] == after["labkernels_cache_pages"] == server.engine.stats.num_pages
    assert after["labkernels_requests_running"] == after["labkernels_requests_waiting"] == 0


@pytest.mark.parametrize("cancels", [True, False])
def test_who_leaves_a_stream_ends_it_and_would_not_without_cancel(server, http, monkeypatch, cancels):
    if not cancels:
        monkeypatch.setattr(EngineLoop, "cancel", lambda *_: None)
    before = server.engine.stats.generated_tokens
    slow = server.engine.step
    server.engine.step = lambda: time.sleep(0.02) or slow()
    try:
        with http.stream("POST", "/v1/completions", json={**ASK, "max_tokens": 50, "stream": True, "ignore_eos": True}) as answer:
            next(answer.iter_lines())
        assert server.idle()
    finally:
        server.engine.step = slow
    assert (server.engine.stats.generated_tokens - before < 50) is cancels


def test_at_the_end_those_in_flight_finish_and_those_who_take_too_long_are_cancelled():
    for grace_s, whole in ((10, True), (0, False)):
        with served(engine(max_batch=2), grace_s=grace_s) as running:
            slow = running.engine.step
            running.engine.step = lambda slow=slow: time.sleep(0.02) or slow()
            with httpx.stream(
                "POST", f"{running.address}/v1/completions", json={**ASK, "max_tokens": 30, "stream": True, "ignore_eos": True}
            ) as answer:
                lines = answer.iter_lines()
                next(lines)
                running.server.should_exit = True
                rest = "".join(lines)
                assert rest.endswith("data: [DONE]") is whole and ("the server is shutting down" in rest) is not whole
            running.thread.join(20)
            assert running.engine.idle and running.engine.stats.free_pages == running.engine.stats.num_pages


def test_who_comes_after_the_engines_thread_has_ended_is_told_so(monkeypatch):
    """Before it is noticed, and after: the order that is in the inbox already, and one that comes later."""
    loop, begin = EngineLoop(engine()), threading.Event()

    def ends(self):
        begin.wait(10)
        raise MemoryError("planted")

    monkeypatch.setattr(EngineLoop, "_take_orders", ends)

    async def ask() -> None:
        loop.open += 1
        with pytest.raises(Refused, match="has ended"):
            await asyncio.wait_for(loop.submit([1, 2], SamplingParams(max_new_tokens=3)), 10)

    async def both() -> None:
        loop.start()
        waiting = asyncio.create_task(ask())
        await asyncio.sleep(0)
        begin.set()
        await waiting
        await ask()
        await loop.stop()

    asyncio.run(both())
    assert loop.open == 0 and not loop.alive and loop.engine.idle


def test_a_request_that_never_ends_is_given_up():
    """Without a server: the gate alone, before an application that must not be reached."""
    sent = []

    async def ask():
        async def receive():
            await asyncio.sleep(30)

        async def send(message):
            sent.append(message)

        gate = Gate(None, Limits(body_s=1))
        await gate({"type": "http", "path": "/v1/completions", "headers": []}, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 408 and b"was not whole after 1 s" in sent[1]["body"]


def test_a_cache_smaller_than_the_context_is_the_limit():
    with served(engine(cache_tokens=64, max_batch=2)) as running:
        answer = httpx.post(
            f"{running.address}/v1/chat/completions", json={**SAY, "max_tokens": None, "temperature": 0, "ignore_eos": True}
        ).json()
        assert answer["usage"]["total_tokens"] == 64
        status, message = error(httpx.post(f"{running.address}/v1/completions", json={**ASK, "max_tokens": 64}))
        assert status == 400 and "this model's context is 64 tokens" in message


def test_an_application_needs_a_tokenizer_and_a_key_that_is_one():
    with pytest.raises(ArgumentError, match="the engine has no tokenizer"):
        create_app(Engine(model(), None, runner="cached"), NAME)
    with pytest.raises(ArgumentError, match="api_key is empty"):
        create_app(engine(), NAME, api_key="")
    with pytest.raises(ArgumentError, match="new_tokens is 0"):
        Limits(new_tokens=0)


def test_the_command_serves_a_folder_until_it_is_told_to_end(tmp_path):
    model().save_pretrained(tmp_path / "tiny")
    tokenizer().save(tmp_path / "tiny")
    command = [sys.executable, "-m", "labkernels", "serve", str(tmp_path / "tiny"), "--port", "0", "--device", "cpu", "--batch-size", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            shown = ""
            while "Uvicorn running on" not in shown:
                assert (line := process.stderr.readline()), shown
                shown += line
            assert f"serving {tmp_path / 'tiny'} as 'tiny': 256 tokens of context, 2 answers at a time" in shown
            address = shown.split("Uvicorn running on ")[1].split()[0]
            assert address.startswith("http://127.0.0.1:")
            with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30) as client:
                want = engine().generate("the cat", 8).text
                assert client.completions.create(model="tiny", prompt="the cat", max_tokens=8, temperature=0).choices[0].text == want
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
