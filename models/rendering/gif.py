"""Motions as an animated GIF, for places where a page cannot go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastvq.models.files import replacing
from fastvq.models.motion.skeleton import JOINT_NAMES, PARENTS
from fastvq.models.rendering.scene import Scene, Track, nose

LENS = 1.6
LIMB = 0.055
HEAD_RADIUS, NOSE_RADIUS = 0.1, 0.045
GRID_RADIUS = 5
# GIF delays are whole hundredths of a second; at 20 frames per second every one of them is exactly 5.
GIF_FPS = 20
# Drawn at twice the size and halved, which smooths the edges.
SUPERSAMPLE = 2

PAPER, GRID, SHADOW, INK = (255, 255, 255), (214, 218, 224), (232, 234, 237), (60, 66, 74)
LEFT, RIGHT, TRUNK, FACE = (31, 111, 214), (210, 96, 26), (61, 69, 79), (150, 157, 166)
_HEAD = JOINT_NAMES.index("head")


def write_gif(path: Path, scene: Scene, *, size: int = 360, title: str = "") -> None:
    """Writes the scene's tracks side by side, at 20 frames per second, looping.

    Args:
        path: The GIF file.
        scene: Any frame rate; frames nearest in time are taken.
        size: Height and width of one track's picture in pixels, >= 16.
        title: Stands above them, in as many lines as it needs.

    Raises:
        UserError: the file cannot be written.
    """
    frames = max(1, round(scene.frames / scene.fps * GIF_FPS))
    moments = [min(scene.frames - 1, round(index * scene.fps / GIF_FPS)) for index in range(frames)]
    views = [_View(track, scene, size * SUPERSAMPLE) for track in scene.tracks]
    head = _headline(title, size * len(views), size)
    # One palette for all frames: colours do not flicker and only what moves is stored again. Without the title, whose
    # many greys would take the place of the paper's white.
    palette = _side_by_side([view.draw(0) for view in views], size, None).quantize(
        colors=64, method=Image.Quantize.MEDIANCUT
    )
    indexed = [
        _side_by_side([view.draw(moment) for view in views], size, head).quantize(
            palette=palette, dither=Image.Dither.NONE
        )
        for moment in moments
    ]
    with replacing(path) as temporary:
        indexed[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=1000 // GIF_FPS,
            loop=0,
            disposal=1,
        )


@dataclass
class _Camera:
    """Looks at ``target`` (metres) from a yaw and pitch in radians and a distance in metres."""

    yaw: float
    pitch: float
    distance: float
    target: np.ndarray
    size: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) metres to (..., 3): pixel column, pixel row, depth in metres."""
        sin_yaw, cos_yaw = math.sin(self.yaw), math.cos(self.yaw)
        sin_pitch, cos_pitch = math.sin(self.pitch), math.cos(self.pitch)
        right = np.array([cos_yaw, 0.0, -sin_yaw])
        up = np.array([-sin_pitch * sin_yaw, cos_pitch, -sin_pitch * cos_yaw])
        back = np.array([sin_yaw * cos_pitch, sin_pitch, cos_yaw * cos_pitch])
        relative = points - self.target
        depth = self.distance - relative @ back
        scale = LENS * self.size / np.maximum(depth, 0.2)
        half = self.size / 2
        return np.stack([half + relative @ right * scale, half - relative @ up * scale, depth], axis=-1)


