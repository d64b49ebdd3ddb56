"""Codebooks' moving averages begin with a short memory, so that they keep up with latents that move."""

import dataclasses

import pytest
import torch

import fastvq.functional as F
from fastvq import Learned, ResidualVQ
from fastvq.metrics import code_counts, perplexity
from fastvq.models.training.config import TrainConfig
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


def test_codes_that_no_average_leads_are_left_alone():
    vq = ResidualVQ(4, 8, num_quantizers=2)
    vq.codebooks.rules = dataclasses.replace(vq.codebooks.rules, update=Learned(decay=0.9))
    set_decay(vq, 0.1)
    assert vq.codebooks.rules.update.decay == 0.9
    set_decay(torch.nn.Identity(), 0.1)


@pytest.mark.parametrize(("warm", "collapses"), [(True, False), (False, True)])
def test_it_keeps_codes_in_use_while_latents_move(warm, collapses):
    torch.manual_seed(0)
    config = TrainConfig(decay_warmup=warm)
    vq = ResidualVQ(16, 64, num_quantizers=2, shared=True).train()
    least = 64.0
    for step in range(100):
        rows = torch.randn(1, 1024, 16) + 0.025 * step
        set_decay(vq, config.codebook_decay(step, 0.99))
        counts = code_counts(vq(rows).indices, 64).sum(0, keepdim=True)
        least = min(least, float(perplexity(counts)))
    assert (least < 0.4 * 64) is collapses, least
