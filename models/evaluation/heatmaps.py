"""How far reconstructed heatmaps are from what they should be: SSIM, PSNR, L1 and how unsteady these are over time.

As in the adversarial VQ-GAN on heatmaps (2025, arXiv 2509.19252): both are clipped to 0 to 1; the SSIM of a frame is
the mean over its views, over the places where a Gaussian window of 11 pixels, of standard deviation 1.5, fits
(Wang et al. 2004).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from fastvq.models.errors import UserError

WINDOW = 11
# Decibels of a frame without any error, whose PSNR would be infinite.
MOST_PSNR = 100.0


class FrameScores(NamedTuple):
    """Scores of every frame, (B, T) each; views are averaged."""

    ssim: Tensor
    psnr: Tensor
    l1: Tensor


def frame_scores(given: Tensor, wanted: Tensor) -> FrameScores:
    """SSIM, PSNR in decibels, and L1 of every frame.

    PSNR is -10 log10 of the mean squared error over the frame's views and pixels, at most 100.

    Args:
        given, wanted: (B, C, T, H, W), at least 11 rows and columns; clipped to 0 to 1 here.

    Raises:
        UserError: shapes that differ or are too small, or values that are not finite.
    """
    if given.shape != wanted.shape or given.ndim != 5 or not given.numel():
        raise UserError(
            "heatmaps to compare must have the same shape (B, C, T, H, W) and not be empty, got "
            f"{tuple(given.shape)} and {tuple(wanted.shape)}"
        )
    if min(given.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM needs at least {WINDOW} rows and columns, got {tuple(given.shape[-2:])}")
    if not bool(given.isfinite().all() & wanted.isfinite().all()):
        raise UserError("heatmaps to compare must be finite, got NaN or infinity")
    batch, frames = given.shape[0], given.shape[2]
    first, second = (x.detach().clamp(0, 1).transpose(1, 2).flatten(0, 1) for x in (given, wanted))
    _, everywhere = structural_similarity_index_measure(
        first, second, sigma=1.5, kernel_size=WINDOW, data_range=1.0, reduction="none", return_full_image=True
    )
    margin = WINDOW // 2
    ssim = everywhere[..., margin:-margin, margin:-margin].mean(dim=(1, 2, 3))
    error = (first - second).flatten(1)
    psnr = -10 * error.square().mean(dim=1).clamp_min(10 ** (-MOST_PSNR / 10)).log10()
    return FrameScores(*(x.reshape(batch, frames) for x in (ssim, psnr, error.abs().mean(dim=1))))


def unsteadiness(scores: FrameScores) -> Tensor:
    """T-Std of every window, (B,): how much the scores go up and down from frame to frame.

    The mean over the three scores of the standard deviation over a window's frames, each score scaled from its
    smallest to its largest value in the window; 0 for a score that does not change. The deviation is that of the
    frames themselves, without Bessel's correction, which the paper leaves open.
    """
    rows = torch.stack(list(scores))
    low, high = rows.amin(dim=2, keepdim=True), rows.amax(dim=2, keepdim=True)
    scaled = (rows - low) / torch.where(high > low, high - low, 1)
    return scaled.std(dim=2, correction=0).mean(dim=0)


@dataclass
class HeatmapScores:
    """Means over many windows, each of the same weight whatever the batches.

    >>> import torch
    >>> scores = HeatmapScores()
    >>> scores.add(torch.zeros(2, 3, 4, 16, 16), torch.zeros(2, 3, 4, 16, 16))
    >>> scores.means()
    {'ssim': 1.0, 'psnr': 100.0, 'l1': 0.0, 't_std': 0.0}
    """

    windows: int = 0
    _sums: dict[str, float] = field(default_factory=dict)

    def add(self, given: Tensor, wanted: Tensor) -> None:
        """Takes in windows (B, C, T, H, W), as :func:`frame_scores` does."""
        scores = frame_scores(given, wanted)
        columns = {name: values.mean(dim=1) for name, values in scores._asdict().items()}
        for name, values in {**columns, "t_std": unsteadiness(scores)}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
        self.windows += len(given)

    def means(self) -> dict[str, float]:
        """ssim, psnr (dB), l1 and t_std over the windows so far; empty without any."""
        return {name: total / self.windows for name, total in self._sums.items()}
