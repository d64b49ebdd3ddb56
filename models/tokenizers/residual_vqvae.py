"""The residual motion VQ-VAE of T2M-HiFiGPT (2023, arXiv 2312.10628): a grid of codes, time by depth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastvq import EMA, CodebookRules, QuantizeDropout, RelativeUsage, ResidualVQ
from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.nn.autoencoder import Encoder
from fastvq.models.tokenizers.config import TokenizerConfig, check_integer, check_number
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

MOST_STAGES = 8


@dataclass(frozen=True)
class ResidualVQVAEConfig(TokenizerConfig):
    """Sizes of a :class:`ResidualVQVAE`.

    The paper gives the structure and few numbers; those that it leaves open are the ones usual for residual
    tokenizers of motion (MoMask, Guo et al. 2023), which has 19 M parameters at HumanML3D's 263 features.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    input_dim: int = 263
    """Features of a frame: 263 (HumanML3D), 251 (KIT-ML) or 272; they decide the frame rate."""
    stages: int = 6
    """Codes of a latent, each of what the ones before it left: 1 to 8."""
    shared: bool = True
    """Whether all stages use one codebook."""
    quantize_dropout: float = 0.2
    """Probability that a training step takes only the first stages, a number drawn evenly."""

    kind = "rvqvae"
    stream = "stage"

    def __post_init__(self) -> None:
        super().__post_init__()
        format_of(self.input_dim)
        check_integer("stages", self.stages, 1)
        if self.stages > MOST_STAGES:
            raise UserError(f"stages must be at most {MOST_STAGES}, got {self.stages}")
        if not isinstance(self.shared, bool):
            raise UserError(f"shared must be true or false, got {self.shared!r}")
        check_number("quantize_dropout", self.quantize_dropout, 0, 1)

    @property
    def fps(self) -> float:
        """Frame rate of the features."""
        return self.features.fps

    @property
    def token_shape(self) -> tuple[int, int]:
        return 1, self.stages

    @property
    def pooled(self) -> bool:
        return self.shared

    @property
    def summary(self) -> str:
        books = "one shared codebook" if self.shared else "codebooks"
        return f"RVQ-VAE of width {self.width} with {self.stages} stages on {books} of {self.codebook_size} codes"


class ResidualVQVAE(MotionTokenizer):
    """A tokenizer with a stack of residual stages; any number of the first ones decode to a coarser motion.

    Motions are (T, C) or (B, T, C), C = ``config.input_dim``; tokens are (stages, B, ceil(T / downsample)), where -1
    in the last stages of a latent leaves those out. For all else see
    :class:`~fastvq.models.tokenizers.tokenizer.MotionTokenizer`.

    Buffers:
        mean, std: (C,), what the features are normalised with.
        those of :class:`fastvq.ResidualCodebook`, under ``quantizer.codebooks.``.
    """

    config_class = ResidualVQVAEConfig

    config: ResidualVQVAEConfig
    encoder: Encoder
    quantizer: ResidualVQ

    def make_quantizer(self) -> ResidualVQ:
        """Residual stages."""
        config = self.config
        return ResidualVQ(
            config.output_dim,
            config.codebook_size,
            num_quantizers=config.stages,
            shared=config.shared,
            dropout=QuantizeDropout(config.quantize_dropout) if config.quantize_dropout else None,
            rules=CodebookRules(update=EMA(config.decay), dead=RelativeUsage(config.dead_below)),
            commitment_weight=config.commitment_weight,
        )

    def get_codebook_embeddings(self) -> Tensor:
        """The codes, (stages, codebook_size, output_dim); a copy."""
        return self.quantizer.codebook[0].detach().clone()
