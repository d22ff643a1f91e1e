"""A judge whose candidate runs in a process of its own: one that hangs or crashes fails its check, and the notebook goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from labkernels.lab.failure import CheckFailed
from labkernels.lab.judge import ENDED, Case, Judge
from labkernels.lab.worker import CannotBeSent, ChildDied, NoAnswer, Worker, worker

SANITIZER_FACTOR = 3  # for a small case under the sanitizer: the emulator compiles there, and has a time limit of its own for each launch


@contextmanager
def judge_apart(judge: Judge, time_limit_s: float) -> Iterator[JudgeApart]:
    """Inside, `judge` works in a process of its own. ArgumentError, with the way out, if its candidate cannot be sent there."""
    with worker.session(judge.device) as session:
        try:
            session.call(_install, replace(judge, apart=True))
        except CannotBeSent as error:
            raise error.naming("check", judge.candidate.name) from error
        yield JudgeApart(session, time_limit_s)


@dataclass(frozen=True)
class JudgeApart:
    """Does what `Judge` does. Raises CheckFailed also when there is no result in time, or no process any more to give it."""

    session: Worker
    time_limit_s: float

    def sanitize(self, case: Case) -> str | None:
        return self._ask("sanitize", case, time_limit_s=SANITIZER_FACTOR * self.time_limit_s)

    def judge(self, case: Case, repeat: bool) -> str | None:
        return self._ask("judge", case, repeat, time_limit_s=self.time_limit_s)

    def _ask(self, method: str, case: Case, *args, time_limit_s: float):
        try:
            return self.session.call(_ask, method, case, *args, time_limit_s=time_limit_s)
        except NoAnswer:
            hint = f"Is there a loop without an end? If it only needs longer than {time_limit_s:g} s: check(..., time_limit_s=...)."
            raise CheckFailed("exception", got=f"no result within {time_limit_s:g} s", case=str(case), detail=ENDED, hint=hint) from None
        except ChildDied as error:
            raise CheckFailed("exception", got=f"the end of its process, {error}", case=str(case), detail=ENDED) from None


# ---- in the other process -------------------------------------------------------------------------------------------

_judge: Judge | None = None


def _install(judge: Judge) -> None:
    global _judge
    _judge = judge


def _ask(method: str, *args):
    return getattr(_judge, method)(*args)
