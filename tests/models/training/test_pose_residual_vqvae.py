import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.mirror import mirror_features
from fastvq.models.motion.pose_codes import mirror_codes, parse_features
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE, PoseResidualVQVAEConfig
from fastvq.models.training.data import feature_statistics, prepare_clips
from fastvq.models.training.losses import motion_loss
from fastvq.models.training.pose_residual_vqvae import PoseLossWeights, PoseResidualTrainConfig
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep
from fastvq.models.training.trainer import train
from fastvq.models.training.windows import WindowSampler

TINY = PoseResidualVQVAEConfig(width=32, output_dim=16, codebook_size=32, depth=1)


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(20, seed=1), fps=20.0, form=format_of(263))


@pytest.fixture
def config():
    # Codes die, stages are dropped, and a milestone and a warm-up lie within the run.
    model = dataclasses.replace(TINY, dead_below=0.9, quantize_dropout=0.5)
    sizes = {"steps": 12, "batch_size": 4, "window": 32, "checkpoint_every": 4, "log_every": 3}
    return PoseResidualTrainConfig(model=model, warmup=3, milestones=(8,), lr=1e-2, mirror=True, **sizes)


def step_of(model):
    return TrainingStep(model, PoseLossWeights(), "fp32", SectionTimer(False, torch.device("cpu"))).train()


def test_the_recipe_is_the_published_one():
    config = PoseResidualTrainConfig()
    assert (config.lr, config.betas, config.weight_decay) == (1e-4, (0.9, 0.99), 0.0)
    assert (config.steps, config.milestones, config.gamma, config.warmup) == (300_000, (200_000,), 0.05, 1000)
    assert (config.batch_size, config.window) == (256, 64)
    assert (config.loss.reconstruction, config.loss.velocity) == (1.0, 0.5)
    assert config.model.commitment_weight == 0.02


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_the_plain_formula(padded):
    torch.manual_seed(0)
    recon, target = torch.randn(2, 6, 263, dtype=torch.float64), torch.randn(2, 6, 263, dtype=torch.float64)
    lengths = (6, 4) if padded else (6, 6)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None] if padded else None
    loss = motion_loss(recon, target, PoseLossWeights(), mask)
    pairs = [(recon[row, :length], target[row, :length]) for row, length in enumerate(lengths)]
    every = torch.cat([F.smooth_l1_loss(*pair, reduction="none") for pair in pairs]).mean()
    steps = torch.cat([F.smooth_l1_loss(a[1:] - a[:-1], b[1:] - b[:-1], reduction="none") for a, b in pairs]).mean()
    torch.testing.assert_close(loss.terms, torch.stack([every, steps]))
    torch.testing.assert_close(loss.total, every + 0.5 * steps)


def test_codes_of_mirrored_windows_are_mirrored(clips):
    """Whatever the sampler shows, the codes of a step are those of what it shows."""
    features = np.concatenate([clip.features for clip in clips])[:4096]
    seen = parse_features(mirror_features(features))
    assert np.array_equal(mirror_codes(parse_features(features)).indices, seen.indices)
    plain, shown = (
        WindowSampler(clips, window=32, batch_size=64, seed=0, mirror=mirror).batch(3).motion.numpy()
        for mirror in (False, True)
    )
    mirrored = [not np.array_equal(*pair) for pair in zip(plain, shown, strict=True)]
    assert 16 < sum(mirrored) < 48
    for given, window, turned in zip(plain, shown, mirrored, strict=True):
        codes = parse_features(given)
        assert np.array_equal((mirror_codes(codes) if turned else codes).indices, parse_features(window).indices)
    sampler = WindowSampler(clips, window=32, batch_size=64, seed=0, mirror=True, speeds=(0.8, 1.2))
    windows = sampler.batch(3).motion
    model = PoseResidualVQVAE(TINY, mean=np.zeros(263), std=np.ones(263))
    codes = model.read_codes(windows)
    assert codes.shape == (64, 8, 70)
    for row, window in zip(codes, windows, strict=True):
        assert np.array_equal(row.numpy(), parse_features(window[::4].numpy()).bins)


