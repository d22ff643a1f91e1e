"""A child process serves many requests, and whatever becomes of it, this process is told and goes on."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from labkernels.child_process import ChildDied, ChildProcess, NoAnswer, serve_requests


def serve() -> None:
    """In the child: each request is Python that computes its answer."""

    def answer(request: bytes, descriptors: list[int]) -> bytes:
        names = {"descriptors": descriptors}
        exec(request.decode(), {"os": os, "time": time, "signal": signal}, names)
        return str(names.get("result")).encode()

    serve_requests(answer)


@pytest.fixture
def child():
    child = ChildProcess("tests.test_child_process:serve", relay=True)
    yield child
    child.stop()


def ask(child: ChildProcess, code: str, **options) -> str:
    return child.call(code.encode(), **options).decode()


def runs(process: int) -> bool:
    """Is there such a process, and is it more than an entry that nobody has asked about yet?"""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_child_serves_many_requests(child):
    first = int(ask(child, "result = os.getpid()"))
    assert first != os.getpid() and int(ask(child, "result = os.getpid()")) == first


def test_an_answer_may_be_long(child):
    assert ask(child, "result = 'ab' * 3_000_000") == "ab" * 3_000_000


def test_an_open_file_goes_with_a_request(child, tmp_path):
    with open(tmp_path / "seen", "w+b") as file:
        ask(child, "os.write(descriptors[0], b'written there')", descriptors=[file.fileno()])
        file.seek(0)
        assert file.read() == b"written there"


def test_what_it_prints_is_seen_here_while_it_runs(child, capsys):
    ask(child, "os.write(1, 'before ä, '.encode()); print('and after')")
    assert capsys.readouterr().out == "before ä, and after\n"


def test_what_it_printed_before_it_died_is_seen(child, capsys):
    with pytest.raises(ChildDied):
        ask(child, "print('last words', flush=True); os.abort()")
    assert "last words\n" in capsys.readouterr().out


@pytest.mark.parametrize("end, cause", [
    ("os.abort()", "SIGABRT: Aborted"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV: Segmentation fault"),
    ("os._exit(3)", "it ended with status 3"),
])  # fmt: skip
def test_a_death_is_told_and_the_next_request_has_a_new_child(child, end, cause):
    before = ask(child, "result = os.getpid()")
    with pytest.raises(ChildDied, match=cause) as raised:
        ask(child, end)
    assert not isinstance(raised.value, NoAnswer)
    assert ask(child, "result = os.getpid()") != before


def test_one_that_was_killed_between_requests_is_replaced(child):
    process = int(ask(child, "result = os.getpid()"))
    os.kill(process, signal.SIGKILL)
    time.sleep(0.2)
    assert ask(child, "result = os.getpid()") != str(process)


def test_no_answer_in_time_ends_it_and_what_it_started(child):
    started = "import subprocess; sleep = subprocess.Popen(['sleep', '60']); result = f'{os.getpid()} {sleep.pid}'"
    process, sleep = map(int, ask(child, started).split())
    assert runs(process) and runs(sleep)
    begun = time.monotonic()
    with pytest.raises(NoAnswer, match="no answer within 0.5 s"):
        ask(child, "time.sleep(60)", time_limit_s=0.5)
    assert time.monotonic() - begun < 3
    time.sleep(0.1)
    assert not runs(process) and not runs(sleep)


def test_one_that_prints_for_ever_is_ended_in_time_too(child, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=seen.append, flush=lambda: None))
    begun = time.monotonic()
    with pytest.raises(NoAnswer):
        ask(child, "while True: os.write(1, b'again and again ' * 1000)", time_limit_s=1)
    assert time.monotonic() - begun < 4 and len("".join(seen)) > 100_000


def test_a_letter_of_two_bytes_may_come_in_two_parts(child, capsys):
    ask(child, "letter = 'ä'.encode(); os.write(1, letter[:1]); time.sleep(0.3); os.write(1, letter[1:]); time.sleep(0.3); os.write(1, b'!' * 200_000)")
    assert capsys.readouterr().out == "ä" + "!" * 200_000


def test_interrupting_ends_it(child, request):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever tests before this one have left
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    process = int(ask(child, "result = os.getpid()"))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ask(child, "time.sleep(60)")
    assert not runs(process)
    assert ask(child, "result = 1 + 1") == "2"


def test_a_request_made_while_an_error_is_handled_keeps_the_child(child):
    before = ask(child, "result = os.getpid()")
    try:
        raise ValueError
    except ValueError:
        ask(child, "result = 1")
    assert ask(child, "result = os.getpid()") == before


def test_a_child_that_cannot_start_says_why():
    with pytest.raises(ChildDied, match=r"could not be started: (.|\n)*No module named 'no_such_module'"):
        ChildProcess("no_such_module:serve", relay=True).call(b"")


def test_one_that_closes_its_output_still_answers(child):
    assert ask(child, "os.close(1); os.close(2); time.sleep(0.2); result = 5") == "5"
