import json

import pytest

from fastvq.benchmarks import loss_curves, report
from fastvq.benchmarks.training_contenders import Setup


def test_both_kinds_are_trained_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_curves, "RUNS", {"plain": Setup(), "fast": loss_curves.LEVERS[-1]})
    path = tmp_path / "training_step.json"
    sizes = ["--width", "8", "--batch-size", "2", "--steps", "4", "--every", "2", "--seeds", "2"]
    for _ in range(2):
        loss_curves.main([*sizes, "--out", str(path)])
    assert json.loads(path.read_text())["schema"] == report.RUNS_SCHEMA
    runs = report.read_runs(tmp_path / "training_step.csv")
    assert len(runs) == 2
    first, second = (run["losses"] for run in runs.values())
    assert first == second  # seeds decide everything
    (curves,) = first.values()
    assert set(curves) == {"plain, seed 0", "plain, seed 1", "fast, seed 0", "fast, seed 1"}
    for one in curves.values():
        assert one["steps"] == [2, 4]
        assert len(one["loss"]) == 2
    # The same weights and batches: what differs at first is bfloat16, with some 3 digits.
    for seed in (0, 1):
        plain, fast = (curves[f"{kind}, seed {seed}"]["loss"][0] for kind in ("plain", "fast"))
        assert fast == pytest.approx(plain, rel=0.05)
    assert curves["plain, seed 0"]["loss"] != curves["plain, seed 1"]["loss"]


def test_the_difference_is_weighed_against_the_noise_between_seeds():
    found = loss_curves.within([[9.0, 1.0], [9.0, 3.0]], [[9.0, 2.5], [9.0, 2.5]])
    assert found == {"plain": 2.0, "fast": 2.5, "difference": 0.5, "plain_deviation": pytest.approx(2**0.5)}