def test_padding_reaches_neither_codes_nor_losses(clips):
    torch.manual_seed(0)
    mean, std = feature_statistics(clips)
    model = PoseResidualVQVAE(dataclasses.replace(TINY, quantize_dropout=0.0), mean=mean, std=std)
    with torch.no_grad():
        model.train()(clips[0].features[:64])
    model.eval()
    motions = [torch.from_numpy(clip.features[:length]) for clip, length in zip(clips, (32, 16), strict=False)]
    features, mask = model.collate(motions)
    step = TrainingStep(model, PoseLossWeights(), "fp32", SectionTimer(False, torch.device("cpu"))).eval()
    together = step(features, mask)
    alone = [step(motion[None]) for motion in motions]
    assert (together.indices[1, 4:] == -1).all()
    assert torch.equal(together.indices[1, :4], alone[1].indices[0])
    mean_of = (2 * alone[0].smooth_l1 + alone[1].smooth_l1) / 3
    torch.testing.assert_close(together.smooth_l1, mean_of, rtol=1e-4, atol=1e-6)
    mean_of = (2 * alone[0].commitment + alone[1].commitment) / 3
    torch.testing.assert_close(together.commitment, mean_of, rtol=1e-4, atol=1e-7)


def test_training_learns_and_uses_its_codes(clips, tmp_path):
    sizes = {"steps": 120, "batch_size": 8, "window": 32, "log_every": 30, "lr": 2e-3, "warmup": 5}
    result = train(PoseResidualTrainConfig(model=TINY, **sizes), clips, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [30, 60, 90, 120]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    for row in rows:
        assert row["recon_smooth_l1"] == pytest.approx(row["reconstruction"], rel=1e-5)
        total = row["reconstruction"] + 0.5 * row["velocity"] + row["commitment"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert len(row["perplexity_per_stage"]) == len(row["utilisation_per_stage"]) == 2
    assert rows[-1]["perplexity"] > 0.4 * 32, "the shared codebook has collapsed"
    loaded = PoseResidualVQVAE.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.encode(clips[0].features), result.model.encode(clips[0].features))


def test_pose_codes_alone_are_trained(clips, tmp_path):
    model = dataclasses.replace(TINY, stages=0)
    sizes = {"steps": 120, "batch_size": 8, "window": 32, "log_every": 30, "lr": 2e-3, "warmup": 5}
    result = train(PoseResidualTrainConfig(model=model, **sizes), clips, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all("perplexity" not in row and row["commitment"] == 0 for row in rows)
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert not [name for name in state if name.startswith(("encoder", "quantizer"))]
    first = PoseResidualVQVAE(model).pose_codebook
    assert (result.model.pose_codebook - first).abs().max() > 0.01, "the pose codes have not moved"
    with pytest.raises(UserError, match="lacks encoder"):
        PoseResidualVQVAE.from_pretrained(tmp_path / "run", config=TINY)


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
    train(config, clips, tmp_path / "killed", resume=True)
    whole, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_bfloat16_leaves_the_pose_codes_wide(clips):
    torch.manual_seed(0)
    # Fewer codes than latents: with as many nothing would be left to commit to, which is all that moves pose codes.
    model = PoseResidualVQVAE(dataclasses.replace(TINY, codebook_size=4))
    timer = SectionTimer(False, torch.device("cpu"))
    losses = TrainingStep(model, PoseLossWeights(), "bf16", timer).train()(
        torch.from_numpy(clips[0].features[None, :32])
    )
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert model.pose_codebook.grad.dtype == torch.float32
    assert model.pose_codebook.grad.any()


@pytest.mark.parametrize("stages", [0, 2])
def test_the_whole_step_is_one_graph(clips, stages):
    def run(compiled):
        torch.manual_seed(0)
        # Rows that replace dead codes are drawn elsewhere in a compiled step.
        step = step_of(PoseResidualVQVAE(dataclasses.replace(TINY, stages=stages, dead_below=0.0)))
        call = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        totals = []
        for clip in clips[:3]:  # the first initialises the codebook
            motion = torch.from_numpy(clip.features[None, :32])
            losses = call(motion, None, step.model.read_codes(motion))
            losses.total.backward()
            totals.append(losses.total.detach())
        return torch.stack(totals), step.model.pose_codebook.grad

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected)
