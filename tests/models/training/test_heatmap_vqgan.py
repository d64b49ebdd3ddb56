import dataclasses
import json

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.adversarial import AdversarialWeights
from fastvq.models.training.heatmap_data import JointWindowSampler, prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, train_heatmaps
from fastvq.models.training.run_folder import RunFolder, load_trainer

MODEL = HeatmapVQGANConfig(
    frames=8,
    size=16,
    channels=(8, 16),
    down_stages=2,
    latent_channels=8,
    code_dim=8,
    codebook_size=16,
    norm_groups=4,
    attention_size=8,
)
CONFIG = HeatmapTrainConfig(
    model=MODEL,
    loss=AdversarialWeights(start=2),
    steps=6,
    batch_size=2,
    lr=2e-3,
    stretch=(8, 40),
    discriminator_width=4,
    discriminator_layers=2,
    checkpoint_every=4,
    log_every=2,
)


@pytest.fixture(scope="module", name="clips")
def clips_fixture():
    return prepare_joints(generate_clips(6, seed=0), fps=30.0, least=8)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16", "checkpointing": True}, {"model": {"quantizer": "gumbel"}}], ids=str
)
def test_a_resumed_run_ends_with_the_same_weights(clips, tmp_path, changes):
    model = dataclasses.replace(MODEL, **changes.get("model", {}))
    config = dataclasses.replace(CONFIG, **{**changes, "model": model})
    whole = train_heatmaps(config, clips, tmp_path / "whole")
    train_heatmaps(dataclasses.replace(config, steps=4), clips, tmp_path / "parts")
    resumed = train_heatmaps(config, clips, tmp_path / "parts", resume=True)
    assert whole.step == resumed.step == 6
    assert not whole.interrupted
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    ends = [load_trainer(RunFolder(tmp_path / name).last()) for name in ("whole", "parts")]
    assert {"optimizer", "discriminator_optimizer", "discriminator"} <= set(ends[0])
    for name, tensor in ends[0]["discriminator"].items():
        assert torch.equal(tensor, ends[1]["discriminator"][name]), name
    assert torch.equal(
        ends[0]["discriminator_optimizer"]["state"][0]["exp_avg"],
        ends[1]["discriminator_optimizer"]["state"][0]["exp_avg"],
    )


