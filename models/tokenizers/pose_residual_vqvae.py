"""The residual pose-code tokenizer (2508.14561): pose codes, and residual stages on one small shared codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastvq import EMA, CodebookRules, QuantizeDropout, RelativeUsage, ResidualVQ
from fastvq.models.tokenizers.pose_codes import PoseCodeConfig, PoseCodeTokenizer


@dataclass(frozen=True)
class PoseResidualVQVAEConfig(PoseCodeConfig):
    """Sizes of a :class:`PoseResidualVQVAE`; the defaults are the paper's, and where it leaves them open those of its
    successor PGR2M.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    codebook_size: int = 64
    """Codes in the codebook that all residual stages share."""

    kind = "pose-rvq"

    @property
    def pooled(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        if not self.stages:
            return f"pose codes alone, decoded by convolutions of width {self.width}"
        stages = "1 residual stage" if self.stages == 1 else f"{self.stages} residual stages"
        return f"pose codes and {stages} on one codebook of {self.codebook_size}, width {self.width}"


class PoseResidualVQVAE(PoseCodeTokenizer):
    """Pose codes with residual stages that share one EMA codebook.

    Buffers:
        mean, std: (C,), what the features are normalised with.
        those of :class:`fastvq.ResidualCodebook`, under ``quantizer.codebooks.``, unless ``stages`` is 0.
    """

    config_class = PoseResidualVQVAEConfig

    config: PoseResidualVQVAEConfig
    quantizer: ResidualVQ | None

    def make_quantizer(self) -> ResidualVQ | None:
        """Residual stages on one codebook."""
        config = self.config
        if not config.stages:
            return None
        return ResidualVQ(
            config.output_dim,
            config.codebook_size,
            num_quantizers=config.stages,
            shared=True,
            dropout=QuantizeDropout(config.quantize_dropout) if config.quantize_dropout else None,
            rules=CodebookRules(update=EMA(config.decay), dead=RelativeUsage(config.dead_below)),
            commitment_weight=config.commitment_weight,
        )

    def get_codebook_embeddings(self) -> Tensor:
        """The residual codes, (stages, codebook_size, output_dim); a copy."""
        if self.quantizer is None:
            return torch.empty(0, self.config.codebook_size, self.config.output_dim)
        return self.quantizer.codebook[0].detach().clone()
