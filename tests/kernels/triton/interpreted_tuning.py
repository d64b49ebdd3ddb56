"""Tuning under the interpreter, with a clock that is made up."""

import json
import logging

import pytest
import torch

from fastvq.kernels.triton import _configs, _tuned, tuning

CPU = torch.device("cpu")
CASE = tuning.Case("search short 32", 2, 40, 30, 24)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVQ_CACHE_DIR", str(tmp_path))
    _tuned.forget()
    yield tmp_path
    _tuned.forget()


def clock(call):
    """The smaller the tile of rows, the faster; warps do not matter."""
    call()
    return _configs.search(CPU, 24).rows + _configs.search(CPU, 24).codes / 1000


def test_the_fastest_candidate_is_kept_and_used():
    table = _configs.search(CPU, 24)
    (result,) = tuning.tune(CPU, clock, cases=(CASE,), budget=7)
    assert result.before_ms == pytest.approx(table.rows + table.codes / 1000)
    assert result.fields["rows"] == 64
    assert result.best_ms < result.before_ms
    assert result.tried == 7
    used = _configs.search(CPU, 24)
    assert (used.rows, used.depth) == (64, 32)
    assert _configs.search(CPU, 64) == table._replace(depth=64)  # another class


def test_nothing_is_written_where_the_table_is_best(folder):
    (result,) = tuning.tune(CPU, lambda call: 1.0, cases=(CASE,), budget=1)
    assert result.fields == {}
    assert list(folder.iterdir()) == []


def test_other_codes_stop_it(monkeypatch):
    honest = tuning.nearest
    calls = []

    def careless(*arguments):
        indices, distances = honest(*arguments)
        calls.append(1)
        return (indices + 1 if len(calls) > 1 and _configs._overrides else indices), distances

    monkeypatch.setattr(tuning, "nearest", careless)
    with pytest.raises(RuntimeError, match="returned other codes"):
        list(tuning.tune(CPU, lambda call: 1.0, cases=(CASE,), budget=1))
    assert _configs._overrides == {}


def test_what_the_compiler_refuses_is_passed_over(monkeypatch):
    honest = tuning.nearest

    def refusing(*arguments):
        if _configs._overrides:
            raise RuntimeError("out of resource: shared memory")
        return honest(*arguments)

    monkeypatch.setattr(tuning, "nearest", refusing)
    (result,) = tuning.tune(CPU, lambda call: call() and 1.0, cases=(CASE,), budget=3)
    assert (result.tried, result.refused, result.fields) == (3, 3, {})


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": "fastvq-tuning/0"}', '{"format": "fastvq-tuning/1"}']
    + [
        json.dumps({"format": "fastvq-tuning/1", "configurations": {"search long": {n: v}}})
        for n, v in (("rows", 0), ("rows", "64"), ("speed", 3), ("stages", True))
    ],
)
def test_damaged_files_are_left_aside_with_a_warning(text, caplog):
    file = _tuned.path(CPU)
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with caplog.at_level(logging.WARNING, logger="fastvq"):
        assert _tuned.fields(CPU, "search long") == {}
        assert _tuned.fields(CPU, "search long") == {}
    assert len(caplog.records) == 1
    assert "run `fastvq tune` again" in caplog.text


def test_a_case_of_every_class():
    for case in tuning.CASES:
        small = case._replace(groups=min(case.groups, 2), rows=70, codes=40)
        with _configs.overridden(case.key, {"rows": 64}):
            x, codes = tuning.data(small, CPU)
            found = tuning.nearest(x, codes, None)[0]
        assert found.shape == (small.groups, 1, 70)
