"""Predictions: the reader says a number before measuring it, and is told how far off it is, but not what it is.

The answers are in `labkernels/classroom/answers/`, one file a lab.
"""
from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from labkernels.classroom import answers
from labkernels.errors import ArgumentError
from labkernels.lab.failure import CheckFailed


@dataclass(frozen=True)
class Prediction:
    """What a prediction asks for, and what is right.

    `answer` holds numbers or words, or is a function that gives them from the lab's sizes (keywords of `check_prediction`).
    `asks` says in words what each one is. `tolerance` is relative: 0.1 accepts what is within 10%. `hint` is shown when one is
    wrong or missing, but not before the first attempt; it explains how to think of it and does not give it away.
    """

    answer: tuple | Callable[..., tuple]
    asks: tuple[str, ...]
    hint: str
    unit: str = ""
    tolerance: float = 0.0

    def right(self, sizes: dict) -> tuple:
        """The right answers for these sizes, one for each of `asks`."""
        return tuple(self.answer(**sizes)) if callable(self.answer) else tuple(self.answer)


def check_prediction(name: str, *given, **sizes) -> None:
    """Compare `given`, numbers or words, with the answer that the labs know as `name`, for these `sizes`.

    Prints one line if all are right. Raises CheckFailed, reason "not_written" where one is still None, "mismatch" where one is
    wrong, saying how far off it is; ArgumentError if there is no such prediction or the number of answers is another.
    """
    known = load_predictions()
    if name not in known:
        raise ArgumentError(f"no prediction is called {name!r}; there are {', '.join(sorted(known)) or 'none'}")
    judge(name, known[name], given, sizes)


def judge(name: str, prediction: Prediction, given: tuple, sizes: dict) -> None:
    """`check_prediction` for a prediction at hand."""
    if len(given) != len(prediction.asks):
        raise ArgumentError(f"{name}: {len(given)} answers, but it asks for {len(prediction.asks)}: {', '.join(prediction.asks)}")
    right = prediction.right(sizes)
    for asked, got, want in zip(prediction.asks, given, right):
        if _missing(got):
            raise CheckFailed("not_written", where=f"{name}: {asked}", got="nothing yet", want="your prediction", hint=None if all(map(_missing, given)) else prediction.hint)
        complaint = _complaint(got, want, prediction)
        if complaint:
            raise CheckFailed("mismatch", where=f"{name}: {asked}", got=_shown(got, prediction.unit), want=complaint, hint=prediction.hint)
    agreed = ", ".join(f"{asked}: {_shown(got, prediction.unit)}" for asked, got in zip(prediction.asks, given))
    print(f"{name}: right. {agreed[:1].upper()}{agreed[1:]}.")


@cache
def load_predictions() -> dict[str, Prediction]:
    """All predictions of all labs, by name; a name that two labs use is an error."""
    known: dict[str, Prediction] = {}
    for module in pkgutil.iter_modules(answers.__path__):
        for name, prediction in importlib.import_module(f"{answers.__name__}.{module.name}").PREDICTIONS.items():
            if name in known:
                raise ArgumentError(f"{module.name}: another lab has a prediction called {name!r}")
            known[name] = prediction
    return known


def _missing(answer) -> bool:
    return answer is None or answer is Ellipsis


def _complaint(got, want, prediction: Prediction) -> str | None:
    """What to say of a wrong answer, None for a right one."""
    if isinstance(want, str):
        return None if str(got).strip().casefold() == want.casefold() else "another answer"
    try:
        number = float(got)
    except (TypeError, ValueError):
        return "a number"
    if abs(number - want) <= prediction.tolerance * abs(want) + 1e-12 * abs(want):
        return None
    if not math.isfinite(number) or number * want <= 0:
        return "a positive number" if want > 0 else "a negative number" if want < 0 else "another number"
    factor = number / want
    if factor > 1.005:
        return f"a number {_less(factor)} smaller"
    return f"a number {_more(1 / factor)} larger" if factor < 0.995 else "a slightly different number"


def _less(factor: float) -> str:
    return _times(factor) if factor >= 1.1 else f"{100 * (1 - 1 / factor):.0f}%"


def _more(factor: float) -> str:
    return _times(factor) if factor >= 1.1 else f"{100 * (factor - 1):.0f}%"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.2g} times"


def _shown(answer, unit: str) -> str:
    if isinstance(answer, str):
        return answer
    try:
        number = float(answer)
    except (TypeError, ValueError):
        return repr(answer)
    whole = number.is_integer() and abs(number) < 1e15
    return f"{number:,.0f} {unit}".strip() if whole else f"{number:,.6g} {unit}".strip()
