"""Bodies in limb heatmaps, where nobody says where to look: which limb is which, heatmaps do not tell.

Poses of made-up motions, turned to all sides, are compared with every frame, and of the likeliest of each frame
those are taken that together move least (Viterbi's algorithm). From there joints are moved, by gradients, until limbs
lie on what is bright and what is bright lies on limbs, while bones keep their lengths and joints their speeds.

In three views of 64 x 64 pixels, drawn from CMU and HDM05 recordings, joints are found 1.0 pixels from where they are
(median of 20 windows of 64 frames of the test split, each by itself; 69 % within 2), those of other made-up motions
0.5.

Left and right are told apart by the facing of body and feet alone, so that a body seen by a single camera, or one
that lies or crouches as made-up motions never do, may come out mirrored or worse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from fastvq.models.heatmaps import render
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.limbs import SMPL_LIMBS
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import JOINT_NAMES

# Cells along a side of the pictures in which poses are compared, and metres that they show.
_CELLS, _SPAN = 24, 2.4
_CLIPS, _EVERY, _POSES, _TURNS = 60, 10, 256, 16
_TILTED = 48  # of the poses are also laid down, on every side
_LIKELIEST = 32  # poses of a frame among which the path is chosen
_MOVING = 2.0  # costs of a metre that joints move from frame to frame, against a cosine
_BRIGHT = 0.35  # of a picture's largest value
_PIXELS = 40  # bright ones of a picture that must lie on limbs
_STEPS, _RATE = 80, 0.4  # of Adam, pixels at a size of 64
_FAR = 12.0  # pixels beyond which a place is as far as any other, at a size of 64
_BONES, _SPEEDS = 0.4, 0.5  # weights beside those of the two distances


@dataclass(frozen=True)
class Poses:
    """What frames are compared with.

    Attributes:
        joints: (N, 22, 3) metres about the middle of each pose's bounding box, along the axes of a volume or picture:
            to the right, downwards, and the third.
        pictures: (N, V * cells) of them, each of length 1.
        views: columns and rows of each view, among the three axes.
    """

    joints: Tensor
    pictures: Tensor
    views: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=4)
def poses_of(elevation: float | None) -> Poses:
    """Poses of made-up motions, always the same.

    Args:
        elevation: of the camera that sees them, in degrees; None for the three views of a volume.
    """
    clips = generate_clips(_CLIPS, seed=7)
    standing = torch.from_numpy(np.concatenate([clip.joints[::_EVERY] for clip in clips]).astype(np.float32))
    left, right = (JOINT_NAMES.index(f"{side}_hip") for side in ("left", "right"))
    across = standing[:, left] - standing[:, right]
    standing = _turned(standing - standing[:, :1], torch.atan2(across[:, 2], across[:, 0]), 1)
    standing = standing[_different(standing.flatten(1), _POSES)]
    half = torch.tensor([math.pi / 2])
    lying = [_turned(standing[:_TILTED], sign * half, axis) for axis in (0, 2) for sign in (1, -1)]
    poses = torch.cat([standing, *lying])
    turns = torch.arange(_TURNS) * (2 * math.pi / _TURNS)
    joints = torch.cat([_turned(poses, turn[None], 1) for turn in turns]) * torch.tensor([1.0, -1.0, 1.0])
    views = tuple(view[:2] for view in render.VIEWS)
    if elevation is not None:  # bodies tilt as the camera rises
        joints, views = _turned(joints, torch.tensor([-math.radians(elevation)]), 0), ((0, 1),)
    joints = joints - (joints.amin(dim=1, keepdim=True) + joints.amax(dim=1, keepdim=True)) / 2
    pixels = joints * (_CELLS / _SPAN) + (_CELLS - 1) / 2
    drawn = [
        torch.stack([render.plane_heatmaps(part[..., list(view)], SMPL_LIMBS, size=_CELLS) for view in views], dim=1)
        for part in pixels.split(512)
    ]
    return Poses(joints, F.normalize(torch.cat(drawn).flatten(1), dim=1), views)


def keypoints(form: HeatmapFormat, heatmaps: Tensor, placed: Tensor) -> Tensor:
    """The joints of a clip's consecutive windows of heatmaps in every view, each camera of "plane" by itself.

    Args:
        form: what the heatmaps are like, with SMPL's limbs.
        heatmaps: (B, C, T, size, size).
        placed: (B, C, 3), as :meth:`fastvq.models.heatmaps.format.HeatmapFormat.placement` gives it.

    Returns:
        (B, C, T, 22, 2) pixels, column and row; NaN in frames that show nothing.
    """
    if form.projection != "plane":
        poses = poses_of(None)
        return form.pixels(seen(find_bodies(heatmaps, _middle(placed), placed[:, 0, 2], poses), poses.views), placed)
    found = []
    for number, camera in enumerate(form.cameras):
        pictures, middle = heatmaps[:, number, None], F.pad(placed[:, number, :2], (0, 1))
        poses = poses_of(camera.elevation)
        windows = [  # each by itself: cameras do not say how one lies to the next
            find_bodies(picture[None], at[None], scale[None], poses)
            for picture, at, scale in zip(pictures, middle, placed[:, number, 2], strict=True)
        ]
        found.append(torch.cat(windows)[..., :2])
    return form.pixels(torch.stack(found, dim=1), placed)


def volume_joints(form: HeatmapFormat, heatmaps: Tensor, placed: Tensor) -> Tensor:
    """As :func:`keypoints`, of the views of a volume: joints in space, (B, T, 22, 3) metres, Y up."""
    metres = find_bodies(heatmaps, _middle(placed), placed[:, 0, 2], poses_of(None))
    return (metres * torch.tensor([1.0, -1.0, 1.0])).float()


def find_bodies(heatmaps: Tensor, middle: Tensor, scale: Tensor, poses: Poses) -> Tensor:
    """The joints of one body in windows of heatmaps that follow each other.

    Args:
        heatmaps: (B, V, T, H, H), drawn with SMPL's limbs.
        middle: (B, 3) metres, to the right, downwards and along the third axis, of a picture's middle.
        scale: (B,) pixels that a metre takes.
        poses: seen by as many views.

    Returns:
        (B, T, 22, 3) metres along the same axes; with a single view the last is a guess about its middle. NaN in
        frames that do not show something in every view.
    """
    pictures = heatmaps.detach().float().cpu().transpose(1, 2)
    shape = pictures.shape[:2]
    shown = (pictures.amax(dim=(-2, -1)) > 0).all(dim=-1).flatten()
    found = torch.full((len(shown), len(JOINT_NAMES), 3), math.nan)
    if bool(shown.any()):
        frames = pictures.flatten(0, 1)[shown]
        about, pixels = (x.float().repeat_interleave(shape[1], dim=0)[shown] for x in (middle, scale))
        lens = _Lens(about, pixels, frames.shape[-1])
        found[shown] = _fit(frames, _follow(frames, lens, poses), lens, poses.views)
    return found.view(*shape, *found.shape[1:])


def seen(joints: Tensor, views: Sequence[tuple[int, int]]) -> Tensor:
    """Joints (..., T, J, 3) as each view shows them, (..., V, T, J, 2)."""
    return torch.stack([joints[..., list(view)] for view in views], dim=-4)


class _Lens(NamedTuple):
    """Where frames are placed: (T, 3) metres of the pictures' middle, (T,) pixels a metre, and pixels of a side."""

    middle: Tensor
    scale: Tensor
    size: int

    def pixels(self, metres: Tensor) -> Tensor:
        """(T, J, 3) -> (T, J, 3)."""
        return (metres - self.middle[:, None]) * self.scale[:, None, None] + (self.size - 1) / 2

    def metres(self, pixels: Tensor) -> Tensor:
        """(T, 3) -> (T, 3)."""
        return (pixels - (self.size - 1) / 2) / self.scale[:, None] + self.middle


