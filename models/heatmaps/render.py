"""Limb heatmaps: a Gaussian of the distance to each limb, the largest of all limbs (2025, arXiv 2509.19252).

A limb is the segment between two joints; a pixel or voxel at the distance d has the value c exp(-d^2 / (2 sigma^2)),
c the smaller score of the two joints. It is drawn only within its bounding box, grown by 3 sigma.

The three maxima of a volume along its axes are found without the volume. Along an axis the squared distance to a
segment is convex, so its smallest value over the voxels of a column is at one of the two next to where the segment
comes nearest to the column, and that is where their projections on the plane come nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq.models.heatmaps.limbs import Limb, check_limbs
from fastvq.models.tokenizers.config import check_integer, check_number

SIGMA = 0.75
REACH = 3.0  # sigmas by which a limb's box is larger than the limb

# Columns, rows and depth of the views along x, y and z.
VIEWS: tuple[tuple[int, int, int], ...] = ((2, 1, 0), (0, 2, 1), (0, 1, 2))

# Patches of one size are drawn together: their sides are rounded up to a multiple of the first, and no more than the
# second many pixels are drawn at a time, which stay in a core's cache.
_STEP, _PIXELS = 4, 1 << 17


@torch.no_grad()
def volume_projections(
    joints: Tensor,
    limbs: Sequence[Limb],
    *,
    size: int,
    sigma: float = SIGMA,
    scores: Tensor | None = None,
    squared_scores: bool = True,
) -> Tensor:
    """The largest values along x, y and z of a volume of limb heatmaps.

    Args:
        joints: (..., J, 3) voxels: column, row downwards, depth.
        limbs: pairs of joints.
        size: voxels along each axis.
        sigma: of the Gaussian, in voxels.
        scores: (..., J) in 0 to 1, how sure of each joint one is; 1 if absent.
        squared_scores: multiply by a limb's score twice, as the paper's code does for volumes.

    Returns:
        (..., 3, size, size) float32 or float64 as the joints: seen along x (rows y, columns z), along y (rows z,
        columns x) and along z (rows y, columns x).

    Raises:
        UserError: fewer than two joints, limbs that join no two of them, a size below 1, a sigma of 0 or less.
    """
    return _views(joints, limbs, size, sigma, scores, squared_scores, axes=3)


@torch.no_grad()
def analytic_projections(
    joints: Tensor,
    limbs: Sequence[Limb],
    *,
    size: int,
    sigma: float = SIGMA,
    scores: Tensor | None = None,
    squared_scores: bool = True,
) -> Tensor:
    """As :func:`volume_projections`, of a volume whose depth is not cut into voxels: cheaper, and a little larger.

    A voxel's centre is at most half a voxel of depth away, so that the values are at most exp(1 / (8 sigma^2)) times
    those of the volume, which are therefore up to 20 % smaller at a sigma of 0.75.
    """
    return _views(joints, limbs, size, sigma, scores, squared_scores, axes=2)


@torch.no_grad()
def plane_heatmaps(
    points: Tensor,
    limbs: Sequence[Limb],
    *,
    size: int,
    sigma: float = SIGMA,
    scores: Tensor | None = None,
) -> Tensor:
    """Limb heatmaps of joints on an image plane.

    Args:
        points: (..., J, 2) pixels, column and row.
        limbs, size, sigma, scores: as for :func:`volume_projections`.

    Returns:
        (..., size, size).

    Raises:
        UserError: as :func:`volume_projections`.
    """
    ends, peaks = _limbs(points, limbs, size, sigma, scores)
    images = points.new_zeros(len(ends), size, size)
    which = torch.arange(len(ends), device=points.device).unsqueeze(1).expand(peaks.shape)
    _draw(images, which.flatten(), ends.flatten(0, 1), peaks.flatten(), sigma)
    return images.view(*points.shape[:-2], size, size)


def _views(
    joints: Tensor,
    limbs: Sequence[Limb],
    size: int,
    sigma: float,
    scores: Tensor | None,
    squared_scores: bool,
    *,
    axes: int,
) -> Tensor:
    ends, peaks = _limbs(joints, limbs, size, sigma, scores)
    peaks = peaks.square() if squared_scores else peaks
    images = joints.new_zeros(len(ends), len(VIEWS), size, size)
    frames = torch.arange(len(ends), device=joints.device).unsqueeze(1).expand(peaks.shape).flatten()
    seen = torch.cat([ends.flatten(0, 1)[..., list(view[:axes])] for view in VIEWS])
    which = torch.cat([frames * len(VIEWS) + view for view in range(len(VIEWS))])
    _draw(images.view(-1, size, size), which, seen, peaks.flatten().repeat(len(VIEWS)), sigma)
    return images.view(*joints.shape[:-2], len(VIEWS), size, size)


def _limbs(
    joints: Tensor, limbs: Sequence[Limb], size: int, sigma: float, scores: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(..., J, D) joints -> ends (N, L, 2, D) and peaks (N, L) of their limbs."""
    pairs = check_limbs(limbs, joints.shape[-2]).to(joints.device)
    check_integer("size", size, 1)
    check_number("sigma", sigma, 0, above=True)
    flat = joints.reshape(-1, *joints.shape[-2:])
    ends = flat[:, pairs]
    if scores is None:
        return ends, flat.new_ones(ends.shape[:2])
    return ends, scores.to(flat.dtype).reshape(flat.shape[:2])[:, pairs].amin(dim=-1)


