"""Benchmark rows as pinned, the gate of searches, and the peers' searches at toy sizes."""

import itertools
import time

import pytest
import torch

from fastvq.benchmarks import faiss_process, nearest, peers, rows, timing, worst_cases
from fastvq.benchmarks.shapes import Shape, make_data

PINNED = (
    "schema,op,pass,shape,G,N,K,D,Q,dtype,precision,impl,peer,peer_version,reps,median_ms,p20_ms,p80_ms,floor_ms,"
    "floor_kind,peak_mib,mismatch_rows,gate,device,threads,cpu_flags,driver,torch,triton,python,commit,dirty,utc,run_id"
)


def test_columns_are_the_pinned_ones():
    assert ",".join(rows.COLUMNS) == PINNED


def test_worst_cases_write_rows_that_read_back(tmp_path, capsys):
    path = tmp_path / "worst_cases.csv"
    rows.write_rows(path, worst_cases.run((Shape("toy", 2, 300, 40, 8),), 3))
    table = rows.read_rows(path)
    assert [row["shape"] for row in table] == [f"toy {kind}" for kind in ("normal", *worst_cases.KINDS)]
    assert all(row["gate"] == "pass" for row in table)
    assert "toy outlier" in capsys.readouterr().out


def test_rows_of_another_schema_are_refused(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("schema,op\nfastvq-bench/0,nearest\n")
    with pytest.raises(ValueError, match="fastvq-bench/0"):
        rows.read_rows(path)
    with pytest.raises(ValueError, match="other columns"):
        rows.write_rows(path, [])


def test_gate_counts_codes_that_are_farther_away():
    codebooks = torch.tensor([[[[0.0], [1.0], [1.0]]]])
    x = torch.tensor([[[0.1], [0.9], [0.8]]])
    wrong = nearest.excess(x, codebooks, torch.tensor([[[0], [2], [0]]]))
    assert wrong == 1  # code 2 ties with the oracle's 1; 0 is wrong


def test_gate_follows_the_residual_that_a_row_left():
    codebooks = torch.tensor([[[[0.0], [1.0]], [[0.0], [0.5]]]])
    x = torch.tensor([[[0.9], [0.9]]])
    # 1 is nearest, which leaves -0.1, nearest to 0. Whoever takes 0 first is wrong once, whatever comes then.
    assert nearest.excess(x, codebooks, torch.tensor([[[1, 0], [1, 0]]])) == 0
    assert nearest.excess(x, codebooks, torch.tensor([[[1, 1], [0, 1]]])) == 2


@pytest.mark.parametrize(
    "shape", [Shape("plain", 1, 40, 16, 8), Shape("g", 3, 40, 16, 8), Shape("r", 1, 40, 16, 8, 3)]
)
def test_peers_search_what_we_search(shape):
    x, codebooks = make_data(shape)
    x = x.contiguous()
    for search in peers.torch_searches(compiled=False).values():
        assert nearest.excess(x, codebooks, search(x, codebooks)) == 0
    if faiss_process.available():
        with faiss_process.Faiss(shape, x, codebooks, 1) as child:
            assert child.milliseconds() > 0
            assert nearest.excess(x, codebooks, child.result()) == 0
    pytest.importorskip("vector_quantize_pytorch", reason="the peer is in the bench extra")
    search = peers.vqp_search(shape, codebooks)
    with torch.no_grad():
        found = search(x, codebooks)
    assert found.shape == (shape.G, shape.N, shape.Q)
    assert nearest.excess(x, codebooks, found) == 0


def test_contenders_take_turns():
    calls = []
    result = timing.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, reps=4)
    assert calls == ["a", "b"] * 5
    assert result["a"].reps == 4


def test_short_calls_are_repeated_within_a_turn():
    calls = []
    contenders = {"short": lambda: calls.append("s"), "long": lambda: (calls.append("l"), time.sleep(0.02))}
    result = timing.interleave(contenders, reps=3, burst=0.01)
    # A warm-up and a trial of each come before the rounds.
    assert "".join(calls) == "ssll" + ("s" * timing.BURST + "ll") * 3
    assert (result["short"].reps, result["long"].reps) == (3 * timing.BURST, 6)


def test_a_turn_is_worth_its_fastest_call():
    taken = iter([4.0, 1.0, 5.0, 9.0, 2.0, 3.0, 7.0])  # a trial, then three turns
    result = timing.interleave({"a": lambda: None}, reps=3, burst=1e-9, measure=lambda _: next(taken))
    assert result["a"] == timing.Timing(6, 2.0, pytest.approx(1.4), pytest.approx(2.6))


@pytest.mark.parametrize(("spread", "rounds"), [(0.0, timing.LEAST), (0.01, timing.LEAST), (0.5, 40)])
def test_rounds_end_once_ratios_are_known(spread, rounds):
    swing = itertools.cycle([1 + spread, 1 / (1 + spread)])
    calls = {"ours": lambda: timing.Elapsed(1.0), "theirs": lambda: timing.Elapsed(2 * next(swing))}
    result = timing.interleave(calls, reps=40, steady=0.02)
    assert result["theirs"].reps == rounds


def test_a_contender_may_time_itself():
    result = timing.interleave({"child": lambda: timing.Elapsed(7.0)}, reps=3)
    assert result["child"].median_ms == 7.0
