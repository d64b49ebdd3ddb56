"""What the tokenizers with pose codes share: 70 readable codes a latent, and residual stages for what they leave out.

The first 70 streams of tokens are the pose codes of every ``downsample``-th frame, one of each category of
``fastvq.models.motion.pose_codes``, as bins that count from 0 in their category: stream c lies in 0 to
``CATEGORIES[c].size - 1``, like the codes of any other codebook. Its global number among the 392 is the bin plus the
category's first code, which :meth:`PoseCodeTokenizer.pose_codes` adds. The residual stages follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastvq import Quantized
from fastvq.functional import lookup
from fastvq.models.errors import UserError
from fastvq.models.motion.layout263 import LAYOUTS
from fastvq.models.motion.pose_codes import (
    CATEGORIES,
    NUM_CATEGORIES,
    NUM_CODES,
    PADDED_CODES,
    PoseCodes,
    parse_features,
    sides_exchanged,
)
from fastvq.models.tokenizers.config import TokenizerConfig, check_integer, check_number
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

MOST_STAGES = 8
POSE_SIZES = tuple(category.size for category in CATEGORIES)


def _parse(features: np.ndarray, mean: Tensor) -> PoseCodes:
    """(T, C) features; ``mean``, a row of those of the training, tells the sides."""
    return parse_features(features, exchanged=sides_exchanged(mean[None].float().cpu().numpy()))


# NumPy parses poses; as an op it is one node of a compiled graph.
torch.library.define("fastvq_models::pose_bins", "(Tensor features, Tensor mean) -> Tensor")


@torch.library.impl("fastvq_models::pose_bins", "CompositeExplicitAutograd")
def _pose_bins(features: Tensor, mean: Tensor) -> Tensor:
    """(B, T, C) -> the bin of each category, (B, T, 70) int64 on the device of the features."""
    bins = _parse(features.float().flatten(0, 1).cpu().numpy(), mean).bins
    return torch.from_numpy(bins).view(*features.shape[:2], NUM_CATEGORIES).to(features.device)


@torch.library.register_fake("fastvq_models::pose_bins")
def _(features: Tensor, mean: Tensor) -> Tensor:
    return features.new_empty((*features.shape[:2], NUM_CATEGORIES), dtype=torch.int64)


@dataclass(frozen=True)
class PoseCodeConfig(TokenizerConfig):
    """Sizes of a :class:`PoseCodeTokenizer`.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    input_dim: int = 263
    """Features of a frame: 263 (HumanML3D) or 251 (KIT-ML); they decide the frame rate."""
    stages: int = 2
    """Residual codes of a latent, 0 to 8; 0 leaves the pose codes alone, without an encoder."""
    quantize_dropout: float = 0.2
    """Probability that a training step takes only the first stages, a number drawn evenly."""
    detach_pose: bool = False
    """Whether residuals pass no gradient to the pose codes."""

    stream = "stage"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_dim not in (layout.width for layout in LAYOUTS):
            known = " or ".join(f"{layout.width} ({layout.name})" for layout in LAYOUTS)
            raise UserError(
                f"input_dim of a {self.kind} must be {known}, the features that pose codes are read from, got "
                f"{self.input_dim}: leave it out, and motions of any other format are made into those"
            )
        check_integer("stages", self.stages, 0, MOST_STAGES)
        check_number("quantize_dropout", self.quantize_dropout, 0, 1)
        if not isinstance(self.detach_pose, bool):
            raise UserError(f"detach_pose must be true or false, got {self.detach_pose!r}")

    @property
    def fps(self) -> float:
        """Frame rate of the features."""
        return self.features.fps

    @property
    def token_shape(self) -> tuple[int, int]:
        return 1, NUM_CATEGORIES + self.stages

    @property
    def parsed(self) -> int:
        return NUM_CATEGORIES

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*POSE_SIZES, *[self.codebook_size] * self.stages)