def _draw(images: Tensor, which: Tensor, ends: Tensor, peaks: Tensor, sigma: float) -> None:
    """Draws limbs, in place.

    Args:
        images: (M, size, size).
        which: (N,) the image of each limb.
        ends: (N, 2, D), column and row of both ends, and depth where D is 3.
        peaks: (N,).
    """
    size = images.shape[-1]
    low = (ends.amin(dim=1) - REACH * sigma).ceil().clamp_min_(0)
    high = (ends.amax(dim=1) + REACH * sigma).floor().clamp_max_(size - 1)
    spans = (high - low).long().add_(1)
    kept = (spans > 0).all(dim=-1) & (peaks > 0)
    sides = ((spans[:, :2] + _STEP - 1) // _STEP * _STEP).clamp_max_(size)
    keys = torch.where(kept, sides[:, 0] * (size + 1) + sides[:, 1], -1)
    order = keys.argsort()
    found, counts = keys[order].unique_consecutive(return_counts=True)
    for key, rows in zip(found.tolist(), order.split(counts.tolist()), strict=True):
        if key < 0:
            continue
        width, height = divmod(key, size + 1)
        for part in rows.split(max(1, _PIXELS // (width * height))):
            _draw_patches(images, which[part], ends[part], peaks[part], low[part], high[part], (width, height), sigma)


def _draw_patches(
    images: Tensor,
    which: Tensor,
    ends: Tensor,
    peaks: Tensor,
    low: Tensor,
    high: Tensor,
    sides: tuple[int, int],
    sigma: float,
) -> None:
    """Draws limbs whose boxes, ``low`` to ``high`` (N, D), fit into patches of one width and height."""
    size = images.shape[-1]
    width, height = sides
    # Patches stay inside the image; what of them is outside the box is not drawn.
    left, top = (low[:, axis].clamp_max(size - side) for axis, side in enumerate(sides))
    columns = left[:, None] + torch.arange(width, device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    drawn = [(at >= low[:, axis, None]) & (at <= high[:, axis, None]) for axis, at in enumerate((columns, rows))]
    begin, way = ends[:, 0], ends[:, 1] - ends[:, 0]
    over = (columns - begin[:, 0, None])[:, None, :]
    down = (rows - begin[:, 1, None])[:, :, None]
    steps = tuple(way[:, axis, None, None] for axis in range(way.shape[1]))
    along = over * steps[0] + down * steps[1]
    place = (along / _length(way[:, :2])).clamp_(0, 1)
    if way.shape[1] == 2:
        squares = _square(over, place, steps[0]).add_(_square(down, place, steps[1]))
    else:
        squares = _nearest_in_columns(over, down, along, place, steps, begin[:, 2], low[:, 2], high[:, 2], way)
    values = squares.mul_(-0.5 / sigma**2).exp_()
    values.mul_((peaks[:, None] * drawn[1])[:, :, None]).mul_(drawn[0][:, None, :])
    corner = (which * size + top.long()) * size + left.long()
    inside = torch.arange(height, device=images.device)[:, None] * size + torch.arange(width, device=images.device)
    index = corner[:, None, None] + inside
    images.view(-1).scatter_reduce_(0, index.flatten(), values.flatten(), "amax")


def _nearest_in_columns(
    over: Tensor,
    down: Tensor,
    along: Tensor,
    place: Tensor,
    steps: tuple[Tensor, ...],
    begin: Tensor,
    low: Tensor,
    high: Tensor,
    way: Tensor,
) -> Tensor:
    """The smallest squared distance of a column's voxels, (N, H, W), given where along the limb it comes nearest."""
    begin, low, high = (x[:, None, None] for x in (begin, low, high))
    length = _length(way)
    depth = (place.mul_(steps[2]).add_(begin)).floor_().clamp_(low, high)
    squares: Tensor | None = None
    for candidate in (depth, (depth + 1).clamp_(max=high)):
        behind = candidate - begin
        place = (along + behind * steps[2]).div_(length).clamp_(0, 1)
        here = _square(over, place, steps[0]).add_(_square(down, place, steps[1]))
        here.add_(behind.addcmul_(place, steps[2], value=-1).square_())
        squares = here if squares is None else torch.minimum(squares, here)
    assert squares is not None
    return squares


def _square(offset: Tensor, place: Tensor, step: Tensor) -> Tensor:
    return torch.addcmul(offset, place, step, value=-1).square_()


def _length(way: Tensor) -> Tensor:
    """Squared lengths (N, 1, 1), to divide by: a limb without length is as good as its first end."""
    length = way.square().sum(dim=-1)
    return torch.where(length > 0, length, 1)[:, None, None]