def test_the_discriminator_takes_part_from_its_start_on(clips, tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=2, keep_checkpoints=9, log_every=1)
    result = train_heatmaps(config, clips, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert [row["discriminator"] > 0 for row in found] == [False] * 2 + [True] * 4
    assert [row["adversarial_weight"] > 0 for row in found] == [False] * 2 + [True] * 4
    judges = [
        load_trainer(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")["discriminator"]["body.0.weight"]
        for step in (2, 4, 6)
    ]
    torch.manual_seed(CONFIG.seed)
    HeatmapVQGAN(MODEL)
    assert not torch.equal(judges[0], judges[1])
    assert not torch.equal(judges[1], judges[2])
    assert judges[0].std() == pytest.approx(0.02, rel=0.2)  # as it was made
    assert result.metrics["step"] == 6
    for name in ("loss", "l1", "perceptual", "quantizer", "adversarial", "perplexity", "utilisation"):
        assert np.isfinite(result.metrics[name])


def test_the_rate_falls_at_milestones(clips, tmp_path):
    config = dataclasses.replace(CONFIG, milestones=(2, 4), gamma=0.5, log_every=1, steps=5)
    train_heatmaps(config, clips, tmp_path / "run")
    assert [row["lr"] for row in rows(tmp_path / "run")] == [2e-3, 2e-3, 1e-3, 1e-3, 5e-4]
    held = load_trainer(RunFolder(tmp_path / "run").last())
    for name in ("optimizer", "discriminator_optimizer"):
        assert held[name]["param_groups"][0]["lr"] == 5e-4, name


def test_without_a_discriminator_there_is_none(clips, tmp_path):
    config = dataclasses.replace(CONFIG, loss=AdversarialWeights(factor=0.0), steps=2)
    train_heatmaps(config, clips, tmp_path / "run")
    assert "discriminator" not in load_trainer(RunFolder(tmp_path / "run").last())
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["kind"] == "heatmap-vqgan"
    assert saved["training"]["loss"]["factor"] == 0.0
    assert HeatmapVQGAN.from_pretrained(tmp_path / "run").config == MODEL


def test_a_small_model_shows_more_than_the_mean_picture(clips, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(
            MODEL, frames=4, channels=(8,), down_stages=1, codebook_size=32, attention_size=4, codebook_update="ema"
        ),
        loss=AdversarialWeights(factor=0.0, l2=10.0),
        steps=250,
        lr=5e-3,
        log_every=50,
        random_scores=False,
        checkpoint_every=999,
    )
    model = train_heatmaps(config, clips, tmp_path / "run").model
    sampler = JointWindowSampler(
        [clip for clip in clips if clip.split == "train"],
        frames=4,
        batch_size=64,
        seed=1,
        stretch=config.stretch,
        random_scores=False,
    )
    heatmaps = config.heatmaps.render(sampler.batch(0).joints)
    with torch.no_grad():
        decoded = model.decode(model.encode(heatmaps))
    mean = heatmaps.mean(dim=(0, 2), keepdim=True)  # the best of all pictures that do not look at the motion
    errors = [(shown - heatmaps).square().mean() for shown in (decoded, decoded.roll(1, 0), mean)]
    assert errors[0] < 0.9 * errors[2]
    assert errors[1] > errors[2], "the tokens of another window show another pose"


def test_windows_are_stretches_at_even_distances():
    joints = np.zeros((50, 22, 3), dtype=np.float32)
    joints[..., 0] = np.arange(50)[:, None]
    clips = [Clip("a", 30.0, joints), Clip("b", 30.0, joints[:9] + 100), Clip("short", 30.0, joints[:7])]
    sampler = JointWindowSampler(clips, frames=4, batch_size=500, seed=3, stretch=(8, 20), random_scores=True)
    windows, scores = sampler.batch(7)
    shown = windows[:, :, 0, 0]
    lengths = shown[:, -1] - shown[:, 0] + 1
    assert set(lengths.tolist()) == set(range(8, 21))
    assert shown.min() == 0
    assert 45 <= shown[shown < 100].max() <= 49
    assert 0 < (shown[:, 0] >= 100).sum() < 50  # 2 of 45 starts are in b
    steps = shown.diff(dim=1)
    assert bool(((steps - (lengths[:, None] - 1) / 3).abs() <= 1).all())
    assert scores.shape == (500, 4, 22)
    assert abs(scores.mean() - 0.65) < 0.01
    again = sampler.batch(7)
    assert torch.equal(again.joints, windows)
    assert torch.equal(again.scores, scores)
    assert not torch.equal(sampler.batch(8).joints, windows)


def test_clips_are_cut_where_no_body_could_move(clips):
    assert all(clip.fps == 30.0 and clip.features is None for clip in clips)
    jump = clips[0].joints.copy()
    jump[40:] += 30
    parts = prepare_joints([Clip("c", 30.0, jump, split="test")], fps=30.0, least=8)
    assert [clip.name for clip in parts] == ["c_part1", "c_part2"]
    assert parts[0].frames <= 40
    assert all(clip.split == "test" for clip in parts)
    assert prepare_joints([Clip("c", 30.0, jump)], fps=30.0, least=10**6) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stretch": (1, 8)}, r"stretch must be two numbers of frames, from 2 up and in order, got \(1, 8\)"),
        ({"stretch": (9, 8)}, "in order"),
        ({"projection": "plane"}, "in_channels must be the 1 views of the heatmaps, got 3: use in_channels 1"),
        ({"sigma": 0.0}, "sigma must be a number above 0"),
        ({"azimuths": ()}, "azimuths must name at least one camera"),
        ({"discriminator_layers": 3}, "needs windows of at least 16 frames"),
        (
            {"discriminator_layers": 3, "batch_size": 1, "model": dataclasses.replace(MODEL, frames=16)},
            "a single window of 16 frames of 16 leaves it one: use a larger batch_size",
        ),
        ({"milestones": (0,)}, "milestones must be an integer of at least 1, got 0"),
        ({"gamma": 0.0}, "gamma must be a number above 0"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_what_cannot_go_on_is_said(clips, tmp_path):
    with pytest.raises(UserError, match=r"at least 900 frames, and none of the \d+ clips"):
        train_heatmaps(dataclasses.replace(CONFIG, stretch=(900, 950)), clips, tmp_path / "none")
    config = dataclasses.replace(CONFIG, steps=2)
    train_heatmaps(config, clips, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        train_heatmaps(config, clips, tmp_path / "run")
    with pytest.raises(UserError, match="cannot resume with other settings: sigma"):
        train_heatmaps(dataclasses.replace(config, sigma=1.0), clips, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="with other training clips"):
        train_heatmaps(dataclasses.replace(config, steps=4), clips[1:], tmp_path / "run", resume=True)
