"""The multi-group motion VQ-VAE: 272 features a frame in, 64 codes of 512 for each 4 frames, and back."""

from __future__ import annotations

from torch import Tensor

from fastvq import EMA, CodebookRules, GroupedVQ, RelativeUsage
from fastvq.models.nn.autoencoder import Encoder
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.tokenizer import MotionTokenizer


class MotionVQVAE(MotionTokenizer):
    """A tokenizer with grouped codebooks, each of which quantizes its own slice of the latent.

    Motions are (T, 272) or (B, T, 272) with absolute headings; tokens are (groups, B, ceil(T / downsample)). For all
    else see :class:`~fastvq.models.tokenizers.tokenizer.MotionTokenizer`.

    Buffers:
        mean, std: (272,), what the features are normalised with.
        those of :class:`fastvq.Codebook`, under ``quantizer.codebooks.``.
    """

    config_class = MotionVQVAEConfig

    config: MotionVQVAEConfig
    encoder: Encoder
    quantizer: GroupedVQ

    def make_quantizer(self) -> GroupedVQ:
        """Grouped codebooks."""
        config = self.config
        return GroupedVQ(
            config.output_dim,
            config.codebook_size,
            groups=config.groups,
            rules=CodebookRules(update=EMA(config.decay), dead=RelativeUsage(config.dead_below)),
            commitment_weight=config.commitment_weight,
        )

    def get_codebook_embeddings(self) -> Tensor:
        """The codes, (groups, codebook_size, code_dim); a copy."""
        return self.quantizer.codebook.detach().clone()
