"""One training step's forward pass: motions in, losses out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import Precision
from fastvq.models.training.losses import LossTerms, motion_loss
from fastvq.models.training.sections import SectionTimer


class StepLosses(NamedTuple):
    """What a step yields.

    Attributes:
        total: scalar to minimise, with gradient.
        terms: (N,), the unweighted terms of the loss, in the order of its names.
        smooth_l1: scalar, unweighted over all features.
        commitment: scalar, the quantizer's loss with its weight.
        indices: (B, T', streams).
    """

    total: Tensor
    terms: Tensor
    smooth_l1: Tensor
    commitment: Tensor
    indices: Tensor


class TrainingStep(nn.Module):
    """A model and its losses as one module.

    Only the convolutions run in 16 bits: the quantizer gets float32 latents, and the losses compare float32.

    Args:
        model: the tokenizer.
        weights: of the losses.
        precision: "fp32", or "bf16" for autocast in encoder and decoder.
        timer: measures the sections.
        compile: run encoder and decoder through torch.compile, here only: the model itself, which will see
            sequences of all lengths, stays as it is.
    """

    def __init__(
        self,
        model: MotionTokenizer,
        weights: LossTerms,
        precision: Precision,
        timer: SectionTimer,
        *,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.autocast = precision == "bf16"
        self.timer = timer
        self.encode = torch.compile(model.encoder) if compile and model.encoder is not None else model.encoder
        self.decode = torch.compile(model.decoder) if compile else model.decoder

    def forward(self, motion: Tensor, mask: Tensor | None = None, codes: Tensor | None = None) -> StepLosses:
        """Reconstructs motions and compares.

        Args:
            motion: (B, T, C), not normalised, T a multiple of the model's downsampling.
            mask: (B, T), True where a frame is real, as :meth:`MotionTokenizer.collate` makes it; None for all.
            codes: what :meth:`MotionTokenizer.read_codes` gives for the motions; None reads them here.
        """
        model, timer = self.model, self.timer
        target = model.normalise(motion)
        codes = model.read_codes(motion) if codes is None else codes
        with timer.section("encoder"), self._mixed(motion):
            latents = None if self.encode is None else self.encode(target, mask)
        with timer.section("quantizer"):
            token_mask = None if mask is None else mask[:, :: model.config.downsample]
            wide = None if latents is None else latents.to(target.dtype)
            quantized, indices, commitment = model.quantize(wide, token_mask, codes)
        with timer.section("decoder"), self._mixed(motion):
            reconstruction = self.decode(quantized, token_mask)
        with timer.section("losses"):
            reconstruction = reconstruction.to(target.dtype)
            loss = motion_loss(reconstruction, target, self.weights, mask, denormalise=model.denormalise)
            total = loss.total + commitment
        timer.split_backward(reconstruction, "losses_backward")
        timer.split_backward(quantized, "decoder_backward")
        if latents is not None:
            timer.split_backward(latents, "quantizer_backward")
        return StepLosses(total, loss.terms, loss.smooth_l1, commitment.detach(), indices)

    def _mixed(self, motion: Tensor) -> torch.autocast:
        return torch.autocast(motion.device.type, dtype=torch.bfloat16, enabled=self.autocast)