class PoseCodeTokenizer(MotionTokenizer):
    """A tokenizer whose latents begin with what a pose parser says of a frame, and go on with residual codes.

    The pose latent P(k) is the sum of the active rows of a learned (392, D) codebook; r = E(m) - P(k) is quantized to
    r_q, and the decoder gets P(k) + r_q. Motions are (T, C) or (B, T, C), C = ``config.input_dim``; tokens are
    (70 + stages, B, ceil(T / downsample)). -1 in the last stages of a latent leaves those out, in all of them the
    pose codes alone remain, and -1 in a category leaves that category out. For all else see
    :class:`~fastvq.models.tokenizers.tokenizer.MotionTokenizer`.

    Source: PGR2M (arXiv 2512.22464) and its predecessor (arXiv 2508.14561).

    Parameters:
        pose_codebook: (392, D), uniform in [-1/392, 1/D) at first.

    Buffers:
        mean, std: (C,), what the features are normalised with.
        those of the quantizer.
    """

    config: PoseCodeConfig
    pose_codebook: nn.Parameter
    padded_codes: Tensor

    def __init__(
        self,
        config: PoseCodeConfig | None = None,
        *,
        mean: np.ndarray | Tensor | None = None,
        std: np.ndarray | Tensor | None = None,
    ) -> None:
        super().__init__(config, mean=mean, std=std)
        dim = self.config.output_dim
        self.pose_codebook = nn.Parameter(torch.empty(NUM_CODES, dim).uniform_(-1 / NUM_CODES, 1 / dim))
        self.register_buffer("padded_codes", torch.from_numpy(PADDED_CODES.copy()), persistent=False)

    def read_codes(self, features: Tensor) -> Tensor:
        """The bins of every ``downsample``-th frame, from the first on."""
        frames = features[:, :: self.config.downsample].detach()
        bins: Tensor = torch.ops.fastvq_models.pose_bins.default(frames, self.mean)
        return bins

    def parse(self, features: np.ndarray) -> PoseCodes:
        """The pose codes of every frame, (T, C) features, not normalised.

        KIT-ML's files do not agree on which side is left; the mean features of the training say which it is.

        Raises:
            UserError: as :meth:`fastvq.models.motion.pose_codes.PoseParser.parse`.
        """
        return _parse(features, self.mean)

    def pose_codes(self, tokens: Tensor) -> PoseCodes:
        """The pose codes in (S, T') tokens of one motion, numbered among all 392.

        Raises:
            UserError: a category is left out (-1).
        """
        return PoseCodes(tokens[:NUM_CATEGORIES].t().cpu().numpy() + PADDED_CODES[:, 0])

    def pose_latents(self, codes: Tensor) -> Tensor:
        """P(k): the sum of the active rows of the pose codebook.

        Args:
            codes: (B, T', 70) bins; -1 adds nothing.

        Returns:
            (B, T', D), in the dtype of the pose codebook.
        """
        return lookup(codes, self.pose_codebook[self.padded_codes]).to(self.pose_codebook.dtype)

    def quantize(self, latents: Tensor | None, mask: Tensor | None = None, codes: Tensor | None = None) -> Quantized:
        """Pose latents and quantized residuals, added; the loss is the residual quantizer's."""
        assert codes is not None
        codes = _masked(codes, mask)
        pose = self.pose_latents(codes)
        if self.quantizer is None:
            return Quantized(pose, codes, pose.new_zeros(()))
        assert latents is not None
        residual, indices, loss = self.quantizer(self._residuals(latents, pose), mask)
        return Quantized(pose + residual.to(pose.dtype), torch.cat([codes, indices], dim=-1), loss)

    def _residuals(self, latents: Tensor, pose: Tensor) -> Tensor:
        return latents - (pose.detach() if self.config.detach_pose else pose)

    def _search(self, latents: Tensor | None, mask: Tensor | None, codes: Tensor | None) -> Tensor:
        assert codes is not None
        codes = _masked(codes, mask)
        if self.quantizer is None:
            return codes
        assert latents is not None
        found = self.quantizer.encode(self._residuals(latents, self.pose_latents(codes)), mask)
        return torch.cat([codes, found], dim=-1)

    def _lookup(self, tokens: Tensor) -> Tensor:
        pose = self.pose_latents(tokens[..., :NUM_CATEGORIES])
        if self.quantizer is None:
            return pose
        return pose + self.quantizer.decode(tokens[..., NUM_CATEGORIES:].contiguous())


def _masked(codes: Tensor, mask: Tensor | None) -> Tensor:
    return codes if mask is None else codes.masked_fill(~mask.unsqueeze(-1), -1)
