"""Timing that can be believed: contenders take turns, so that a busy moment hits all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds over the turns that ``reps`` calls took place in: each turn is worth its fastest call."""

    reps: int
    median_ms: float
    p20_ms: float
    p80_ms: float


class Elapsed(NamedTuple):
    """Milliseconds that a contender measured itself, in a process of its own."""

    ms: float


BURST = 10
LEAST = 6
Measure = Callable[[Callable[[], object]], float]


def wall_ms(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes by the clock on the wall."""
    start = time.perf_counter()
    result = call()
    elapsed = 1e3 * (time.perf_counter() - start)
    return result.ms if isinstance(result, Elapsed) else elapsed


def event_measure(device: str) -> Measure:
    """Milliseconds between two events on the device, its second-level cache written over before each call."""
    wipe = torch.empty(2**28, dtype=torch.int8, device=device)

    def measure(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wipe.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    reps: int = 9,
    seconds: float = 20.0,
    burst: float = 0.0,
    steady: float = 0.0,
    measure: Measure = wall_ms,
) -> dict[str, Timing]:
    """Times each contender ``reps`` times, one turn of each per round, after one warm-up round.

    Args:
        contenders: name -> what to call; one that returns :class:`Elapsed` is taken at its word.
        reps: rounds; at least three are run.
        seconds: no further round begins after this long.
        burst: a turn repeats calls for so many seconds, at least twice and at most :data:`BURST` times, each timed by
            itself; the fastest counts, since what else runs on a machine can only add to a time. 0: one call a turn.
        steady: no further round begins after :data:`LEAST` either, once the standard error of every contender's
            ratio to the first one is below this; 0: rounds go on.
        measure: what a call takes, in milliseconds.

    Returns:
        name -> timing.
    """
    turns: dict[str, list[list[float]]] = {name: [] for name in contenders}
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(2, min(BURST, int(1e3 * burst / max(measure(call), 1e-3)))) if burst else 1
    begin = time.perf_counter()
    for turn in range(reps):
        for name, call in contenders.items():
            turns[name].append([measure(call) for _ in range(calls[name])])
        if turn >= 2 and time.perf_counter() - begin > seconds:
            break
        if steady and turn + 1 >= LEAST and _ratio_error([*turns.values()]) < steady:
            break
    timings = {}
    for name, taken in turns.items():
        fastest = [min(turn) for turn in taken]
        fifths = statistics.quantiles(fastest, n=5, method="inclusive")
        timings[name] = Timing(sum(map(len, taken)), statistics.median(fastest), fifths[0], fifths[3])
    return timings


def _ratio_error(turns: Sequence[Sequence[Sequence[float]]]) -> float:
    """The largest standard error of a contender's median ratio to the first one, as a share of it."""
    ours, *others = ([math.log(max(min(calls), 1e-9)) for calls in taken] for taken in turns)
    logs = [[theirs - own for theirs, own in zip(other, ours, strict=True)] for other in others]
    # The median of n normal numbers strays sqrt(pi / 2) times as far as their mean.
    return max((math.sqrt(math.pi / 2 / len(ratio)) * statistics.stdev(ratio) for ratio in logs), default=0.0)
