"""The registry at toy sizes: every case runs, and a kernel that is wrong or slow does not pass."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("vector_quantize_pytorch", reason="the peer is in the bench extra")

from fastvq import functional as F
from fastvq.benchmarks import compare, gate, machine, peers, registry, resident, run, table
from fastvq.benchmarks.rows import COLUMNS, MOVED, as_text, read_rows

ROOT = Path(__file__).resolve().parent.parent.parent

QUICK = run.Settings(reps=3, seconds=1.0, compiled=False, quick=True)
CASES = registry.cases()


def one(op: str) -> registry.Case:
    """The first case of an op, at a toy size."""
    return next(case for case in CASES if case.op.name == op).small()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_every_case_runs_and_every_contender_agrees(case):
    small = case.small()
    contest = small.prepare(compiled=False)
    assert contest.peers
    for name, call in contest.ours.items():
        assert contest.wrong("", call()) == 0, name
    for name, call in contest.peers.items():
        # Toy sizes leave close calls to chance, but a contender that computes something else is wrong everywhere.
        assert contest.wrong(name, call()) <= 0.2 * small.shape.N * small.shape.G, name


def test_the_registry_has_every_op_and_the_shapes_of_the_seeds():
    assert {case.op.name for case in CASES} >= {
        *gate.OPERATIONS,
        "kmeans",
        "VectorQuantize",
        "GroupedVQ",
        "ResidualVQ",
    }
    sizes = {(shape.G, shape.K, shape.D, shape.Q) for _, shape in CASES}
    seeds = {
        (1, 392, 512, 70),
        (1, 64, 512, 2),
        (1, 512, 512, 6),
        (64, 512, 8, 1),
        (1, 128, 256, 1),
        (1, 1024, 256, 1),
    }
    codecs = {(1, 1024, 128, 8), (1, 1024, 8, 9), (1, 2048, 256, 32)}
    assert sizes >= seeds | codecs | {(1, 8192, 32, 1), (1, 65536, 8, 1)}
    assert all(case.op.io_bytes(case.shape) > 0 and case.op.operations(case.shape) > 0 for case in CASES)
    assert all(case.op.io_bytes(case.shape) > 0 for case in registry.cases("cuda"))


def test_names_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="no op neares in the registry: choose from"):
        registry.cases(ops=["neares"])
    with pytest.raises(ValueError, match="none of the ops GroupedVQ is measured at a"):
        registry.cases(ops=["GroupedVQ"], shapes=["a"])


def test_floors_are_those_of_the_arithmetic(monkeypatch):
    monkeypatch.setattr(machine, "fma_rate", lambda: 500e9)
    monkeypatch.setattr(machine, "copy_rate", lambda size: 50e9)
    found = {case.name: run.floor(case, "cpu") for case in CASES}
    assert found["nearest a"] == (pytest.approx(1e3 * 2 * 8192 * 512 * 512 / 500e9), "float32 multiply-adds")
    # 8,192 rows of 512 floats, an index each, 512 sums and counts.
    size = 4 * 8192 * 512 + 8 * 8192 + 4 * 512 * 513
    assert found["segment_sum a"] == (pytest.approx(1e3 * size / 50e9), "bytes copied")
    monkeypatch.setattr(machine, "cuda_product_rate", lambda device: 990e12)
    monkeypatch.setattr(machine, "cuda_copy_rate", lambda device: 4.8e12)
    # 2 N K D operations at 990 TFLOP/s: 1.11 ms for a million rows, three times that for float32 accuracy.
    search = registry.cases("cuda", ["nearest"], ["1M x 8192 x 64"])[0]
    assert run.floor(search, "cuda")[0] == pytest.approx(3 * 1.11, rel=0.01)


def _moved(_, codebook, *rest, **keywords):
    codebook[..., 0, 0] += 0.01


WRONG = {
    "nearest": lambda found, *_, **__: F.Nearest(found.indices.roll(1, -1), found.distances),
    "residual_nearest": lambda found, *_, **__: found._replace(indices=found.indices.flip(-1)),
    "segment_sum": lambda found, *_, **__: F.SegmentSum(found.sums * 1.001, found.counts),
    "residual_segment_sum": lambda found, *_, **__: F.SegmentSum(found.sums, found.counts + 1),
    "lookup": lambda found, *_, **__: found + 1e-6,
    "ema_update_": _moved,
}


def spoil(monkeypatch, op, change):
    """Puts a change behind our op; the oracle, asked for as impl="tiled", stays right."""
    right = getattr(F, op)

    def spoilt(*arguments, impl="auto", **keywords):
        found = right(*arguments, impl=impl, **keywords)
        return found if impl == "tiled" else change(found, *arguments, **keywords)

    monkeypatch.setattr(F, op, spoilt)


@pytest.mark.parametrize(
    ("op", "case"),
    [
        *((op, op) for op in WRONG),
        ("nearest", "nearest_topk"),
        ("nearest", "kmeans"),
        ("nearest", "VectorQuantize"),
        ("segment_sum", "GroupedVQ"),
        ("ema_update_", "GroupedVQ"),
        ("residual_segment_sum", "ResidualVQ"),
    ],
)
def test_a_wrong_kernel_is_not_timed(op, case, monkeypatch):
    spoil(monkeypatch, op, WRONG[op])
    timed = []
    monkeypatch.setattr(run, "interleave", lambda calls, **_: timed.append(calls))
    with pytest.raises(run.GateError, match=f"{case} .* rows of ours are wrong"):
        run.run_case(one(case), QUICK)
    assert timed == []


def test_a_peer_that_cannot_run_is_left_out_and_named(monkeypatch, caplog):
    def full(*_):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(peers, "cdist", full)
    rows = run.run_case(one("nearest"), QUICK)
    assert "nearest a (toy): torch cdist is left out: out of memory" in caplog.text
    assert [row.peer for row in rows][:4] == ["", "", "torch textbook", "torch baddbmm"]
    assert "torch cdist" not in {row.peer for row in rows}


def test_an_interrupt_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    right = run.run_case

    def stop(case, *arguments, **keywords):
        if case.op.name == "lookup":
            raise KeyboardInterrupt
        return right(case, *arguments, **keywords)

    monkeypatch.setattr(run, "run_case", stop)
    path = tmp_path / "rows.csv"
    assert run.main(["--quick", "--ops", "segment_sum", "lookup", "--shapes", "c", "--out", str(path)]) == 130
    assert "1 of 2 cases" in capsys.readouterr().out
    assert {row["op"] for row in read_rows(path)} == {"machine", "segment_sum"}


def test_a_wrong_kernel_fails_the_command_and_leaves_no_row(monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, "segment_sum", WRONG["segment_sum"])
    path = tmp_path / "rows.csv"
    options = ["--quick", "--ops", "segment_sum", "lookup", "--shapes", "c", "--out", str(path)]
    assert run.main(options) == 1
    assert "GATE FAILED, not timed: segment_sum c" in capsys.readouterr().out
    assert {row["op"] for row in read_rows(path)} == {"machine", "lookup"}


def test_a_slowed_kernel_is_told_from_the_committed_rows(monkeypatch, capsys):
    """At the size of the rows that are in the repository: 50 ms more, where a search takes about one."""
    committed = read_rows(ROOT / "benchmarks" / "results" / "cpu" / "registry.csv")
    case = registry.cases(ops=["nearest"], shapes=["s2-128"])[0]

    def slowed(found, *_, **__):
        time.sleep(0.05)
        return found

    spoil(monkeypatch, "nearest", slowed)
    rows = as_text(run.run_case(case, QUICK))
    late = compare.slower(compare.moves(committed, rows))
    assert [(op, shape) for op, shape, _ in late] == [("nearest", "s2-128")]
    assert late[0][2] < 0.5


def row(contender="", ms=1.0, *, shape="a", run_id="1", floor="0.5", spread=1.0, peak="1", device="one"):
    """A row as a CSV file holds it."""
    values = dict.fromkeys(COLUMNS, "") | {"op": "nearest", "shape": shape, "run_id": run_id, "device": device}
    values |= {"peer": contender, "precision": "" if contender else "exact", "floor_ms": floor, "peak_mib": peak}
    return values | {"median_ms": str(ms), "p20_ms": str(ms), "p80_ms": str(ms * spread), "mismatch_rows": "0"}


def compared(tmp_path, before, after):
    with (tmp_path / "out").open("w") as file:
        code = compare.show(before, after, Console(file=file, width=120, highlight=False))
    return code, (tmp_path / "out").read_text()


def test_a_slower_machine_moves_nothing(tmp_path):
    before = [row(), row("faiss", 3), row("torch cdist", 4)]
    after = [row(ms=2, floor="1"), row("faiss", 6), row("torch cdist", 8)]
    code, text = compared(tmp_path, before, after)
    assert (code, "What moved" in text) == (0, False)
    assert "3 ratios; of 3 that computing bounds 3 agree within 15%." in text


def test_ours_slowed_is_told_from_a_peer_that_changed(tmp_path):
    before = [row(), row("faiss", 3), row("torch cdist", 4)]
    code, text = compared(tmp_path, before, [row(), row("faiss", 1.5), row("torch cdist", 4)])
    assert (code, "SLOWER" in text, "-50%" in text) == (0, False, True)
    code, text = compared(tmp_path, before, [row(ms=1.5), row("faiss", 3), row("torch cdist", 4)])
    assert code == 1
    assert "SLOWER: nearest a has 67% of the speed" in text
    code, text = compared(tmp_path, before, [row(ms=1.5, device="other"), row("faiss", 3, device="other")])
    assert code == 0
    assert "Nothing is judged" in text


def test_only_the_last_run_of_a_case_counts(tmp_path):
    before = [row(ms=9), row("faiss", 3), row(run_id="2"), row("faiss", 3, run_id="2")]
    assert compared(tmp_path, before, [row(), row("faiss", 3)])[0] == 0


def test_swinging_rows_are_not_counted_as_steady(tmp_path):
    before = [row(), row("faiss", 3), row("torch cdist", 4, peak="500"), row("torch textbook", 4, spread=1.5)]
    assert "of 2 that computing bounds 2 agree" in compared(tmp_path, before, before)[1]


def test_ratios_of_an_op_whose_floor_is_memory_are_not_counted_as_steady(tmp_path):
    moved = [case | {"floor_kind": MOVED} for case in (row(), row("faiss", 3))]
    computed = [row(shape="b"), row("faiss", 3, shape="b")]
    assert "4 ratios; of 2 that computing bounds 2 agree" in compared(tmp_path, moved + computed, moved + computed)[1]
    assert table.quantiles(moved[1]) == "3 to 3"


def test_runs_with_nothing_in_common_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no op, shape and contender in common"):
        compared(tmp_path, [row(), row("faiss")], [row(shape="b"), row("faiss", shape="b")])


def test_a_win_over_the_default_product_only_is_said_to_be_one():
    default, through = row("torch baddbmm", 2.0), row(peers.ONEDNN, 1.05)
    assert "default float32 product only" in table.remark([row(), default, through])
    assert "1.4x, by its default product 2.0x" in table.remark([row(), default, row(peers.ONEDNN, 1.4)])
    assert table.remark([row(), default, row(peers.ONEDNN, 2.5)]) == ""
    assert table.remark([row(), default]) == ""


def test_quantiles_are_shown_where_one_number_says_too_little():
    assert table.quantiles(row(spread=1.3)) == "1 to 1.3"
    assert table.quantiles(row("torch cdist", peak="100")) == "1 to 1"
    assert table.quantiles(row()) == ""


def test_memory_of_a_call_counts_what_it_touches_at_once():
    size = 8 * 2**20
    tensor = torch.ones(size // 4)
    grown = resident.peak_growth(lambda: (tensor + 1) + (tensor + 2))
    if grown is None:
        pytest.skip("the system keeps no high-water mark")
    assert 23 < grown < 32  # three results of 8 MiB live at once
    assert resident.peak_growth(lambda: tensor.sum()) < 4


def test_the_command_prints_every_contender_and_the_machine(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    assert run.main(["--quick", "--ops", "nearest", "--shapes", "c", "--out", str(path)]) == 0
    printed, rows = capsys.readouterr().out, read_rows(path)
    for name in {table.contender(row) for row in rows if row["op"] == "nearest"}:
        assert name in printed
    assert "GFLOP/s" in printed
    assert len({row["run_id"] for row in rows}) == 1
    assert all(row["gate"] == "pass" for row in rows if row["impl"])
    assert run.main(["--compare", str(path), str(path)]) == 0
    assert "agree within 15%" in capsys.readouterr().out


def test_pytest_runs_the_registry(tmp_path):
    """``pytest benchmarks/``, of one case; the rest are the same lines."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-k", "lookup and pose"]
    command += ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", f"--benchmark-json={tmp_path / 'rows.json'}"]
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "rows.json").read_text())["benchmarks"]
    assert {bench["group"] for bench in found} == {"lookup pose"}
    assert {bench["params"]["contender"] for bench in found} >= {
        "fastvq",
        "torch embedding_bag",
        "torch K-hot product",
    }
    assert all(bench["extra_info"]["wrong_rows"] == 0 for bench in found)


