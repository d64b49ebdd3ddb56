import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import FEATURE_FORMATS, format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.training.data import feature_statistics, prepare_clips
from fastvq.models.training.losses import motion_loss
from fastvq.models.training.residual_vqvae import ResidualLossWeights, ResidualTrainConfig, bone_lengths
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep
from fastvq.models.training.trainer import train
from fastvq.models.training.windows import WindowSampler

TINY = ResidualVQVAEConfig(width=32, output_dim=16, codebook_size=32, depth=1, stages=3)


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(20, seed=1), fps=20.0, form=format_of(263))


@pytest.fixture
def config():
    # Codes die, stages are dropped, and a milestone and a warm-up lie within the run.
    model = dataclasses.replace(TINY, codebook_size=64, dead_below=0.9, quantize_dropout=0.5)
    sizes = {"steps": 12, "batch_size": 4, "window": 32, "checkpoint_every": 4, "log_every": 3}
    return ResidualTrainConfig(model=model, warmup=3, milestones=(8,), lr=1e-2, mirror=True, **sizes)


def plain_bones(row, form):
    """Bone by bone, frame by frame."""
    points = row[form.slices["joint_position"]].reshape(-1, 3)
    if len(points) < len(form.parents):
        points = torch.stack([torch.tensor([0.0, float(row[3]), 0.0], dtype=row.dtype), *points])
    return torch.stack(
        [torch.dist(points[joint], points[parent]) for joint, parent in enumerate(form.parents) if parent >= 0]
    )


@pytest.mark.parametrize("width", sorted(FEATURE_FORMATS))
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_the_plain_formula(width, padded):
    form = format_of(width)
    recon, target = torch.randn(2, 6, width, dtype=torch.float64), torch.randn(2, 6, width, dtype=torch.float64)
    mean, std = torch.randn(width, dtype=torch.float64), torch.rand(width, dtype=torch.float64) + 0.5
    lengths = (6, 4) if padded else (6, 6)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None] if padded else None
    weights = ResidualLossWeights()
    loss = motion_loss(recon, target, weights, mask, denormalise=lambda x: x * std + mean)

    pairs = [(recon[row, :length], target[row, :length]) for row, length in enumerate(lengths)]
    every = torch.cat([F.smooth_l1_loss(*pair, reduction="none") for pair in pairs]).mean()
    steps = [F.smooth_l1_loss(a[1:] - a[:-1], b[1:] - b[:-1], reduction="none") for a, b in pairs]
    bones = [
        F.smooth_l1_loss(plain_bones(a[t] * std + mean, form), plain_bones(b[t] * std + mean, form), reduction="none")
        for a, b in pairs
        for t in range(len(a))
    ]
    expected = torch.stack([every, torch.cat(steps).mean(), torch.stack(bones).mean()])
    torch.testing.assert_close(loss.terms, expected)
    torch.testing.assert_close(loss.total, expected[0] + 0.5 * expected[1] + 0.1 * expected[2])
    torch.testing.assert_close(loss.smooth_l1, every)


def test_gradients_reach_real_frames_only():
    recon = torch.randn(2, 8, 263, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(8) < torch.tensor([8, 4])[:, None]
    target = torch.randn(2, 8, 263, dtype=torch.float64)
    motion_loss(recon, target, ResidualLossWeights(), mask).total.backward()
    assert recon.grad.isfinite().all()
    assert not recon.grad[~mask].any()
    assert recon.grad[mask].any(dim=-1).all()


def test_bones_are_those_of_the_joints(clips):
    form = format_of(263)
    features = clips[0].features
    joints = torch.from_numpy(form.to_joints(features))
    expected = (joints[:, 1:] - joints[:, list(form.parents[1:])]).norm(dim=-1)
    torch.testing.assert_close(bone_lengths(torch.from_numpy(features), form), expected, rtol=0, atol=1e-5)


def test_bones_of_no_length_have_no_gradient():
    features = torch.zeros(1, 2, 263, requires_grad=True)
    bone_lengths(features, format_of(263)).sum().backward()
    assert features.grad.isfinite().all()


def test_training_learns_and_logs_every_stage(clips, tmp_path):
    sizes = {"steps": 120, "batch_size": 8, "window": 32, "log_every": 30, "lr": 2e-3, "warmup": 5}
    result = train(ResidualTrainConfig(model=TINY, **sizes), clips, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [30, 60, 90, 120]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert rows[-1]["recon_smooth_l1"] < 0.75 * rows[0]["recon_smooth_l1"]
    for row in rows:
        assert row["recon_smooth_l1"] == pytest.approx(row["reconstruction"], rel=1e-5)
        total = row["reconstruction"] + 0.5 * row["velocity"] + 0.1 * row["bone"] + row["commitment"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert len(row["perplexity_per_stage"]) == len(row["utilisation_per_stage"]) == 3
    assert rows[-1]["perplexity"] > 0.4 * 32, "the shared codebook has collapsed"
    loaded = ResidualVQVAE.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.encode(clips[0].features), result.model.encode(clips[0].features))


def test_a_killed_run_ends_with_the_same_weights(config, clips, tmp_path, monkeypatch):
    train(config, clips, tmp_path / "whole")
    draw = WindowSampler.batch

    def batch(self, step):
        if step == 6:
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(WindowSampler, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        train(config, clips, tmp_path / "killed")
    monkeypatch.setattr(WindowSampler, "batch", draw)
    torch.manual_seed(99)  # whatever happens between the two must not matter
    resumed = train(config, clips, tmp_path / "killed", resume=True)
    assert resumed.step == 12
    whole, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    changed = dataclasses.replace(config, loss=ResidualLossWeights(bone=0.2))
    with pytest.raises(UserError, match=r"loss\.bone \(was 0\.1, is 0\.2\)"):
        train(changed, clips, tmp_path / "killed", resume=True)


def test_statistics_are_those_of_the_data_set(clips):
    mean, std = feature_statistics(clips)
    assert mean.shape == std.shape == (263,)
    for columns in format_of(263).slices.values():
        assert len(set(std[columns].tolist())) == 1


def test_speeds_and_turns_of_these_features(clips):
    sampler = WindowSampler(clips, window=32, batch_size=8, seed=0, speeds=(0.5, 2.0))
    assert sampler.batch(0).motion.shape == (8, 32, 263)
    with pytest.raises(UserError, match="turn has nothing to turn: HumanML3D's 263 features"):
        WindowSampler(clips, window=32, batch_size=8, seed=0, turn=True)


def test_a_run_starts_from_a_saved_model(config, clips, tmp_path):
    first = train(config, clips, tmp_path / "first")
    again = dataclasses.replace(config, start_from=str(tmp_path / "first"), steps=1, lr=1e-12, warmup=0)
    second = train(again, clips, tmp_path / "second")
    own, other = first.model.encoder.conv_in.weight, second.model.encoder.conv_in.weight
    torch.testing.assert_close(own, other, rtol=0, atol=1e-9)


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"loss\.velocity must be a number at least 0, got -1"):
        ResidualLossWeights(velocity=-1)


def test_the_whole_step_is_one_graph(clips):
    def run(compiled):
        torch.manual_seed(0)
        timer = SectionTimer(False, torch.device("cpu"))
        step = TrainingStep(ResidualVQVAE(TINY), ResidualLossWeights(), "fp32", timer).train()
        call = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        totals = []
        for clip in clips[:3]:  # the first initialises the codebooks
            losses = call(torch.from_numpy(clip.features[None, :32]))
            losses.total.backward()
            totals.append(losses.total.detach())
        return torch.stack(totals), step.model.encoder.conv_in.weight.grad

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected)
