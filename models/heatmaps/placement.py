"""From joints in metres to pixels: cameras, and the one scale that fits a whole clip into an image or a volume.

Images have columns to the right and rows downwards; the pixel in column u and row v has its centre at (u, v).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import check_number


@dataclass(frozen=True)
class Camera:
    """Looks at the middle of a clip. At azimuth 0 it stands in front, where bodies that face +z look at it.

    Args:
        azimuth: degrees by which it is moved to the side of +x, about the vertical.
        elevation: degrees by which it is raised, from -90 to 90.
        distance: metres to the middle of the clip, for a perspective view; None for a parallel one.

    Raises:
        UserError: a number that no camera has.
    """

    azimuth: float = 0.0
    elevation: float = 0.0
    distance: float | None = None

    def __post_init__(self) -> None:
        check_number("azimuth", self.azimuth, -math.inf)
        check_number("elevation", self.elevation, -90, 90)
        if self.distance is not None:
            check_number("distance", self.distance, 0, above=True)

    def see(self, joints: Tensor) -> Tensor:
        """Where joints lie on the image plane.

        Args:
            joints: (..., T, J, 3) metres, Y up; each clip has a middle of its own.

        Returns:
            (..., T, J, 2), to the right and downwards: metres, for a perspective view those at the clip's middle.

        Raises:
            UserError: a joint lies behind the camera.
        """
        azimuth, elevation = math.radians(self.azimuth), math.radians(self.elevation)
        ahead, level = (math.sin(azimuth), math.cos(azimuth)), math.cos(elevation)
        right = (ahead[1], 0.0, -ahead[0])
        down = (math.sin(elevation) * ahead[0], -level, math.sin(elevation) * ahead[1])
        towards = (level * ahead[0], math.sin(elevation), level * ahead[1])
        axes = torch.tensor([right, down, towards], dtype=joints.dtype, device=joints.device)
        low, high = joints.amin(dim=(-3, -2), keepdim=True), joints.amax(dim=(-3, -2), keepdim=True)
        seen = (joints - (low + high) / 2) @ axes.T
        if self.distance is None:
            return seen[..., :2]
        depth = self.distance - seen[..., 2:]
        if not bool((depth > 0).all()):
            raise UserError(
                f"distance must be large enough for all joints to lie before the camera, got {self.distance} m: "
                f"give more than {self.distance - float(depth.min()):.2f} m"
            )
        return seen[..., :2] * (self.distance / depth)


def volume_axes(joints: Tensor) -> Tensor:
    """Joints (..., 3), Y up, along the axes of a volume, whose second one points down as the rows of images do."""
    return joints * torch.tensor([1.0, -1.0, 1.0], dtype=joints.dtype, device=joints.device)


def fit(points: Tensor, size: int, *, share: float = 0.9) -> Tensor:
    """Scales each clip by one number, so that its bounding box takes a share of the size, and centres every axis.

    Args:
        points: (..., T, J, D), in any unit.
        size: pixels along an axis.
        share: of the size, above 0 up to 1.

    Returns:
        (..., T, J, D) pixels: within 0 to ``size - 1`` unless the share is nearly 1.

    Raises:
        UserError: a clip whose joints all lie in one point.
    """
    middle, scale = fitting(points, size, share=share)
    return (points - middle) * scale + (size - 1) / 2


def fitting(points: Tensor, size: int, *, share: float = 0.9) -> tuple[Tensor, Tensor]:
    """What :func:`fit` does to each clip: the middle (..., 1, 1, D) that it moves to the centre, and the pixels
    (..., 1, 1, 1) that it makes of a unit."""
    check_number("share", share, 0, 1, above=True)
    low, high = points.amin(dim=(-3, -2), keepdim=True), points.amax(dim=(-3, -2), keepdim=True)
    extent = (high - low).amax(dim=-1, keepdim=True)
    if not bool((extent > 0).all()):
        raise UserError("joints must not all lie in one point, got a clip without extent: give bodies with limbs")
    return (low + high) / 2, share * size / extent
