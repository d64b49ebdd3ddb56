"""Joints read back off limb heatmaps, for a motion error in pixels.

A heatmap does not say which limb is which, so each joint is looked for near a place that is given: where it was, or
where it should be. Of the places within a radius those count whose segments to the neighbouring joints cover most of
what is bright and least of what is not: the sum of h / peak - 1/2 along the segments. The joint is the mean of the
places, weighted by exp of that sum, since along a straight arm many places for the elbow are as good as each other;
what an image leaves open is thereby taken from where one looked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.heatmaps.limbs import Limb, check_limbs
from fastvq.models.tokenizers.config import check_integer, check_number

RADIUS = 4.0

# Of the largest value of an image: a limb all of whose surroundings are darker is not there.
FAINTEST = 0.1

_SAMPLES = 9  # along a segment
_SHARPNESS = 1.0  # of the weights, per pixel of covered length
_FRAMES = 64  # looked at together, which bounds the memory


@torch.no_grad()
def find_joints(
    heatmaps: Tensor,
    near: Tensor,
    limbs: Sequence[Limb],
    *,
    radius: float = RADIUS,
    passes: int = 2,
) -> Tensor:
    """The joints of limb heatmaps of one view.

    Args:
        heatmaps: (..., H, W).
        near: (..., J, 2) pixels, column and row, where to look for each joint.
        limbs: pairs of joints, as the heatmaps were drawn with.
        radius: pixels; a joint is looked for in the square from -radius to radius about ``near``.
        passes: how often; each begins from what the one before found of the neighbouring joints.

    Returns:
        (..., J, 2) pixels, NaN for a joint whose limbs are not there.

    Raises:
        UserError: shapes that do not fit, limbs that join no two of the joints, values that are not finite, or a
            frame in which nothing is drawn.
    """
    pairs = check_limbs(limbs, near.shape[-2]).to(near.device)
    check_number("radius", radius, 0, above=True)
    check_integer("passes", passes, 1)
    if heatmaps.shape[:-2] != near.shape[:-2] or near.shape[-1] != 2 or not heatmaps.numel():
        raise UserError(
            f"heatmaps (..., H, W) and near (..., J, 2) must have the same leading axes and not be empty, got "
            f"{tuple(heatmaps.shape)} and {tuple(near.shape)}"
        )
    images, places = heatmaps.reshape(-1, *heatmaps.shape[-2:]).to(near.dtype), near.reshape(-1, *near.shape[-2:])
    check_drawn(images)
    both = torch.cat([pairs, pairs.flip(1)])  # every limb from either end
    found = [
        _find(image, place, both, radius, passes)
        for image, place in zip(images.split(_FRAMES), places.split(_FRAMES), strict=True)
    ]
    return torch.cat(found).view(near.shape)


def check_drawn(images: Tensor) -> None:
    """Raises a UserError unless (N, H, W) heatmaps are finite, and something is drawn in each."""
    highest = images.flatten(1).amax(dim=1)
    wrong = ~(images.isfinite().flatten(1).all(dim=1) & (highest > 0))
    if bool(wrong.any()):
        first = int(wrong.int().argmax())
        what = "shows nothing" if bool(highest[first] <= 0) else "is not finite"
        raise UserError(
            f"heatmaps must be finite and show a body in every frame, but frame {first} {what} ({int(wrong.sum())} "
            "such frames): cut these frames out"
        )


def joint_distances(found: Tensor, truth: Tensor, *, missing: float = RADIUS) -> Tensor:
    """Distances of joints from where they should be, (..., J) pixels.

    Args:
        found: (..., J, 2), NaN for joints that were not found.
        truth: (..., J, 2).
        missing: the distance that such a joint counts with.
    """
    return torch.nan_to_num(torch.linalg.vector_norm(found - truth, dim=-1), nan=missing)


def _find(images: Tensor, near: Tensor, both: Tensor, radius: float, passes: int) -> Tensor:
    """(N, H, W) images, (N, J, 2) places, (2L, 2) limbs from their first joints -> (N, J, 2)."""
    reach = math.ceil(radius)
    steps = torch.arange(-reach, reach + 1, dtype=near.dtype, device=near.device) * (radius / reach)
    offsets = torch.cartesian_prod(steps, steps)
    faintest = FAINTEST * images.flatten(1).amax(dim=1)
    places = near
    for _ in range(passes):
        covered, peaks = _covered(images, near[:, both[:, 0], None] + offsets, places[:, both[:, 1], None])
        seen = (peaks > faintest[:, None]).to(near.dtype)
        shape = (*near.shape[:2], len(offsets))
        total = near.new_zeros(shape).index_add_(1, both[:, 0], covered * seen[..., None])
        weights = (_SHARPNESS * total).softmax(dim=-1)
        places = near + weights @ offsets
    limbs_seen = near.new_zeros(near.shape[:2]).index_add_(1, both[:, 0], seen)
    return places.masked_fill((limbs_seen == 0)[..., None], math.nan)


def _covered(images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How much of segments is bright.

    Args:
        images: (N, H, W).
        first: (N, I, C, 2), places for one end. second: (N, I, 1, 2), the other ends.

    Returns:
        (N, I, C) pixels, the bright length less the dark; and (N, I) the largest value seen.
    """
    height, width = images.shape[-2:]
    share = (torch.arange(_SAMPLES, dtype=first.dtype, device=first.device) + 0.5) / _SAMPLES
    points = torch.lerp(first.unsqueeze(-2), second.unsqueeze(-2), share[:, None])
    scale = torch.tensor([width, height], dtype=first.dtype, device=first.device)
    grid = ((2 * points + 1) / scale - 1).flatten(1, 2)  # as grid_sample has it: -1 and 1 are the image's edges
    values = F.grid_sample(images.unsqueeze(1), grid, align_corners=False).view(points.shape[:-1])
    peaks = values.amax(dim=(2, 3))
    bright = (values / torch.where(peaks > 0, peaks, 1)[..., None, None] - 0.5).mean(dim=-1)
    return bright * torch.linalg.vector_norm(first - second, dim=-1), peaks
