"""Distances between motions as joints, faults that motions have by themselves, and how independent codes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastvq.models.motion.skeleton import FEET

MILLIMETRES = 1000.0
# Metres and metres per second.
SKATE_HEIGHT, SKATE_SPEED = 0.05, 0.5


def centred(joints: np.ndarray) -> np.ndarray:
    """(T, J, 3) joints relative to the pelvis of their frame, float64."""
    joints = np.asarray(joints, dtype=np.float64)
    return joints - joints[:, :1]


def joint_errors(joints: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distance of each joint from its target after both pelvises are moved together: (T, J) millimetres.

    Their mean is the MPJPE of the motion literature (T2M-GPT and its successors; the pelvis counts, with 0).

    Args:
        joints, target: (T, J, 3) metres.
    """
    return MILLIMETRES * np.linalg.norm(centred(joints) - centred(target), axis=-1)


def acceleration_errors(joints: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How far the second differences of joints relative to the pelvis are apart: (T - 2, J) millimetres per frame^2.

    Args:
        joints, target: (T, J, 3) metres.
    """
    difference = centred(joints) - centred(target)
    return MILLIMETRES * np.linalg.norm(np.diff(difference, n=2, axis=0), axis=-1)


def procrustes_errors(joints: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distance of each joint from its target after the similarity transform of its frame that fits best: (T, J) mm.

    Rotation, translation and scale are those of least squares; reflections are not allowed. Their mean is the
    PA-MPJPE of the pose literature (Umeyama 1991, "Least-squares estimation of transformation parameters").

    Args:
        joints, target: (T, J, 3) metres.
    """
    given, wanted = (_about_mean(x) for x in (joints, target))
    left, sizes, right = np.linalg.svd(given.transpose(0, 2, 1) @ wanted)
    mirrored = np.linalg.det(left @ right) < 0
    sizes[mirrored, -1] *= -1
    left[mirrored, :, -1] *= -1
    extent = np.square(given).sum(axis=(1, 2))
    scale = np.where(extent > 0, sizes.sum(axis=1), 0.0) / np.where(extent > 0, extent, 1.0)
    fitted = scale[:, None, None] * (given @ (left @ right))
    return MILLIMETRES * np.linalg.norm(fitted - wanted, axis=-1)


def bone_errors(joints: np.ndarray, target: np.ndarray, parents: Sequence[int]) -> np.ndarray:
    """How far each bone's length in each frame is from its mean length in the target: (T, J - 1) millimetres.

    Args:
        joints, target: (T, J, 3) metres.
        parents: (J) the joint at which every bone begins; the first is the root and ends none.
    """
    given, wanted = (
        np.linalg.norm(x[:, 1:] - x[:, list(parents[1:])], axis=-1)
        for x in (np.asarray(joints, dtype=np.float64), np.asarray(target, dtype=np.float64))
    )
    return MILLIMETRES * np.abs(given - wanted.mean(axis=0))


def skating(joints: np.ndarray, fps: float, *, floor: float = 0.0) -> np.ndarray:
    """Whether a foot slides over the floor between two frames: (T - 1,) bool.

    It does where the ball of either foot lies below 5 cm in both frames and moves along the floor at more than
    0.5 m/s. The share of such frames is the foot skating ratio of Karunratanakul et al. 2023 ("Guided Motion
    Diffusion": height below 5 cm, 2.5 cm a frame at 20 frames per second), without averages over neighbouring frames.

    Args:
        joints: (T, 22, 3) metres, SMPL's.
        fps: frames per second.
        floor: its height.
    """
    feet = np.asarray(joints, dtype=np.float64)[:, [ball for _, ball in FEET]]
    low = feet[..., 1] - floor < SKATE_HEIGHT
    speed = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1) * fps
    return (low[1:] & low[:-1] & (speed > SKATE_SPEED)).any(axis=1)


class Orthogonality(NamedTuple):
    """How independent the centroids of categories are, from the Gram matrix G of their cosines.

    Attributes:
        mean_cosine: mean |G_ij| over i != j, 0 where all are orthogonal.
        gram_error: ||G - I||_F^2.
        centred_cosine: mean_cosine of the centroids after their common mean was subtracted.
    """

    mean_cosine: float
    gram_error: float
    centred_cosine: float


def centroid_orthogonality(table: np.ndarray, categories: Sequence[slice]) -> Orthogonality:
    """Orthogonality of the mean codes of categories (PGR2M, arXiv 2512.22464, which names no formula for its scalar).

    Args:
        table: (N, D) codes.
        categories: where the codes of each category lie, at least two categories.
    """
    codes = np.asarray(table, dtype=np.float64)
    centroids = np.stack([codes[rows].mean(axis=0) for rows in categories])
    gram = _cosines(centroids)
    return Orthogonality(
        _mean_off_diagonal(gram),
        float(np.square(gram - np.eye(len(gram))).sum()),
        _mean_off_diagonal(_cosines(centroids - centroids.mean(axis=0))),
    )


def _about_mean(joints: np.ndarray) -> np.ndarray:
    joints = np.asarray(joints, dtype=np.float64)
    return joints - joints.mean(axis=1, keepdims=True)


def _cosines(rows: np.ndarray) -> np.ndarray:
    """The Gram matrix of unit vectors; a row of zeros is orthogonal to all others."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    gram = unit @ unit.T
    np.fill_diagonal(gram, 1.0)
    return gram


def _mean_off_diagonal(gram: np.ndarray) -> float:
    return float(np.abs(gram[~np.eye(len(gram), dtype=bool)]).mean())
