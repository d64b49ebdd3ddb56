"""PGR2M's tokenizer (2512.22464): pose codes, and residual stages that choose their codes by attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastvq import (
    EMA,
    CodebookRules,
    FirstRowsInit,
    Learned,
    Quantized,
    QuantizeDropout,
    RandomInit,
    RelativeUsage,
    ResidualAttentionVQ,
    ResidualVQ,
    distributed,
)
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import check_number
from fastvq.models.tokenizers.pose_codes import PoseCodeConfig, PoseCodeTokenizer

QuantizerName = Literal["attention", "distance"]
Start = Literal["identity", "random"]


@dataclass(frozen=True)
class PGR2MConfig(PoseCodeConfig):
    """Sizes of a :class:`PGR2MTokenizer`; the defaults are the published ones, but for two that keep codes in use.

    PGR2M's attention quantizers neither replace codes nor begin near the residuals. Trained so on a few hundred
    clips, latents first grow away from codes that have nothing to do with them, and then few codes are chosen: the
    perplexity of a stage fell to 37 of 512. ``start="random"`` with ``dead_below=0`` is as published.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    stages: int = 6
    """Residual codes of a latent, 0 to 8; 0 leaves the pose codes alone, without an encoder."""
    detach_pose: bool = True
    """Whether residuals pass no gradient to the pose codes."""
    dead_below: float = 0.5
    """A residual code used less than this share of the mean is replaced by a row; 0 (as published) keeps it."""
    commitment_weight: float = 0.02
    """Weight of the residual stages' loss, without the entropy's part."""
    residual_dropout: float = 0.1
    """Probability that a training step decodes the pose codes alone (the paper's tau)."""
    quantizer: QuantizerName = "attention"
    """How a stage chooses and learns its codes: by attention, or by distance with moving averages."""
    beta: float = 0.25
    """Weight of the codes' part in the loss of an attention stage."""
    entropy_weight: float = 0.01
    """Weight of the entropy loss of attention, which rewards sure choices and the use of all codes."""
    entropy_temperature: float = 0.01
    """Temperature of the choices that the entropy loss looks at."""
    start: Start = "identity"
    """How attention begins: random (as published), or with identity maps, so that a residual takes the code nearest
    by angle, and codes drawn from all rows of the first batch."""

    kind = "pgr2m"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("residual_dropout", self.residual_dropout, 0, 1)
        check_number("beta", self.beta, 0)
        check_number("entropy_weight", self.entropy_weight, 0)
        check_number("entropy_temperature", self.entropy_temperature, 0, above=True)
        for name, choices in (("quantizer", get_args(QuantizerName)), ("start", get_args(Start))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def summary(self) -> str:
        if not self.stages:
            return f"pose codes alone, decoded by convolutions of width {self.width}"
        stages = "1 residual stage" if self.stages == 1 else f"{self.stages} residual stages"
        return f"pose codes and {stages} of {self.codebook_size} codes by {self.quantizer}, width {self.width}"


class PGR2MTokenizer(PoseCodeTokenizer):
    """Pose codes with residual stages that have a codebook each and choose from it by attention.

    The residual is r = E(m) - sg(P(k)), so that it moves no pose code. In training the decoder now and then gets
    P(k) alone (``residual_dropout``): encoder and quantizer then learn nothing, and tokens of the residual are -1.
    Decoding takes the codes as attention used them, W_v c, and not the codebook's own rows c.

    Source: PGR2M (arXiv 2512.22464).

    Parameters:
        pose_codebook: (392, D).
        those of :class:`fastvq.ResidualAttentionVQ`, under ``quantizer.``, unless ``stages`` is 0.

    Buffers:
        mean, std: (C,), what the features are normalised with.
        those of :class:`fastvq.ResidualAttentionVQ`, or with ``quantizer="distance"`` of :class:`fastvq.ResidualVQ`,
        under ``quantizer.``.
    """

    config_class = PGR2MConfig

    config: PGR2MConfig
    quantizer: ResidualAttentionVQ | ResidualVQ | None

    def make_quantizer(self) -> ResidualAttentionVQ | ResidualVQ | None:
        """Residual stages with codes of their own."""
        config = self.config
        if not config.stages:
            return None
        dropout = QuantizeDropout(config.quantize_dropout) if config.quantize_dropout else None
        dead = RelativeUsage(config.dead_below) if config.dead_below else None
        if config.quantizer == "distance":
            return ResidualVQ(
                config.output_dim,
                config.codebook_size,
                num_quantizers=config.stages,
                dropout=dropout,
                rules=CodebookRules(update=EMA(config.decay), dead=dead),
                commitment_weight=config.commitment_weight,
            )
        first = RandomInit() if config.start == "identity" else FirstRowsInit()
        return ResidualAttentionVQ(
            config.output_dim,
            config.codebook_size,
            num_quantizers=config.stages,
            dropout=dropout,
            beta=config.beta,
            entropy_weight=config.entropy_weight,
            entropy_temperature=config.entropy_temperature,
            start=config.start,
            rules=CodebookRules(update=Learned(config.commitment_weight, config.decay), init=first, dead=dead),
        )

    def quantize(self, latents: Tensor | None, mask: Tensor | None = None, codes: Tensor | None = None) -> Quantized:
        """Pose latents and quantized residuals, added; in training now and then pose latents alone and no loss."""
        tau = self.config.residual_dropout
        # On the host: the choice is one for the whole batch, and a step without residuals costs as little as it can.
        # One for all ranks, too, since codebooks that follow all of them need every rank.
        if not (self.training and tau and self.config.stages) or self._drawn() >= tau:
            return super().quantize(latents, mask, codes)
        assert codes is not None
        codes = codes if mask is None else codes.masked_fill(~mask.unsqueeze(-1), -1)
        pose = self.pose_latents(codes)
        holes = codes.new_full((*codes.shape[:-1], self.config.stages), -1)
        return Quantized(pose, torch.cat([codes, holes], dim=-1), pose.new_zeros(()))

    def _drawn(self) -> float:
        """Evenly from [0, 1), on all ranks the same; from the host's generator."""
        return float(distributed.agreed(torch.rand(()).to(self.mean.device)))

    def get_codebook_embeddings(self) -> Tensor:
        """The residual codes as decoding adds them, (stages, codebook_size, output_dim); a copy."""
        if self.quantizer is None:
            return torch.empty(0, self.config.codebook_size, self.config.output_dim)
        codes = self.quantizer.codebook.detach().clone()
        return codes if isinstance(self.quantizer, ResidualAttentionVQ) else codes[0]
