"""One op at one shape: what ours is asked, what the peers are asked, and when an answer is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastvq.benchmarks.faiss_process import Faiss

Call = Callable[[], Any]


class Contest(NamedTuple):
    """Contenders that start from the same data.

    ``ours``: precision -> call; "exact" (or "" where an op has no precision) comes first and must not be wrong.
    ``peers``: name -> call. ``wrong``: of a contender's name and the result of its first call, how many rows differ
    from what is right. ``faiss``: starts FAISS's process, whose result ``wrong`` judges too.
    """

    ours: Mapping[str, Call]
    peers: Mapping[str, Call]
    wrong: Callable[[str, Any], int]
    faiss: Callable[[], Faiss] | None = None
