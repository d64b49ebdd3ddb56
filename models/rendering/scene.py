"""What a player shows: one or more tracks of joints over the same time, packed small enough to sit inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvq.models.motion.pose_codes import CATEGORIES, PHRASES, PoseCodes
from fastvq.models.motion.pose_codes.sentences import said_first, telling_codes
from fastvq.models.motion.skeleton import JOINT_NAMES, NUM_JOINTS, PARENTS

NOSE = 0.1  # metres from the middle of the head
_LARGEST = 32767
# Which colour a joint's bone takes: 0 trunk, 1 left, 2 right.
_SIDES = [1 if name.startswith("left_") else 2 if name.startswith("right_") else 0 for name in JOINT_NAMES]


@dataclass(frozen=True)
class Track:
    """One moving body.

    Attributes:
        label: What the viewer reads above it, for example "Original".
        joints: (T, 22, 3) metres, Y up, finite.
    """

    label: str
    joints: np.ndarray


@dataclass(frozen=True)
class CodeTrack:
    """Pose codes over time.

    Attributes:
        codes: Of N moments.
        frames: How many frames of the scene a moment lasts, >= 1.
        label: Where they come from, for example "written by the generator".
    """

    codes: PoseCodes
    frames: int
    label: str


@dataclass(frozen=True)
class Scene:
    """What one player shows.

    Attributes:
        name: The clip's name.
        caption: What the person does; may be empty.
        fps: Frames per second, > 0.
        tracks: One or more bodies, shown side by side; a shorter one rests in its last frame.
        note: A short remark beside the name, for example the clip's error.
        codes: Pose codes to show in words beside the body, as they are active in each frame.
    """

    name: str
    fps: float
    tracks: Sequence[Track]
    caption: str = ""
    note: str = ""
    codes: CodeTrack | None = None

    @property
    def frames(self) -> int:
        """Frames of the longest track."""
        return max(len(track.joints) for track in self.tracks)


def pack_joints(joints: np.ndarray) -> dict[str, Any]:
    """Joints as little-endian int16 in base64, a third of the size of float32 text.

    Args:
        joints: (T, 22, 3) metres, T >= 1, finite.

    Returns:
        ``{"frames", "scale", "centre", "data"}``; a coordinate is ``centre + scale * integer``. The error
        is at most half of ``scale``: 0.08 mm where a motion covers 10 m, below 1 mm up to 131 m.

    Raises:
        ValueError: for another shape, no frames, or values that are not finite.
    """
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3) or len(joints) == 0:
        raise ValueError(f"joints: expected (T, {NUM_JOINTS}, 3) with T >= 1, got {tuple(joints.shape)}")
    if not np.isfinite(joints).all():
        raise ValueError("joints: expected finite coordinates, got NaN or infinity")
    low, high = joints.min(axis=(0, 1)), joints.max(axis=(0, 1))
    centre = (low + high) / 2
    scale = float((high - low).max() / 2 / _LARGEST) or 1.0
    steps = np.rint((joints - centre) / scale).clip(-_LARGEST, _LARGEST).astype("<i2")
    return {
        "frames": len(joints),
        "scale": scale,
        "centre": [float(value) for value in centre],
        "data": base64.b64encode(steps.tobytes()).decode("ascii"),
    }


def nose(joints: np.ndarray) -> np.ndarray:
    """(..., 22, 3) joints -> (..., 3), a point before the head: no joint says where a body looks, so the chest does.

    Where the shoulders lie on the spine's line, it is the head itself.
    """
    left, right, neck, head = (
        joints[..., JOINT_NAMES.index(name), :] for name in ("left_shoulder", "right_shoulder", "neck", "head")
    )
    ahead = np.cross(left - right, head - neck)
    return head + NOSE * ahead / np.maximum(np.linalg.norm(ahead, axis=-1, keepdims=True), 1e-9)


def unpack_joints(packed: dict[str, Any]) -> np.ndarray:
    """(T, 22, 3) float32 metres from what :func:`pack_joints` made."""
    steps = np.frombuffer(base64.b64decode(packed["data"]), dtype="<i2")
    joints = steps.reshape(packed["frames"], NUM_JOINTS, 3) * packed["scale"] + np.array(packed["centre"])
    return joints.astype(np.float32)


def scene_payload(scene: Scene) -> dict[str, Any]:
    """The scene as the JSON object that ``player.js`` reads."""
    return {
        "name": scene.name,
        "caption": scene.caption,
        "note": scene.note,
        "fps": scene.fps,
        "frames": scene.frames,
        "parents": list(PARENTS),
        "sides": _SIDES,
        "head": JOINT_NAMES.index("head"),
        "face": [JOINT_NAMES.index(name) for name in ("left_shoulder", "right_shoulder", "neck")],
        "hips": [JOINT_NAMES.index("left_hip"), JOINT_NAMES.index("right_hip")],
        "tracks": [{"label": track.label, **pack_joints(track.joints)} for track in scene.tracks],
        "codes": None if scene.codes is None else _pack_codes(scene.codes),
    }


def _pack_codes(track: CodeTrack) -> dict[str, Any]:
    """The active bin of every category as a byte."""
    data = base64.b64encode(track.codes.bins.astype(np.uint8).tobytes()).decode("ascii")
    return {"moments": len(track.codes), "frames": track.frames, "label": track.label, "data": data}


def wording_payload() -> dict[str, Any]:
    """What ``player.js`` needs to put pose codes into words."""
    return {
        "starts": [category.start for category in CATEGORIES],
        "order": said_first(),
        "phrases": [str(phrase) for phrase in PHRASES],
        "telling": [int(telling) for telling in telling_codes()],
    }
