"""A small tokenizer with residual stages and a generator that drives it."""

import numpy as np
import pytest
import torch

from fastvq.models.generators.double_tier_gpt import DoubleTierGPT, DoubleTierGPTConfig
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig

SMALL = DoubleTierGPTConfig(dim=32, layers=2, depth_layers=1, heads=4, longest=12)


@pytest.fixture(scope="session")
def rvqvae() -> ResidualVQVAE:
    """Three stages of 16 codes."""
    torch.manual_seed(0)
    config = ResidualVQVAEConfig(width=16, output_dim=16, codebook_size=16, stages=3, depth=1)
    model = ResidualVQVAE(config).train()
    with torch.no_grad():
        model(np.random.default_rng(0).standard_normal((4, 64, 263)).astype(np.float32))
    return model.eval()


@pytest.fixture(params=[False, True], ids=["pooled", "text tokens"])
def generator(request, rvqvae) -> DoubleTierGPT:
    """With weights so large that every code depends on all before it."""
    torch.manual_seed(1)
    config = DoubleTierGPTConfig(**{**vars(SMALL), "text_tokens": request.param})
    model = DoubleTierGPT(config.fitted(rvqvae, open_text_encoder("hash")))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()
