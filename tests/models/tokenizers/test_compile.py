"""torch.compile of whole tokenizers, at more than one length."""

import pytest
import torch

from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE, MotionVQVAEConfig
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE, PoseResidualVQVAEConfig
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig

CASES = [
    (MotionVQVAE, MotionVQVAEConfig, torch.float32),
    (MotionVQVAE, MotionVQVAEConfig, torch.bfloat16),
    (ResidualVQVAE, ResidualVQVAEConfig, torch.float32),
    (PoseResidualVQVAE, PoseResidualVQVAEConfig, torch.float32),
    (PGR2MTokenizer, PGR2MConfig, torch.float32),
]


@pytest.mark.parametrize(("kind", "settings", "precision"), CASES)
def test_compiled_tokenizers_give_the_same_at_every_length(kind, settings, precision):
    torch.manual_seed(0)
    config = settings(width=16, depth=1)
    model = kind(config, mean=torch.zeros(config.input_dim), std=torch.ones(config.input_dim)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for frames in (16, 32, 40):
        motion = torch.randn(2, frames, config.input_dim)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            (found, tokens), (expected, wanted) = compiled(motion), model(motion)
        assert torch.equal(tokens, wanted)
        torch.testing.assert_close(found, expected)


def test_the_compiled_heatmap_tokenizer_gives_the_same():
    torch.manual_seed(0)
    config = HeatmapVQGANConfig(
        frames=16, size=32, channels=(8,) * 5, latent_channels=8, code_dim=8, norm_groups=4, codebook_size=32
    )
    model = HeatmapVQGAN(config).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    heatmaps = torch.rand(1, 3, 16, 32, 32)
    with torch.no_grad():
        found, expected = compiled(heatmaps), model(heatmaps)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps)


def test_parsing_poses_is_an_op_that_graphs_can_hold():
    op = torch.ops.fastvq_models.pose_bins.default
    torch.library.opcheck(op, (torch.randn(2, 3, 263), torch.zeros(263)))