class _View:
    """One track as its camera sees it."""

    def __init__(self, track: Track, scene: Scene, size: int) -> None:
        first = np.asarray(scene.tracks[0].joints, dtype=np.float64)
        self.label = track.label if len(scene.tracks) > 1 else ""
        self.joints = np.asarray(track.joints, dtype=np.float64)
        self.floor = float(first[..., 1].min())
        self.height = max(float(np.ptp(first[..., 1], axis=1).max()), 0.6)
        self.size = size
        across = first[0, JOINT_NAMES.index("left_hip")] - first[0, JOINT_NAMES.index("right_hip")]
        self.yaw = math.atan2(-across[2], across[0]) + 0.65
        self.path = _smooth(self.joints[:, 0], max(1, round(scene.fps / 2)))

    def draw(self, moment: int) -> Image.Image:
        """The picture at a frame; after the track's end, its last."""
        moment = min(moment, len(self.joints) - 1)
        # The pelvis of a standing body is slightly above its middle.
        target = self.path[moment] - [0.0, 0.05 * self.height, 0.0]
        camera = _Camera(self.yaw, 0.22, 2.3 * self.height + 0.2, target, self.size)
        image = Image.new("RGB", (self.size, self.size), PAPER)
        canvas = ImageDraw.Draw(image)
        self._draw_floor(canvas, camera)
        body = self.joints[moment]
        shadow = camera.project(body * [1, 0, 1] + [0, self.floor, 0])
        self._draw_bones(canvas, camera, shadow, shadow=True)
        self._draw_bones(canvas, camera, camera.project(body), shadow=False, face=camera.project(nose(body)))
        if self.label:
            font_size = self.size // 20
            canvas.text((font_size * 0.6, font_size * 0.5), self.label, fill=INK, font_size=font_size)
        return image

    def _draw_floor(self, canvas: ImageDraw.ImageDraw, camera: _Camera) -> None:
        x, z = round(camera.target[0]), round(camera.target[2])
        reach = range(-GRID_RADIUS, GRID_RADIUS + 1)
        ends = [((x + i, z - GRID_RADIUS), (x + i, z + GRID_RADIUS)) for i in reach]
        ends += [((x - GRID_RADIUS, z + i), (x + GRID_RADIUS, z + i)) for i in reach]
        for (x0, z0), (x1, z1) in ends:
            # In steps, because the part of a line that lies behind the camera has no picture.
            points = np.linspace([x0, self.floor, z0], [x1, self.floor, z1], 4 * GRID_RADIUS + 1)
            seen = camera.project(points)
            for one, two in itertools.pairwise(seen):
                if min(one[2], two[2]) > 0.3:
                    canvas.line([*one[:2], *two[:2]], fill=GRID, width=SUPERSAMPLE)

    def _draw_bones(
        self,
        canvas: ImageDraw.ImageDraw,
        camera: _Camera,
        points: np.ndarray,
        *,
        shadow: bool,
        face: np.ndarray | None = None,
    ) -> None:
        joints = sorted(range(1, len(PARENTS)), key=lambda joint: -(points[joint, 2] + points[PARENTS[joint], 2]))
        for joint in joints:
            ends = points[[PARENTS[joint], joint]]
            if ends[:, 2].min() < 0.3:
                continue
            scale = LENS * camera.size / ends[:, 2].mean()
            colour = SHADOW if shadow else _colour(joint)
            width = LIMB * scale * (1.6 if shadow else 1.0)
            canvas.line([*ends[0, :2], *ends[1, :2]], fill=colour, width=max(SUPERSAMPLE, round(width)))
            for end in ends:
                _disc(canvas, end, width / 2, colour)
            if joint == _HEAD and face is not None:
                discs = [(points[joint], HEAD_RADIUS, colour), (face, NOSE_RADIUS, FACE)]
                for centre, radius, shade in sorted(discs, key=lambda disc: -disc[0][2]):
                    _disc(canvas, centre, radius * scale, shade)


def _disc(canvas: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    x, y = float(centre[0]), float(centre[1])
    canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _colour(joint: int) -> tuple[int, int, int]:
    name = JOINT_NAMES[joint]
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else TRUNK


def _smooth(path: np.ndarray, half: int) -> np.ndarray:
    """(T, 3) means over ``half`` frames to either side, fewer at the ends."""
    total = np.concatenate([np.zeros((1, 3)), np.cumsum(path, axis=0)])
    index = np.arange(len(path))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(path))
    smooth: np.ndarray = (total[last] - total[first]) / (last - first)[:, None]
    return smooth


def _side_by_side(pictures: Sequence[Image.Image], size: int, head: Image.Image | None) -> Image.Image:
    top = 0 if head is None else head.height
    sheet = Image.new("RGB", (size * len(pictures), top + size), PAPER)
    if head is not None:
        sheet.paste(head, (0, 0))
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((size, size), Image.Resampling.BOX), (index * size, top))
    return sheet


def _headline(title: str, width: int, size: int) -> Image.Image | None:
    """The title as a strip of a width, in lines that fit; None without a title."""
    if not title.strip():
        return None
    font_size, wide = SUPERSAMPLE * max(9, size // 20), SUPERSAMPLE * width
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure.textlength(longer, font_size=font_size) > wide - font_size:
            lines.append(word)
        else:
            lines[-1] = longer
    step = round(1.3 * font_size)
    high = (step * len(lines) + font_size // 2) // SUPERSAMPLE
    strip = Image.new("RGB", (wide, SUPERSAMPLE * high), PAPER)
    canvas = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        canvas.text((font_size // 2, font_size // 3 + row * step), line, fill=INK, font_size=font_size)
    return strip.resize((width, high), Image.Resampling.BOX)
