"""Operations of a warp for the simulator: shuffles, votes, matches and `syncwarp`, among 32 neighbouring threads of a block.

Each lane brings what it has, waits for the others of its mask, and goes on with its answer (`Block.wait`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from labkernels.cuda.numba_strict.arrays import poison

FULL_WARP = 0xFFFFFFFF


def _among_lanes(what: str, mask: int, brings, answer: Callable[[dict], dict] | None):
    thread = threading.current_thread()
    return thread._manager.wait(thread, what, int(mask) & FULL_WARP, brings, answer)


def _shuffle(source: Callable[[int, int], int]):
    """What makes of {lane: (value, operand)} each lane's result. Outside the warp a lane keeps its own value, as on a GPU."""

    def answer(lanes: dict) -> dict:
        results = {}
        for lane, (value, operand) in lanes.items():
            other = source(lane, int(operand))
            results[lane] = value if not 0 <= other < 32 else lanes[other][0] if other in lanes else _nobodys(value)
        return results

    return answer


def _nobodys(value):
    """What a shuffle reads from a lane that takes no part: a GPU gives anything, this shows."""
    return type(value)(poison(np.asarray(value).dtype))


_FROM, _UP = _shuffle(lambda lane, source: source % 32), _shuffle(lambda lane, delta: lane - delta)
_DOWN, _XOR = _shuffle(lambda lane, delta: lane + delta), _shuffle(lambda lane, bits: lane ^ bits)


def shfl_sync(mask, value, src_lane):
    return _among_lanes("shfl_sync", mask, (value, src_lane), _FROM)


def shfl_up_sync(mask, value, delta):
    return _among_lanes("shfl_up_sync", mask, (value, delta), _UP)


def shfl_down_sync(mask, value, delta):
    return _among_lanes("shfl_down_sync", mask, (value, delta), _DOWN)


def shfl_xor_sync(mask, value, lane_mask):
    return _among_lanes("shfl_xor_sync", mask, (value, lane_mask), _XOR)


def syncwarp(mask=FULL_WARP) -> None:
    _among_lanes("syncwarp", mask, None, None)


def _all_told(decide: Callable[[dict], object]):
    return lambda lanes: dict.fromkeys(lanes, decide(lanes))


def _lanes_where(lanes: dict, is_so: Callable) -> int:
    return sum(1 << lane for lane, value in lanes.items() if is_so(value))


_BALLOT, _ANY = _all_told(lambda lanes: _lanes_where(lanes, bool)), _all_told(lambda lanes: any(lanes.values()))
_ALL, _EQ = _all_told(lambda lanes: all(lanes.values())), _all_told(lambda lanes: len({bool(value) for value in lanes.values()}) == 1)


def ballot_sync(mask, predicate) -> int:
    return _among_lanes("ballot_sync", mask, predicate, _BALLOT)


def any_sync(mask, predicate) -> bool:
    return _among_lanes("any_sync", mask, predicate, _ANY)


def all_sync(mask, predicate) -> bool:
    return _among_lanes("all_sync", mask, predicate, _ALL)


def eq_sync(mask, predicate) -> bool:
    return _among_lanes("eq_sync", mask, predicate, _EQ)


def _match_any(lanes: dict) -> dict:
    return {lane: _lanes_where(lanes, lambda other, value=value: other == value) for lane, value in lanes.items()}


def _match_all(lanes: dict) -> dict:
    same = len(set(lanes.values())) == 1
    return dict.fromkeys(lanes, (_lanes_where(lanes, lambda value: True) if same else 0, same))


def match_any_sync(mask, value) -> int:
    return _among_lanes("match_any_sync", mask, value, _match_any)


def match_all_sync(mask, value) -> tuple[int, bool]:
    return _among_lanes("match_all_sync", mask, value, _match_all)


def lanemask_lt() -> int:
    """The lanes below one's own."""
    return (1 << threading.current_thread().thread_id % 32) - 1


OPERATIONS = (
    shfl_sync,
    shfl_up_sync,
    shfl_down_sync,
    shfl_xor_sync,
    syncwarp,
    ballot_sync,
    any_sync,
    all_sync,
    eq_sync,
    match_any_sync,
    match_all_sync,
    lanemask_lt,
)
