"""What heatmaps of motions are like: how joints are seen, placed and drawn, and where they lie in each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.heatmaps import render
from fastvq.models.heatmaps.keypoints import RADIUS, find_joints
from fastvq.models.heatmaps.limbs import SMPL_LIMBS, Limb, check_limbs
from fastvq.models.heatmaps.placement import Camera, fit, fitting, volume_axes
from fastvq.models.tokenizers.config import check_integer, check_number

Projection = Literal["volume", "analytic", "plane"]


@dataclass(frozen=True)
class HeatmapFormat:
    """Heatmaps of a window of motion; the defaults are the paper's three views of a volume (arXiv 2509.19252).

    The paper takes 15 joints of CMU Panoptic (:data:`~fastvq.models.heatmaps.limbs.PANOPTIC_LIMBS`); here the limbs
    are the 21 bones of SMPL's joints unless others are given.

    Args:
        size: pixels along both axes of a view.
        sigma: of the Gaussian, in pixels.
        share: of the size that the clip's bounding box takes.
        projection: "volume", the maxima of a volume along its axes; "analytic", the same of a volume whose depth is
            not cut into voxels; "plane", what each camera sees.
        cameras: of "plane", a channel each.
        limbs: pairs of joints.
        squared_scores: whether the views of a volume are multiplied by a limb's score twice, as the paper's are.

    Raises:
        UserError: a value that no heatmaps can have, naming it.
    """

    size: int = 128
    sigma: float = render.SIGMA
    share: float = 0.9
    projection: Projection = "volume"
    cameras: tuple[Camera, ...] = (Camera(),)
    limbs: tuple[Limb, ...] = SMPL_LIMBS
    squared_scores: bool = True

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_number("sigma", self.sigma, 0, above=True)
        check_number("share", self.share, 0, 1, above=True)
        if self.projection not in get_args(Projection):
            raise UserError(f"projection must be one of {', '.join(get_args(Projection))}, got {self.projection!r}")
        if not self.cameras:
            raise UserError("cameras must hold at least one camera, got none")

    @property
    def channels(self) -> int:
        """Views."""
        return len(self.cameras) if self.projection == "plane" else len(render.VIEWS)

    def place(self, joints: Tensor | np.ndarray) -> Tensor:
        """Where joints lie in the volume or on the image planes, each clip fitted by one scale.

        Args:
            joints: (T, J, 3) or (B, T, J, 3) metres, Y up.

        Returns:
            (B, T, J, 3) voxels; for "plane" (B, C, T, J, 2) pixels.

        Raises:
            UserError: another shape, no frames, fewer than two joints, values that are not finite, or no extent.
        """
        clips = self._checked(joints)
        if self.projection != "plane":
            return fit(volume_axes(clips), self.size, share=self.share)
        seen = [fit(camera.see(clips), self.size, share=self.share) for camera in self.cameras]
        return torch.stack(seen, dim=1)

    def views(self, joints: Tensor | np.ndarray) -> Tensor:
        """Where joints lie in each channel: (T, J, 3) or (B, T, J, 3) metres -> (B, C, T, J, 2) pixels."""
        placed = self.place(joints)
        if self.projection == "plane":
            return placed
        return torch.stack([placed[..., list(view[:2])] for view in render.VIEWS], dim=1)

    def placement(self, joints: Tensor | np.ndarray) -> Tensor:
        """How each clip is fitted into each channel's picture.

        Args:
            joints: (T, J, 3) or (B, T, J, 3) metres, Y up.

        Returns:
            (B, C, 3) float64: the metres to the right and downwards, as that channel sees them, of the picture's
            middle, and the pixels that a metre takes. Views of a volume share their axes; a camera of "plane" counts
            from the middle of the clip.

        Raises:
            UserError: as :meth:`place`.
        """
        clips = self._checked(joints).double()
        if self.projection != "plane":
            middle, scale = (x.flatten(1) for x in fitting(volume_axes(clips), self.size, share=self.share))
            return torch.stack([torch.cat([middle[:, list(view[:2])], scale], dim=1) for view in render.VIEWS], dim=1)
        seen = (fitting(camera.see(clips), self.size, share=self.share) for camera in self.cameras)
        return torch.stack([torch.cat([middle, scale], dim=-1).flatten(1) for middle, scale in seen], dim=1)

    def metres(self, pixels: Tensor, placed: Tensor) -> Tensor:
        """Where places in pictures are, in metres to the right and downwards as each channel sees them.

        Args:
            pixels: (B, C, T, J, 2), such as :meth:`views` and :meth:`find` give.
            placed: (B, C, 3), as :meth:`placement` gives it.
        """
        middle, scale = placed[:, :, None, None, :2], placed[:, :, None, None, 2:]
        return (pixels - (self.size - 1) / 2) / scale + middle

    def pixels(self, metres: Tensor, placed: Tensor) -> Tensor:
        """The inverse of :meth:`metres`."""
        middle, scale = placed[:, :, None, None, :2], placed[:, :, None, None, 2:]
        return (metres - middle) * scale + (self.size - 1) / 2

    def render(self, joints: Tensor | np.ndarray, scores: Tensor | None = None) -> Tensor:
        """Heatmaps of clips, as the model takes them.

        Args:
            joints: (T, J, 3) or (B, T, J, 3) metres, Y up.
            scores: (T, J) or (B, T, J) in 0 to 1, how sure of each joint one is; 1 if absent.

        Returns:
            (B, C, T, size, size), values in 0 to 1.

        Raises:
            UserError: as :meth:`place`, scores of another shape or out of range, or a frame that shows nothing.
        """
        placed = self.place(joints)
        scores = None if scores is None else self._checked_scores(scores, placed)
        if self.projection == "plane":
            if scores is not None:
                scores = scores.unsqueeze(1).expand(placed.shape[:-1])
            return render.plane_heatmaps(placed, self.limbs, size=self.size, sigma=self.sigma, scores=scores)
        draw = render.volume_projections if self.projection == "volume" else render.analytic_projections
        drawn = draw(
            placed,
            self.limbs,
            size=self.size,
            sigma=self.sigma,
            scores=scores,
            squared_scores=self.squared_scores,
        )
        return drawn.transpose(1, 2).contiguous()

    def find(self, heatmaps: Tensor, near: Tensor, *, radius: float = RADIUS) -> Tensor:
        """Joints of heatmaps, looked for near given places.

        Args:
            heatmaps: (B, C, T, size, size).
            near: (B, C, T, J, 2) pixels, such as :meth:`views` gives for the motion that they should show.
            radius: pixels.

        Returns:
            (B, C, T, J, 2) pixels, NaN for joints whose limbs are not there.

        Raises:
            UserError: as :func:`fastvq.models.heatmaps.keypoints.find_joints`.
        """
        return find_joints(heatmaps, near, self.limbs, radius=radius)

    def find_drawn(self, heatmaps: Tensor, near: Tensor, *, radius: float = RADIUS) -> Tensor:
        """As :meth:`find`, with NaN for the joints of pictures that show nothing, which decoded heatmaps may have."""
        drawn = heatmaps.amax(dim=(-2, -1)) > 0
        found = torch.full_like(near, float("nan"))
        if bool(drawn.any()):
            found[drawn] = self.find(heatmaps[drawn], near[drawn], radius=radius)
        return found

    def _checked(self, joints: Tensor | np.ndarray) -> Tensor:
        if not isinstance(joints, (Tensor, np.ndarray)):
            raise UserError(f"joints must be a NumPy array or a tensor, got {type(joints).__name__}")
        clips = joints if isinstance(joints, Tensor) else torch.from_numpy(np.array(joints, dtype=np.float32))
        if clips.ndim not in (3, 4) or clips.shape[-1] != 3:
            raise UserError(f"joints must have the shape (T, J, 3) or (B, T, J, 3), got {tuple(joints.shape)}")
        clips = clips if clips.ndim == 4 else clips.unsqueeze(0)
        if 0 in clips.shape[:2]:
            raise UserError(f"joints must hold at least one frame, got the shape {tuple(joints.shape)}")
        check_limbs(self.limbs, clips.shape[2])
        finite = clips.isfinite().flatten(2).all(dim=2)
        if not bool(finite.all()):
            raise UserError(
                f"joints must be finite, but frame {int((~finite).nonzero()[0, 1])} is not ({int((~finite).sum())} "
                "such frames): cut them out or interpolate them"
            )
        return clips if clips.dtype == torch.float64 else clips.float()

    def _checked_scores(self, scores: Tensor, placed: Tensor) -> Tensor:
        shape = (placed.shape[0], *placed.shape[-3:-1])
        values = scores if scores.ndim == 3 else scores.unsqueeze(0)
        if tuple(values.shape) != shape:
            raise UserError(f"scores must have the shape {shape}, one for each joint, got {tuple(scores.shape)}")
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise UserError(
                f"scores must lie in 0 to 1, got {float(values.min()):g} to {float(values.max()):g}: scale them"
            )
        best = values[..., _pairs(self.limbs)].amin(dim=-1).amax(dim=-1)
        if not bool((best > 0).all()):
            frame = int((best <= 0).nonzero()[0, 1])
            raise UserError(
                f"scores must leave a limb in every frame, but frame {frame} would be empty: cut such frames out"
            )
        return values


def _pairs(limbs: Sequence[Limb]) -> Tensor:
    return torch.tensor([tuple(limb) for limb in limbs])
