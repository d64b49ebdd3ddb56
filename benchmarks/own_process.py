"""A contender of the training benchmark in a process of its own, for what is set or measured for a whole process.

The child answers in JSON, and waits between questions, so that its steps can take turns with those of others.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from fastvq.benchmarks.child import Child
from fastvq.benchmarks.resident import peak_growth
from fastvq.benchmarks.timing import Elapsed, Timing

WARM, WEIGHED = 2, 5  # steps before memory is measured, and in which it is


class Trained(Protocol):
    """What both have in common: the tokenizer's contender and the heatmaps' one."""

    def advance(self) -> Tensor: ...

    def passes(self, last: int) -> dict[str, Timing]: ...

    def wrong_codes(self) -> int: ...


class OwnProcess(Child):
    """The parent's end of a contender; steps, passes and wrong codes as those of the contender itself."""

    def _told(self, what: str) -> Any:
        return json.loads(self.ask(what))

    def advance(self) -> Elapsed:
        """One step, timed inside."""
        return Elapsed(self._told("step"))

    def passes(self, last: int) -> dict[str, Timing]:
        """Its last steps by pass."""
        return {name: Timing(*values) for name, values in self._told(f"passes {last}").items()}

    def wrong_codes(self) -> int:
        """How many rows of a batch get a code that is not the nearest."""
        return int(self._told("wrong"))

    def memory(self) -> tuple[float, float | None]:
        """Milliseconds of a step, and the MiB by which it raises the memory of the process."""
        ms, peak = self._told("memory")
        return ms, peak


def serve(contender: Trained, questions: Iterable[str] = sys.stdin) -> None:
    """Answers until there are no more questions."""
    for line in questions:
        what, *values = line.split()
        answer: Any
        if what == "step":
            answer = milliseconds(contender.advance)
        elif what == "passes":
            answer = contender.passes(int(values[0]))
        elif what == "wrong":
            answer = contender.wrong_codes()
        elif what == "memory":
            answer = memory(contender)
        else:
            raise ValueError(f"a contender knows step, passes, wrong and memory, got {what!r}")
        print(json.dumps(answer), flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    """What a call takes."""
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def memory(contender: Trained) -> tuple[float, float | None]:
    """Milliseconds of a step and the MiB by which it raises this process's memory, after two: medians of five steps.

    What an allocator keeps in reserve differs from step to step by more than two quantizers do.
    """
    for _ in range(WARM):
        contender.advance()
    peaks: list[float | None] = []
    times = [milliseconds(lambda: peaks.append(peak_growth(contender.advance))) for _ in range(WEIGHED)]
    known = [peak for peak in peaks if peak is not None]
    return statistics.median(times), statistics.median(known) if known else None
