"""Codebooks' moving averages begin with a short memory, so that they keep up with latents that move."""

import dataclasses

import pytest
import torch

import fastvq.functional as F
from fastvq import (
    EMA,
    AttentionVQ,
    CodebookRules,
    Frozen,
    Learned,
    RandomInit,
    RelativeUsage,
    ResidualAttentionVQ,
    ResidualVQ,
)
from fastvq.metrics import code_counts, perplexity
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.pgr2m import PGR2MTrainConfig
from fastvq.models.training.pose_residual_vqvae import PoseResidualTrainConfig
from fastvq.models.training.residual_vqvae import ResidualTrainConfig
from fastvq.models.training.trainer import set_decay, train


@pytest.fixture
def clips(feature_clip):
    return [feature_clip(frames, frames) for frames in (40, 60)]


@pytest.fixture
def decays(monkeypatch):
    """The decay of every update of a codebook."""
    seen, update = [], F.ema_update_

    def ema_update_(*arguments, decay, **options):
        seen.append(decay)
        return update(*arguments, decay=decay, **options)

    monkeypatch.setattr(F, "ema_update_", ema_update_)
    return seen


def test_the_decay_rises_to_that_of_the_model():
    config = TrainConfig(decay_warmup=True)
    assert [config.codebook_decay(step, 0.99) for step in (0, 1, 8)] == [0.1, 2 / 11, 0.5]
    assert config.codebook_decay(889, 0.99) < 0.99 == config.codebook_decay(891, 0.99)
    assert config.codebook_decay(5, 0.3) == 0.3
    assert TrainConfig().codebook_decay(0, 0.99) == 0.99


def test_residual_recipes_begin_with_a_short_memory_and_the_multi_group_one_does_not():
    assert ResidualTrainConfig().decay_warmup
    assert PoseResidualTrainConfig().decay_warmup
    assert PGR2MTrainConfig().decay_warmup
    assert not TrainConfig().decay_warmup


def test_updates_of_a_run_have_the_decay_of_their_step_and_those_of_a_resumed_one_too(
    tiny_config, clips, decays, tmp_path
):
    config = TrainConfig(
        model=tiny_config, steps=4, batch_size=4, window=32, checkpoint_every=2, log_every=2, decay_warmup=True
    )
    train(config, clips, tmp_path)
    train(dataclasses.replace(config, steps=7), clips, tmp_path, resume=True)
    assert decays == [config.codebook_decay(step, tiny_config.decay) for step in range(7)]
    decays.clear()
    train(dataclasses.replace(config, decay_warmup=False), clips, tmp_path / "other")
    assert decays == [tiny_config.decay] * 4


def test_it_reaches_every_codebook_and_leaves_other_modules_alone():
    learned = ResidualAttentionVQ(4, 8, num_quantizers=2, rules=CodebookRules(update=Learned(weight=0.5)))
    vq = torch.nn.ModuleList([ResidualVQ(4, 8, num_quantizers=2), learned, torch.nn.Identity()])
    set_decay(vq, 0.1)
    assert vq[0].codebooks.rules.update == EMA(0.1)
    assert [stage.codebooks.rules.update for stage in learned.stages] == [Learned(0.5, 0.1)] * 2
    frozen = ResidualVQ(4, 8, num_quantizers=2, rules=CodebookRules(update=Frozen()))
    set_decay(frozen, 0.1)
    assert frozen.codebooks.rules.update == Frozen()


def averaged():
    return ResidualVQ(16, 64, num_quantizers=2, shared=True)


def attended():
    rules = CodebookRules(update=Learned(), init=RandomInit(), dead=RelativeUsage(0.5))
    return AttentionVQ(16, 64, start="identity", rules=rules)


@pytest.mark.parametrize(("warm", "collapses"), [(True, False), (False, True)])
@pytest.mark.parametrize(("make", "speed"), [(averaged, 0.025), (attended, 0.02)])
def test_it_keeps_codes_in_use_while_latents_move(make, speed, warm, collapses):
    torch.manual_seed(0)
    config = TrainConfig(decay_warmup=warm)
    vq = make().train()
    least = 64.0
    for step in range(100):
        rows = torch.randn(1, 1024, 16) + speed * step
        set_decay(vq, config.codebook_decay(step, 0.99))
        counts = code_counts(vq(rows).indices.reshape(1, 1024, -1), 64).sum(0, keepdim=True)
        least = min(least, float(perplexity(counts)))
    assert (least < 0.4 * 64) is collapses, least