def _middle(placed: Tensor) -> Tensor:
    """(B, 3) metres of the middle of a volume, of which each view tells two."""
    return torch.stack([placed[:, 2, 0], placed[:, 2, 1], placed[:, 0, 0]], dim=1)


def _follow(pictures: Tensor, lens: _Lens, poses: Poses) -> Tensor:
    """The poses that frames (T, V, H, H) show, one after the other: (T, 22, 3) metres."""
    middles = _middles(pictures, poses.views)
    likeness = _cropped(pictures, middles, lens.scale, poses.views) @ poses.pictures.T
    likeliest = likeness.topk(min(_LIKELIEST, likeness.shape[1]), dim=1)
    joints = poses.joints[likeliest.indices] + lens.metres(middles)[:, None, None]
    costs, cost, before = 1 - likeliest.values, 1 - likeliest.values[0], []
    for frame in range(1, len(pictures)):
        moved = torch.linalg.vector_norm(joints[frame, :, None] - joints[frame - 1], dim=-1).mean(dim=-1)
        best = (cost + _MOVING * moved).min(dim=1)
        before.append(best.indices)
        cost = best.values + costs[frame]
    path = [int(cost.argmin())]
    for choices in reversed(before):
        path.append(int(choices[path[-1]]))
    return joints[torch.arange(len(joints)), torch.tensor(path[::-1])]


