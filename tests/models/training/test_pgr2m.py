import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.training.data import prepare_clips
from fastvq.models.training.losses import motion_loss
from fastvq.models.training.pgr2m import PGR2MLossWeights, PGR2MTrainConfig
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep
from fastvq.models.training.trainer import train
from fastvq.models.training.windows import WindowSampler

TINY = PGR2MConfig(width=32, output_dim=16, codebook_size=32, depth=1, stages=3)
SHORT = {"steps": 120, "batch_size": 8, "window": 32, "log_every": 30, "lr": 2e-3, "warmup": 5}


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(20, seed=1), fps=20.0, form=format_of(263))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_recipe_is_the_published_one():
    config = PGR2MTrainConfig()
    assert (config.lr, config.betas, config.weight_decay) == (1e-4, (0.9, 0.99), 0.0)
    assert (config.steps, config.milestones, config.gamma, config.warmup) == (300_000, (200_000,), 0.05, 1000)
    assert (config.batch_size, config.window, config.grad_clip) == (256, 64, None)
    assert (config.loss.weights(), config.loss.vel_mode) == ([1.0, 0.5], "positions")
    assert config.loss.names() == ("reconstruction", "velocity")


@pytest.mark.parametrize("width", [263, 251])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("vel_mode", ["positions", "velocities", "differences"])
def test_the_loss_is_the_plain_formula(vel_mode, padded, width):
    torch.manual_seed(0)
    recon, target = (torch.randn(2, 6, width, dtype=torch.float64) for _ in range(2))
    lengths = (6, 4) if padded else (6, 6)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None] if padded else None
    loss = motion_loss(recon, target, PGR2MLossWeights(vel_mode=vel_mode), mask)
    joints = (width + 1) // 12
    begin = 4 + 9 * (joints - 1)
    columns = {"positions": slice(4, 4 + 3 * (joints - 1)), "velocities": slice(begin, begin + 3 * joints)}
    pairs = [(recon[row, :length], target[row, :length]) for row, length in enumerate(lengths)]
    every = torch.cat([F.smooth_l1_loss(*pair, reduction="none") for pair in pairs]).mean()
    if vel_mode == "differences":
        seen = [(a[1:] - a[:-1], b[1:] - b[:-1]) for a, b in pairs]
    else:
        seen = [(a[:, columns[vel_mode]], b[:, columns[vel_mode]]) for a, b in pairs]
    velocity = torch.cat([F.smooth_l1_loss(*pair, reduction="none") for pair in seen]).mean()
    torch.testing.assert_close(loss.terms, torch.stack([every, velocity]))
    torch.testing.assert_close(loss.total, every + 0.5 * velocity)


def test_a_loss_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"loss.vel_mode must be one of positions, velocities, differences, got 'v1'"):
        PGR2MLossWeights(vel_mode="v1")
    with pytest.raises(UserError, match=r"loss.velocity must be a number at least 0"):
        PGR2MLossWeights(velocity=-1)


@pytest.mark.parametrize("quantizer", ["attention", "distance"])
def test_training_learns_uses_its_codes_and_beats_pose_codes_alone(clips, tmp_path, quantizer):
    model = dataclasses.replace(TINY, quantizer=quantizer)
    result = train(PGR2MTrainConfig(model=model, **SHORT), clips, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [30, 60, 90, 120]
    assert rows[-1]["recon_smooth_l1"] < 0.75 * rows[0]["recon_smooth_l1"]
    for row in rows:
        total = row["reconstruction"] + 0.5 * row["velocity"] + row["commitment"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert min(rows[-1]["perplexity_per_stage"]) > 0.4 * 32, "a codebook has collapsed"
    whole, alone = (evaluate(result.model, clips, streams=streams) for streams in (None, 70))
    # In the features, which is what is trained; joints of so short a run are off by where it turns.
    assert whole["recon_smooth_l1"] < 0.95 * alone["recon_smooth_l1"]
    loaded = PGR2MTokenizer.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.encode(clips[0].features), result.model.encode(clips[0].features))


@pytest.mark.parametrize("quantizer", ["attention", "distance"])
def test_a_killed_run_ends_with_the_same_weights(clips, tmp_path, monkeypatch, quantizer):
    # Codes die, stages and residuals are dropped, and a milestone and a warm-up lie within the run.
    drops = {"dead_below": 0.9, "quantize_dropout": 0.5, "residual_dropout": 0.5}
    model = dataclasses.replace(TINY, quantizer=quantizer, **drops)
    sizes = {"steps": 12, "batch_size": 4, "window": 32, "checkpoint_every": 4, "log_every": 3}
    config = PGR2MTrainConfig(model=model, warmup=3, milestones=(8,), lr=1e-2, mirror=True, **sizes)
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


def test_a_step_without_residuals_moves_pose_codes_and_decoder_only(clips):
    torch.manual_seed(0)
    model = PGR2MTokenizer(dataclasses.replace(TINY, residual_dropout=1.0))
    step = TrainingStep(model, PGR2MLossWeights(), "fp32", SectionTimer(False, torch.device("cpu"))).train()
    losses = step(torch.from_numpy(clips[0].features[None, :32]))
    losses.total.backward()
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == {"pose_codebook", "decoder"}
    assert losses.commitment == 0
    assert (losses.indices[..., 70:] == -1).all()
    torch.testing.assert_close(losses.total, losses.terms[0] + 0.5 * losses.terms[1])


def test_bfloat16_leaves_pose_codes_and_attention_wide(clips):
    torch.manual_seed(0)
    model = PGR2MTokenizer(dataclasses.replace(TINY, residual_dropout=0.0))
    step = TrainingStep(model, PGR2MLossWeights(), "bf16", SectionTimer(False, torch.device("cpu"))).train()
    losses = step(torch.from_numpy(clips[0].features[None, :32]))
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    for weight in (model.pose_codebook, model.quantizer.stages[0].query.weight):
        assert weight.grad.dtype == torch.float32
        assert weight.grad.any()


@pytest.mark.parametrize("quantizer", ["attention", "distance"])
def test_the_whole_step_is_one_graph(clips, quantizer):
    changes = {"quantizer": quantizer, "dead_below": 0.0, "quantize_dropout": 0.0, "residual_dropout": 0.0}

    def run(compiled):
        torch.manual_seed(0)
        model = PGR2MTokenizer(dataclasses.replace(TINY, **changes))
        step = TrainingStep(model, PGR2MLossWeights(), "fp32", SectionTimer(False, torch.device("cpu"))).train()
        call = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        totals = []
        for clip in clips[:3]:  # the first initialises the codebooks
            motion = torch.from_numpy(clip.features[None, :32])
            losses = call(motion, None, model.read_codes(motion))
            losses.total.backward()
            totals.append(losses.total.detach())
        return torch.stack(totals), model.pose_codebook.grad

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected)
