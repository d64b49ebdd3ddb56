"""Timing that can be believed: contenders take turns, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds over ``reps`` calls."""

    reps: int
    median_ms: float
    p20_ms: float
    p80_ms: float


class Elapsed(NamedTuple):
    """Milliseconds that a contender measured itself, in a process of its own."""

    ms: float


BURST = 10
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
    measure: Measure = wall_ms,
) -> dict[str, Timing]:
    """Times each contender ``reps`` times, one call of each per round, after one warm-up round.

    Args:
        contenders: name -> what to call; one that returns :class:`Elapsed` is taken at its word.
        reps: rounds; at least three are run.
        seconds: no further round begins after this long.
        burst: a turn repeats short calls for so many seconds, at most :data:`BURST` of them, each timed by itself, so
            that they are no fewer for being next to a long one.
        measure: what a call takes, in milliseconds.

    Returns:
        name -> timing.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(1, min(BURST, int(1e3 * burst / max(measure(call), 1e-3)))) if burst else 1
    begin = time.perf_counter()
    for turn in range(reps):
        for name, call in contenders.items():
            taken[name] += [measure(call) for _ in range(calls[name])]
        if turn >= 2 and time.perf_counter() - begin > seconds:
            break
    timings = {}
    for name, values in taken.items():
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        timings[name] = Timing(len(values), statistics.median(values), fifths[0], fifths[3])
    return timings
