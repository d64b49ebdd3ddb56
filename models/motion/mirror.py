"""Left and right exchanged: joints, rotations, features, descriptions and whole clips as seen in a mirror."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import SLICES
from fastvq.models.motion.features272 import WIDTH as WIDTH272
from fastvq.models.motion.kit_skeleton import KIT_MIRROR_ORDER, KIT_NUM_JOINTS
from fastvq.models.motion.layout263 import LAYOUTS, Layout
from fastvq.models.motion.skeleton import MIRROR_ORDER, NUM_JOINTS

_ORDERS: dict[int, tuple[int, ...]] = {NUM_JOINTS: MIRROR_ORDER, KIT_NUM_JOINTS: KIT_MIRROR_ORDER}


def mirror_order(joints: int) -> tuple[int, ...]:
    """The order that exchanges left and right in a skeleton of 22 (SMPL, HumanML3D) or 21 (KIT-ML) joints.

    Raises:
        UserError: Another number of joints.
    """
    if joints not in _ORDERS:
        raise UserError(
            f"only skeletons of {NUM_JOINTS} joints (SMPL, HumanML3D) and {KIT_NUM_JOINTS} joints (KIT-ML) can be "
            f"mirrored, got {joints} joints: map the motion onto one of them first"
        )
    return _ORDERS[joints]


def mirror(joints: np.ndarray) -> np.ndarray:
    """The motion as seen in a mirror: x negated, left and right joints exchanged.

    Args:
        joints: (..., 22, 3) of SMPL and HumanML3D or (..., 21, 3) of KIT-ML, any unit.

    Returns:
        The same shape and dtype, a new array.

    Raises:
        UserError: Another number of joints.
    """
    return joints[..., list(mirror_order(joints.shape[-2])), :] * np.array([-1, 1, 1], dtype=joints.dtype)


def mirror_rotations(rotations: np.ndarray) -> np.ndarray:
    """Local (or global) joint rotations of the mirrored motion, (..., 22, 3, 3) -> the same shape."""
    signs = np.array([[1, -1, -1], [-1, 1, 1], [-1, 1, 1]], dtype=rotations.dtype)
    return rotations[..., list(MIRROR_ORDER), :, :] * signs


def mirror_features(features: np.ndarray) -> np.ndarray:
    """The features of the mirrored motion, told by their width.

    Args:
        features: (..., 272) of either heading variant, (..., 263) of HumanML3D or (..., 251) of KIT-ML, not
            normalised.

    Returns:
        The same shape and dtype, a new array.

    Raises:
        UserError: Another width.
    """
    width = features.shape[-1]
    if width == WIDTH272:
        return _mirror_272(features)
    layout = next((layout for layout in LAYOUTS if layout.width == width), None)
    if layout is None:
        known = ", ".join(str(one) for one in (WIDTH272, *(layout.width for layout in LAYOUTS)))
        raise UserError(
            f"only features of width {known} can be mirrored, got width {width}: mirror the joints instead"
        )
    return _mirror_263(features, layout)


def _mirror_263(features: np.ndarray, layout: Layout) -> np.ndarray:
    out = features.copy()
    columns = layout.slices
    order = np.array(mirror_order(layout.joints))
    side = np.array([-1, 1, 1], dtype=features.dtype)
    rotation = np.array([1, -1, -1, -1, 1, 1], dtype=features.dtype)
    out[..., columns["root_turn"]] *= -1
    out[..., columns["root_velocity"]] *= side[:2]
    # Positions and rotations leave the root out.
    for name, swapped, signs in (
        ("joint_position", order[1:] - 1, side),
        ("joint_rotation", order[1:] - 1, rotation),
        ("joint_velocity", order, side),
    ):
        rows = features[..., columns[name]].reshape(*features.shape[:-1], len(swapped), len(signs))
        out[..., columns[name]] = (rows[..., swapped, :] * signs).reshape(*features.shape[:-1], -1)
    out[..., columns["contact"]] = features[..., columns["contact"]][..., [2, 3, 0, 1]]
    return out


def _mirror_272(features: np.ndarray) -> np.ndarray:
    out = np.empty_like(features)
    shape = features.shape[:-1]
    rows = np.array([1, -1, -1, -1, 1, 1], dtype=features.dtype)
    out[..., SLICES["root_velocity"]] = features[..., SLICES["root_velocity"]] * np.array(
        [-1, 1], dtype=features.dtype
    )
    out[..., SLICES["root_heading"]] = features[..., SLICES["root_heading"]] * rows
    for name in ("joint_position", "joint_velocity"):
        points = features[..., SLICES[name]].reshape(*shape, NUM_JOINTS, 3)
        out[..., SLICES[name]] = mirror(points).reshape(*shape, -1)
    turned = features[..., SLICES["joint_rotation"]].reshape(*shape, NUM_JOINTS, 6)
    out[..., SLICES["joint_rotation"]] = (turned[..., list(MIRROR_ORDER), :] * rows).reshape(*shape, -1)
    return out


_SIDES = {
    "left": "right",
    "right": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "anticlockwise": "clockwise",
}
_SIDE_WORD = re.compile(rf"\b({'|'.join(_SIDES)})\b", re.IGNORECASE)


def mirror_text(text: str) -> str:
    """The description of the mirrored motion: "left" and "right" (and clock directions) exchanged."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _SIDES[word.lower()]
        return swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE_WORD.sub(other, text)


def mirror_clip(clip: Clip, *, suffix: str = "_mirrored") -> Clip:
    """The clip as seen in a mirror, its description included; its name gets the suffix."""
    return replace(
        clip,
        name=clip.name + suffix,
        joints=mirror(clip.joints),
        text=mirror_text(clip.text),
        rotations=None if clip.rotations is None else mirror_rotations(clip.rotations),
        features=None if clip.features is None else mirror_features(clip.features),
    )
