import dataclasses

import pytest
import torch

pytest.importorskip("vector_quantize_pytorch", reason="the benchmark's peer is not installed")

from fastvq.benchmarks import heatmap_contenders, heatmap_full_size, training_contenders, training_step
from fastvq.benchmarks.rows import read_rows
from fastvq.benchmarks.training_contenders import ALL, GROUPED, HEADS, LEVERS, WITHOUT, Contender, Setup
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig
from fastvq.models.training.adversarial import AdversarialWeights
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, train_heatmaps

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


@pytest.fixture
def small_heatmaps(monkeypatch):
    model = HeatmapVQGANConfig(
        frames=8,
        size=16,
        channels=(8, 8),
        down_stages=2,
        latent_channels=8,
        code_dim=8,
        codebook_size=16,
        norm_groups=4,
    )
    config = HeatmapTrainConfig(
        model=model, loss=AdversarialWeights(start=0), discriminator_width=4, discriminator_layers=2
    )
    monkeypatch.setattr(training_step, "heatmap_settings", lambda frames, size, batch: config)
    return config


def test_the_heatmap_model_is_timed_with_its_quantizer(tmp_path, small_heatmaps):
    path = tmp_path / "rows.csv"
    training_step.main(["--heatmaps", "8", "16", "--reps", "3", "--only", "time", "--out", str(path)])
    rows = read_rows(path)
    assert {(row["op"], row["shape"], row["N"], row["D"]) for row in rows} == {
        ("heatmap-vqgan", "1 window of 8 x 16 x 16, F4", "32", "8")
    }
    whole = [row for row in rows if row["pass"] == "train-step"]
    assert {(row["peer"], row["dtype"]) for row in whole} == {
        *(("", "float32"), (WITHOUT, "float32"), (GROUPED, "float32"), ("", "bfloat16"))
    }
    assert {row["peer"] for row in rows if row["pass"] == "quantizer"} == {"", GROUPED}
    parts = {row["pass"] for row in rows if row["pass"].startswith("train-step:")}
    assert parts == {f"train-step:{name}" for name in heatmap_contenders.SECTIONS}
    assert all(row["mismatch_rows"] == "0" for row in rows if row["impl"])


def test_the_heatmap_contender_steps_as_the_trainer_does(tmp_path, small_heatmaps):
    config = dataclasses.replace(small_heatmaps, steps=2, checkpoint_every=2)
    clips = heatmap_contenders.heatmap_clips(config)
    clips = [dataclasses.replace(clip, split="train") for clip in clips]
    contender = heatmap_contenders.HeatmapContender(Setup(), config, clips)
    for _ in range(2):
        contender.advance()
    trained = train_heatmaps(config, clips, tmp_path / "run").model.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in contender.model.state_dict().items())


@pytest.mark.parametrize("kind", [heatmap_contenders.NoVolumeQuantizer, heatmap_contenders.PeerVolumeQuantizer])
def test_other_quantizers_of_volumes_have_our_shapes(kind):
    config = HeatmapVQGANConfig(code_dim=8, codebook_size=16)
    quantizer = kind(config) if kind is heatmap_contenders.PeerVolumeQuantizer else kind()
    quantized, indices, loss = quantizer.train()(torch.randn(2, 8, 3, 4, 5))
    assert quantized.shape == (2, 8, 3, 4, 5)
    assert indices.shape == (2, 3, 4, 5)
    assert loss.shape == ()
    assert sum(parameter.numel() for parameter in quantizer.parameters()) in (0, 16 * 8)


def test_the_full_size_step_is_that_of_the_trainer(tmp_path, monkeypatch):
    model = HeatmapVQGANConfig(frames=16, size=32, channels=(8, 8, 8), norm_groups=4, latent_channels=8, code_dim=8)
    found = heatmap_full_size.train(model, "fp32", 1)
    assert found["ms"] > 0
    row = heatmap_full_size.row(model, "fp32", 1, found)
    assert (row.shape, row.N) == ("F8, 1 window of 16 x 32 x 32", 32)
    assert 100 < row.peak_mib < 16 * 1024  # of this process: torch alone takes more than the first


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
    found = training_step.memory_rows(training_step.motion_case(config, 2), [Setup()])
    assert [each.pass_ for each in found] == ["train-step-memory"]
    assert found[0].peak_mib is None or 0 < found[0].peak_mib < 1000


def test_wrong_codes_stop_the_benchmark(tmp_path, small, monkeypatch):
    monkeypatch.setattr(training_contenders, "excess", lambda *arguments: 3)
    with pytest.raises(SystemExit, match="3 rows of fastvq got a code that is not the nearest"):
        training_step.main(["--reps", "3", "--batch-size", "2", "--out", str(tmp_path / "rows.csv")])
    assert not (tmp_path / "rows.csv").exists()
