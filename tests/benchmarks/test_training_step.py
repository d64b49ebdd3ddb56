import pytest

pytest.importorskip("vector_quantize_pytorch", reason="the benchmark's peer is not installed")

from fastvq.benchmarks import training_step
from fastvq.benchmarks.rows import read_rows


def test_every_contender_is_timed_and_ours_is_gated(tmp_path, monkeypatch):
    small = training_step.MotionVQVAEConfig(width=8, output_dim=16, groups=2, codebook_size=8, depth=1)
    monkeypatch.setattr(training_step, "MotionVQVAEConfig", lambda width: small)
    path = tmp_path / "rows.csv"
    training_step.main(["--reps", "3", "--batch-size", "2", "--out", str(path)])
    rows = read_rows(path)
    found = [(row["dtype"], row["pass"], row["impl"] != "", row["peer"]) for row in rows]
    expected = [
        ("train-step", True, ""),
        ("quantizer", True, ""),
        ("train-step", False, "no quantizer"),
        ("train-step", False, "vector-quantize-pytorch"),
        ("quantizer", False, "vector-quantize-pytorch"),
    ]
    assert found == [(dtype, *row) for dtype in ("float32", "bfloat16") for row in expected]
    assert len({row["run_id"] for row in rows}) == 1
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert row["gate"] == "pass"


def test_wrong_codes_stop_the_benchmark(tmp_path, monkeypatch):
    small = training_step.MotionVQVAEConfig(width=8, output_dim=16, groups=2, codebook_size=8, depth=1)
    monkeypatch.setattr(training_step, "MotionVQVAEConfig", lambda width: small)
    monkeypatch.setattr(training_step, "excess", lambda *arguments: 3)
    with pytest.raises(SystemExit, match="3 rows got a code that is not the nearest"):
        training_step.main(["--reps", "3", "--batch-size", "2", "--out", str(tmp_path / "rows.csv")])
    assert not (tmp_path / "rows.csv").exists()
