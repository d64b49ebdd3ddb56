"""The pose codes of a clip: one code of every category in every frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes.categories import (
    CATEGORIES,
    CATEGORY_OF_CODE,
    CODE_NAMES,
    NUM_CATEGORIES,
    NUM_CODES,
    SIZES,
    STARTS,
)


@dataclass(frozen=True, eq=False)
class PoseCodes:
    """Codes of T frames.

    ``codes[::4]``, ``codes[mask]`` and ``codes[7]`` hold the codes of some of the frames; a loop goes through them
    one by one. For a model, the sum of a frame's active rows of a (392, D) codebook is
    ``k_hot @ codebook`` or, without the dense matrix, ``fastvq.functional.lookup(bins, codebook[PADDED_CODES])``.

    Attributes:
        indices: (T, 70) int64, the active code of every category, in [0, 392): column c holds a code of
            ``CATEGORY_SLICES[c]``, so that every row ascends.

    Raises:
        UserError: The shape is another, the numbers are not whole, or one is no code of its category.
    """

    indices: np.ndarray

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices)
        if indices.ndim != 2 or indices.shape[1] != NUM_CATEGORIES or indices.dtype.kind not in "iu":
            raise UserError(
                f"pose code indices must be (frames, {NUM_CATEGORIES}) whole numbers, "
                f"got shape {indices.shape} of {indices.dtype}: give one code for every category and frame"
            )
        indices = indices.astype(np.int64, copy=False)
        outside = (indices < STARTS) | (indices >= STARTS + SIZES)
        if outside.any():
            frame, column = np.argwhere(outside)[0].tolist()
            category = CATEGORIES[column]
            raise UserError(
                f"pose code {indices[frame, column]} in frame {frame} is none of category {column} "
                f"({category.kind.name} {category.name!r}): expected {category.start} to "
                f"{category.codes.stop - 1}; add the category's first code to bin numbers"
            )
        object.__setattr__(self, "indices", indices)

    @classmethod
    def from_k_hot(cls, k_hot: np.ndarray) -> PoseCodes:
        """The codes that a K-hot array switches on.

        Args:
            k_hot: (T, 392), bool or numbers of which those other than 0 are on.

        Raises:
            UserError: The shape is another, or a category has no code or several in a frame.
        """
        active = np.asarray(k_hot) != 0
        if active.ndim != 2 or active.shape[1] != NUM_CODES:
            raise UserError(f"K-hot pose codes must be (frames, {NUM_CODES}), got shape {active.shape}")
        counts = np.add.reduceat(active, STARTS, axis=1, dtype=np.int64)
        if (counts != 1).any():
            frame, column = np.argwhere(counts != 1)[0].tolist()
            category = CATEGORIES[column]
            raise UserError(
                f"K-hot pose codes need exactly one code of every category in every frame, but frame {frame} has "
                f"{counts[frame, column]} of {category.kind.name} {category.name!r}: take the most likely one"
            )
        return cls(np.nonzero(active)[1].reshape(-1, NUM_CATEGORIES))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, frames: int | slice | np.ndarray) -> PoseCodes:
        return PoseCodes(self.indices[frames].reshape(-1, NUM_CATEGORIES))

    @property
    def bins(self) -> np.ndarray:
        """(T, 70) int64, the active bin of every category, counted from 0 in each."""
        return self.indices - STARTS

    @property
    def k_hot(self) -> np.ndarray:
        """(T, 392) bool with 70 True in every row."""
        out = np.zeros((len(self), NUM_CODES), dtype=bool)
        np.put_along_axis(out, self.indices, True, axis=1)
        return out

    def names(self, frame: int) -> list[str]:
        """Published names of a frame's 70 codes, "L-knee 9", "L-hand vs R-hand above"."""
        return [CODE_NAMES[code] for code in self.indices[frame].tolist()]

    def has(self, codes: np.ndarray | int) -> np.ndarray:
        """(T,) or (T, codes) bool: whether each of the given codes is active in a frame.

        Args:
            codes: One code or (codes,) of them, as ``find_codes`` gives.

        Raises:
            UserError: One is no code.
        """
        wanted = np.asarray(codes)
        if wanted.dtype.kind not in "iu" or ((wanted < 0) | (wanted >= NUM_CODES)).any():
            raise UserError(f"pose codes are whole numbers from 0 to {NUM_CODES - 1}, got {codes}: see find_codes")
        return self.indices[:, CATEGORY_OF_CODE[wanted]] == wanted
