"""Who is in which pass of an engine, as lk.draw.batch_timeline draws it.

    requests, rows, pages = watched(engine, {"A": (0, prompt, 9), "B": (3, other, 5)})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.requests import Request, SamplingParams


def watched(engine: Engine, arrivals: Mapping[str, tuple[int, Sequence[int], int]]) -> tuple[dict[str, Request], dict[str, str], list[int]]:
    """Step the idle `engine` until all are answered. Of each the pass before which it comes, its prompt and the tokens of its answer.

    The requests; of each a letter a pass: "w" waits, "p" reads its prompt, "d" gets a token, "x" gave its pages back, " " not there; and how many pages
    are held after each pass.
    """
    requests, rows, pages = {}, {}, []
    while not engine.idle or len(requests) < len(arrivals):
        for name, (when, prompt, answer) in arrivals.items():
            if when == len(pages):
                requests[name] = engine.submit(prompt, SamplingParams(max_new_tokens=answer, ignore_eos=True))
                rows[name] = " " * when
        before = {name: (each.state, each.preemptions, len(each.tokens)) for name, each in requests.items()}
        engine.step()
        for name, each in requests.items():
            rows[name] += _letter(each, *before[name])
        pages.append(engine.stats.num_pages - engine.stats.free_pages)
    return requests, rows, pages


def _letter(request: Request, state: str, preemptions: int, tokens: int) -> str:
    if request.preemptions > preemptions:
        return "x"
    if len(request.tokens) == tokens:
        return " " if state == "finished" else "w"
    return "p" if state == "waiting" else "d"