def _fit(pictures: Tensor, joints: Tensor, lens: _Lens, views: Sequence[tuple[int, int]]) -> Tensor:
    """Joints (T, 22, 3), metres, moved onto what the pictures (T, V, H, H) show."""
    size = pictures.shape[-1]
    unit = size / 64
    metre = lens.scale.mean() / unit  # in pixels at a size of 64, in which Adam counts
    bright = pictures > _BRIGHT * pictures.amax(dim=(-2, -1), keepdim=True)
    fields = np.stack([distance_transform_edt(~picture) for picture in bright.flatten(0, 1).numpy()])
    field = torch.from_numpy(fields).float().div_(unit).clamp_max_(_FAR).unsqueeze(1)
    weights = bright.flatten(0, 1).flatten(1).float()
    chosen = torch.multinomial(weights, _PIXELS, replacement=True, generator=torch.Generator().manual_seed(0))
    places = torch.stack([chosen % size, chosen // size], dim=-1).view(*pictures.shape[:2], _PIXELS, 2).float()
    first, second = torch.tensor(SMPL_LIMBS).unbind(dim=1)
    lengths = torch.linalg.vector_norm(joints[:, second] - joints[:, first], dim=-1).mean(dim=0) * metre
    share = torch.linspace(0.2, 1, 5)
    start = joints.mean(dim=(0, 1))  # about which numbers stay small
    moved = ((joints - start) * metre).requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=_RATE)
    with torch.enable_grad():
        for _ in range(_STEPS):
            ends = seen(lens.pixels(moved / metre + start), views).transpose(0, 1)
            begin, end = ends[:, :, first], ends[:, :, second]
            points = torch.lerp(begin.unsqueeze(-2), end.unsqueeze(-2), share[:, None])
            grid = ((2 * points + 1) / size - 1).flatten(0, 1)
            off_picture = F.grid_sample(field, grid, align_corners=False, padding_mode="border").square().mean()
            way, offset = (end - begin).unsqueeze(2), places.unsqueeze(3) - begin.unsqueeze(2)
            along = ((offset * way).sum(dim=-1) / way.square().sum(dim=-1).clamp_min(1e-6)).clamp(0, 1)
            nearest = (offset - along.unsqueeze(-1) * way).square().sum(dim=-1).amin(dim=-1) / unit**2
            bones = torch.linalg.vector_norm(moved[:, second] - moved[:, first], dim=-1) - lengths
            loss = off_picture + nearest.clamp_max(100).mean() + _BONES * bones.square().mean()
            if len(moved) > 2:
                loss = loss + _SPEEDS * moved.diff(n=2, dim=0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return moved.detach() / metre + start


def _middles(pictures: Tensor, views: Sequence[tuple[int, int]]) -> Tensor:
    """The middle of what is bright in frames (T, V, H, H), (T, 3) pixels; 0 along an axis that no view has."""
    bright = pictures > _BRIGHT * pictures.amax(dim=(-2, -1), keepdim=True)
    index = torch.arange(pictures.shape[-1], dtype=torch.float32)
    low = torch.full((len(pictures), 3), math.inf)
    high = torch.full((len(pictures), 3), -math.inf)
    for number, (column, row) in enumerate(views):
        for axis, across in ((column, 1), (row, 2)):
            taken = bright[:, number].any(dim=across)
            low[:, axis] = torch.minimum(low[:, axis], torch.where(taken, index, math.inf).amin(dim=1))
            high[:, axis] = torch.maximum(high[:, axis], torch.where(taken, index, -math.inf).amax(dim=1))
    return ((low + high) / 2).nan_to_num(nan=0.0)


def _cropped(pictures: Tensor, middles: Tensor, scale: Tensor, views: Sequence[tuple[int, int]]) -> Tensor:
    """Frames (T, V, H, H) as poses are drawn: about the middle, in the poses' cells, (T, V * cells) of length 1."""
    size, cell = pictures.shape[-1], _SPAN / _CELLS * scale[:, None]
    wide = min(size, max(1, round(float(cell.median())))) // 2 * 2 + 1
    blurred = F.avg_pool2d(pictures, wide, 1, padding=wide // 2)
    steps = (torch.arange(_CELLS) - (_CELLS - 1) / 2) * cell
    crops = []
    for number, (column, row) in enumerate(views):
        columns, rows = middles[:, column, None] + steps, middles[:, row, None] + steps
        shape = (len(pictures), _CELLS, _CELLS)
        grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
        crops.append(F.grid_sample(blurred[:, number, None], (2 * grid + 1) / size - 1, align_corners=False))
    return F.normalize(torch.cat(crops, dim=1).flatten(1), dim=1)


def _turned(joints: Tensor, angles: Tensor, axis: int) -> Tensor:
    """(N, J, 3) turned by (N,) or (1,) radians about an axis."""
    one, other = ((1, 2), (2, 0), (0, 1))[axis]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    turned = joints.clone()
    turned[..., one] = joints[..., one] * cos - joints[..., other] * sin
    turned[..., other] = joints[..., one] * sin + joints[..., other] * cos
    return turned


def _different(rows: Tensor, count: int) -> Tensor:
    """Indices of ``count`` rows, each the farthest from those before it."""
    chosen, distance = [0], torch.linalg.vector_norm(rows - rows[0], dim=1)
    for _ in range(min(count, len(rows)) - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.linalg.vector_norm(rows - rows[chosen[-1]], dim=1))
    return torch.tensor(chosen)
