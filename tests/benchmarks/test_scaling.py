"""Scaling: what is not linear is found, streams are never whole in memory, and rows read back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastvq.benchmarks import scaling
from fastvq.benchmarks.measured import unit_cost
from fastvq.benchmarks.rows import Row, read_rows, timed
from fastvq.benchmarks.shapes import Shape
from fastvq.benchmarks.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
ROWS = scaling.AXES["rows"]


def made_up(power: float, peak: float = 1.0, axis: scaling.Axis = ROWS) -> list[Row]:
    """Rows whose time goes with a power of the size, beside those of a peer that is worse."""
    found = []
    for size in axis.sizes:
        for who, exponent in (("", power), ("a peer", power + 1)):
            ms = 1e-3 * size**exponent
            timing, shape = Timing(9, 1.3 * ms, ms, 9 * ms), axis.shape(size)
            found.append(timed(shape, timing, op=axis.op, pass_="scale:N", peer=who, peak_mib=peak))
    return found


def test_a_linear_cost_is_flat_and_a_quadratic_one_is_not():
    assert scaling.faults(ROWS, made_up(1.0)) == []
    assert scaling.faults(ROWS, made_up(0.7)) == []
    (fault,) = scaling.faults(ROWS, made_up(2.0))
    assert "the cost of a row grows 512.00 times, expected at most 1.5" in fault
    assert scaling.faults(ROWS, made_up(1.1))


def test_growth_is_against_the_least_before():
    assert scaling.growth([3.0, 2.0, 1.0]) == 1.0
    assert scaling.growth([3.0, 1.0, 2.0, 1.0]) == 2.0
    assert scaling.growth([1.0]) == 1.0


@pytest.mark.parametrize("letter", ["K", "D", "Q", "G"])
def test_the_cost_of_a_row_is_shared_by_what_grows(letter):
    shape = Shape("", 1, 100, 1, 1)._replace(**{letter: 8})
    assert unit_cost(4.0, letter, shape) == pytest.approx(4e6 / 100 / 8)
    assert unit_cost(4.0, "N", shape) == pytest.approx(4e6 / 100)


def test_a_matrix_of_all_scores_is_too_much_memory():
    size = ROWS.sizes[-1]
    scores = 4 * size * ROWS.base.K / 2**20
    rows = [row for row in made_up(1.0, scores) if size == row.N and not row.peer]
    (fault,) = scaling.faults(ROWS, rows)
    assert f"{scores:.0f} MiB at N = {size:,}" in fault
    stream = scaling.AXES["stream"]
    whole = 4 * scaling.TEN_MILLION * stream.base.D / 2**20
    assert "10,000,000" in scaling.faults(stream, made_up(1.0, whole, stream))[-1]


@pytest.mark.parametrize(("power", "code"), [(1.0, 0), (2.0, 1)])
def test_the_command_fails_where_a_cost_grows(tmp_path, monkeypatch, capsys, power, code):
    monkeypatch.setattr(scaling, "run", lambda axis, memory, *, reps: made_up(power))
    monkeypatch.setattr(scaling, "peaks", lambda key: {})
    path = tmp_path / "scaling.csv"
    assert scaling.main(["--axes", "rows", "--out", str(path)]) == code
    assert len(read_rows(path)) == 2 * len(ROWS.sizes)
    captured = capsys.readouterr()
    assert ("NOT FLAT: nearest, N: the cost of a row grows" in captured.err) == bool(code)
    assert ("Flat" in captured.out) != bool(code)


def test_a_stream_makes_its_rows_block_by_block(monkeypatch):
    monkeypatch.setattr(scaling, "BLOCK", 64)
    stream = scaling.Stream(Shape("", 1, 150, 8, 4))
    blocks = list(stream)
    assert [len(block) for block in blocks] == [64, 64, 22]
    assert len(torch.cat(blocks).unique(dim=0)) == 150
    assert all(torch.equal(first, again) for first, again in zip(blocks, stream, strict=True))
    assert stream.spent > 0


@pytest.mark.parametrize(
    "axis",
    [
        scaling.Axis("N", "nearest", Shape("", 1, 0, 16, 8), (64, 128)),
        scaling.Axis("G", "nearest", Shape("", 0, 64, 16, 8), (1, 2)),
        scaling.Axis("Q", "residual_nearest", Shape("", 1, 64, 16, 8), (1, 3)),
        scaling.Axis("N, stream", "nearest", Shape("", 1, 0, 16, 8), (64, 200), True),
        scaling.Axis("N, stream", "kmeans_stream", Shape("", 1, 0, 16, 8), (64, 200), True),
    ],
    ids=lambda axis: f"{axis.op} {axis.name}",
)
def test_an_axis_is_gated_timed_and_written(axis, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "BLOCK", 48)
    rows = scaling.run(axis, {(axis.sizes[-1], ""): 7.0}, reps=3)
    own = [row for row in rows if not row.peer]
    assert [getattr(row, axis.letter) for row in own] == list(axis.sizes)
    assert [row.peak_mib for row in own] == [None, 7.0]
    assert all(row.gate == "pass" and row.mismatch_rows == 0 and row.median_ms > 0 for row in own)
    assert len(rows) == (2 if axis.stream else 4)
    assert f"{axis.op}, {axis.name} grows" in capsys.readouterr().out


def test_wrong_codes_are_never_timed(monkeypatch):
    monkeypatch.setattr(scaling, "search", lambda x, codebooks, *, residual: torch.zeros(*x.shape[:2], 1).long())
    with pytest.raises(SystemExit, match="not the nearest"):
        scaling.run(scaling.Axis("N", "nearest", Shape("", 1, 0, 16, 8), (64,)), {}, reps=3)


def test_memory_is_that_of_a_process_of_its_own():
    """The peer's matrix of 32 MiB shows, and ours has none; the parent's memory does not count."""
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); import fastvq._checkout; "
        f"fastvq._checkout.install(pathlib.Path({str(ROOT)!r})); from fastvq.benchmarks import scaling; "
        "from fastvq.benchmarks.shapes import Shape; ballast = bytearray(2**28); "
        "scaling.print_peaks(scaling.Axis('N', 'nearest', Shape('', 1, 0, 512, 8), (2**14,)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (size, ours, held), (_, peer, matrix) = map(json.loads, found.stdout.splitlines())
    if held is None:
        pytest.skip("this system keeps no high-water mark of memory")
    assert (size, ours, peer) == (2**14, "", scaling.PEER)
    # Linux counts pages in batches of 64 a thread (proc(5) calls its marks inaccurate): 32 MiB were seen as 31.98.
    assert held < 16 < 31 < matrix < 128