def test_wrong_options_are_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_case", lambda *_, **__: pytest.fail("measured before the options were looked at"))
    foreign = tmp_path / "other.csv"
    foreign.write_text("a,b\n1,2\n")
    for options, sentence in (
        (["--ops", "neares"], "there is no op neares"),
        (["--out", str(tmp_path)], "is no file: give a CSV file for the rows"),
        (["--out", str(foreign)], "other.csv has other columns than schema"),
        (["--html", str(tmp_path)], "is a folder: give a file for the page"),
        (["--seconds", "nan"], "seconds must be a positive number, got nan"),
        (["--seconds", "-1"], "seconds must be a positive number, got -1"),
    ):
        assert run.main(options) == 2
        assert sentence in capsys.readouterr().err
    assert foreign.read_text() == "a,b\n1,2\n"


def test_a_case_that_fails_leaves_the_others(capsys, tmp_path, monkeypatch):
    real = run.run_case

    def failing(case, *rest, **named):
        if case.op.name == "lookup":
            raise AttributeError("a peer changed its names")
        return real(case, *rest, **named)

    monkeypatch.setattr(run, "run_case", failing)
    rows = tmp_path / "rows.csv"
    assert run.main(["--quick", "--ops", "lookup", "segment_sum", "--shapes", "c", "--out", str(rows)]) == 1
    assert "FAILED, not timed: lookup c (toy): AttributeError: a peer changed its names" in capsys.readouterr().out
    assert {row["op"] for row in read_rows(rows)} == {"machine", "segment_sum"}


def test_toy_sizes_are_not_taken_for_real_ones():
    assert not {case.small().shape.name for case in CASES} & {case.shape.name for case in CASES}
