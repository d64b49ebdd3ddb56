import pytest
import torch

pytest.importorskip("vector_quantize_pytorch", reason="the benchmark's peer is not installed")

from fastvq.benchmarks import training_contenders, training_step
from fastvq.benchmarks.rows import read_rows
from fastvq.benchmarks.training_contenders import ALL, GROUPED, HEADS, LEVERS, WITHOUT, Contender, Setup

SMALL = training_contenders.MotionVQVAEConfig(width=8, output_dim=16, groups=2, codebook_size=8, depth=1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training_step, "MotionVQVAEConfig", lambda width: SMALL)


def test_every_contender_is_timed_and_ours_is_gated(tmp_path, small):
    path = tmp_path / "rows.csv"
    training_step.main(["--reps", "3", "--batch-size", "2", "--only", "time", "--out", str(path)])
    rows = read_rows(path)
    whole = [row for row in rows if row["pass"] == "train-step"]
    assert {row["peer"] for row in whole} == {"", WITHOUT, GROUPED, HEADS}
    assert {row["impl"].partition(", ")[2] for row in whole if row["impl"]} == {"", *(each.lever for each in LEVERS)}
    assert {row["dtype"] for row in whole if ALL in row["impl"]} == {"bfloat16"}
    assert len({row["run_id"] for row in rows}) == 1
    for row in rows:
        assert 0 <= float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert row["gate"] == "pass"
        assert bool(row["impl"]) == (row["mismatch_rows"] == "0")


def test_sections_are_disjoint():
    contender = Contender(Setup(), SMALL, training_contenders.training_clips(), 2)
    for _ in range(2):
        contender.advance()
    names = ("data", "encoder", "quantizer", "codebook update", "decoder", "losses", "backward", "optimizer")
    parts = ("losses", "decoder", "quantizer", "encoder")
    expected = {*names, *(f"{part}_backward" for part in parts)}
    assert expected == set(contender.timer.seconds)
    contender.timer.seconds = {name: [9.0, 5e-3, 7e-3] for name in expected}
    contender.timer.seconds["codebook update"] = [9.0, 2e-3, 2e-3]
    found = {name: round(timing.median_ms, 6) for name, timing in contender.passes(2).items()}
    assert found["train-step:codebook update"] == 2
    assert found["train-step:quantizer"] == 4  # the update happens inside it
    assert {found[f"train-step:{name}"] for name in names} == {2, 4, 6}
    assert {found[f"train-step-backward:{part}"] for part in parts} == {6}
    assert found["quantizer"] == 12  # forward with its update, and backward


def test_contenders_start_alike_and_see_the_same():
    clips = training_contenders.training_clips()
    one, other = (Contender(setup, SMALL, clips, 2) for setup in (Setup(), LEVERS[-1]))
    assert torch.equal(one.sampler.batch(3).motion, other.sampler.batch(3).motion)
    for name, tensor in one.step.model.state_dict().items():
        assert torch.equal(tensor, other.step.model.state_dict()[name])


@pytest.mark.parametrize("heads", [False, True])
def test_the_peer_has_a_codebook_for_each_group(heads):
    peer = training_contenders.PeerQuantizer(SMALL, 32, heads=heads)
    assert sum(tensor.numel() for name, tensor in peer.named_buffers() if name.endswith(".embed")) == 2 * 8 * 8
    assert not list(peer.parameters())
    quantized, indices, loss = peer(torch.randn(2, 16, 16))
    assert quantized.shape == (2, 16, 16)
    assert indices.shape == (2, 16, 2)
    assert loss.shape == ()


def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    config = training_contenders.MotionVQVAEConfig(width=8)
    found = training_step.memory_rows(config, 2, [Setup()])
    assert [each.pass_ for each in found] == ["train-step-memory"]
    assert found[0].peak_mib is None or 0 < found[0].peak_mib < 1000


def test_wrong_codes_stop_the_benchmark(tmp_path, small, monkeypatch):
    monkeypatch.setattr(training_contenders, "excess", lambda *arguments: 3)
    with pytest.raises(SystemExit, match="3 rows of fastvq got a code that is not the nearest"):
        training_step.main(["--reps", "3", "--batch-size", "2", "--out", str(tmp_path / "rows.csv")])
    assert not (tmp_path / "rows.csv").exists()
