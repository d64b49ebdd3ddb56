"""The registry under pytest-benchmark: a group for each case, a benchmark for each contender, after its gate.

``pytest benchmarks/`` takes toy sizes, ``pytest benchmarks/ --full`` the registry's. FAISS, in a process of its own,
takes part in ``fastvq bench`` only, as do times taken in turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is in the bench extra")

from fastvq.benchmarks import registry, run
from fastvq.benchmarks.contest import Contest

CASES = {case.name: case for case in registry.cases()}


@functools.lru_cache(maxsize=1)
def contest(name: str, full: bool) -> Contest:
    """The contest of a case, kept for its contenders, which follow each other."""
    torch.compiler.reset()
    case = CASES[name] if full else CASES[name].small()
    return case.prepare(compiled=full)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every contender of every case; who takes part is asked at toy sizes, where that takes a moment."""
    compiled = metafunc.config.getoption("--full")
    found = []
    for name, case in CASES.items():
        some = case.small().prepare(compiled=compiled)
        ours = [(name, "fastvq", precision) for precision in some.ours]
        found += ours + [(name, peer, "") for peer in some.peers]
    names = ["-".join(parts).strip("-") for parts in found]
    metafunc.parametrize(("case", "contender", "precision"), found, ids=names)


def test_contender(
    case: str, contender: str, precision: str, benchmark: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    """Judges one result, and times the next."""
    full = request.config.getoption("--full")
    given = contest(case, full)
    own = contender == "fastvq"
    call = given.ours[precision] if own else given.peers[contender]
    wrong = given.wrong("" if own else contender, call())
    assert not (own and precision != "fast" and wrong), f"{wrong} rows of ours are wrong"
    benchmark.group = case  # type: ignore[attr-defined]
    benchmark.extra_info.update(wrong_rows=wrong)  # type: ignore[attr-defined]
    if full:
        benchmark.extra_info["floor_ms"] = run.floor(CASES[case], "cpu")[0]  # type: ignore[attr-defined]
    benchmark(call)
