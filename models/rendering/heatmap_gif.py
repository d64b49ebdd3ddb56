"""Heatmaps as an animated GIF: what is compared side by side, the views of each below each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastvq.models.files import replacing
from fastvq.models.rendering.gif import GIF_FPS

# Shades of grey; more than an eye tells apart only make the file larger.
_SHADES = 16
_EDGE, _INK = 200, 70


class HeatmapTrack(NamedTuple):
    """One column of pictures.

    Attributes:
        label: what the viewer reads above it; may be empty.
        heatmaps: (T, C, H, W), clipped to 0 to 1 here; 1 is drawn black.
    """

    label: str
    heatmaps: np.ndarray


def write_heatmap_gif(path: Path, tracks: Sequence[HeatmapTrack], fps: float, *, size: int = 360) -> None:
    """Writes the tracks side by side, at 20 frames per second, looping.

    Args:
        path: the GIF file.
        tracks: of the same number of frames and views, at least one of each.
        fps: of the tracks; frames nearest in time are taken.
        size: height of all views together, pixels; each gets its share of it, 8 at least.

    Raises:
        UserError: the file cannot be written.
    """
    frames, views = tracks[0].heatmaps.shape[:2]
    side = max(8, size // views)
    count = max(1, round(frames / fps * GIF_FPS))
    moments = [min(frames - 1, round(index * fps / GIF_FPS)) for index in range(count)]
    pictures = [_picture(tracks, moment, views, side) for moment in moments]
    with replacing(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=1000 // GIF_FPS,
            loop=0,
            disposal=1,
        )


def _picture(tracks: Sequence[HeatmapTrack], moment: int, views: int, side: int) -> Image.Image:
    sheet = Image.new("L", (side * len(tracks), side * views), 255)
    canvas = ImageDraw.Draw(sheet)
    for column, track in enumerate(tracks):
        for row, view in enumerate(np.asarray(track.heatmaps[moment], dtype=np.float32)):
            drawn = Image.fromarray(np.rint(255 * (1 - view.clip(0, 1))).astype(np.uint8), mode="L")
            sheet.paste(drawn.resize((side, side), Image.Resampling.BILINEAR), (side * column, side * row))
    shades = np.rint(np.asarray(sheet, dtype=np.float32) / 255 * (_SHADES - 1)) * (255 / (_SHADES - 1))
    sheet = Image.fromarray(np.rint(shades).astype(np.uint8), mode="L")
    canvas = ImageDraw.Draw(sheet)
    for column, track in enumerate(tracks):
        if column:
            canvas.line([side * column, 0, side * column, side * views], fill=_EDGE)
        if track.label:
            font_size = max(8, side // 10)
            canvas.text((side * column + font_size / 2, font_size / 3), track.label, fill=_INK, font_size=font_size)
    for row in range(1, views):
        canvas.line([0, side * row, side * len(tracks), side * row], fill=_EDGE)
    return sheet
