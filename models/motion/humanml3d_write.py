"""Writes motions as a HumanML3D or KIT-ML folder (``humanml3d_folder``), whole or not at all, in metres."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.feature_folder import check_mean, check_std, is_statistics
from fastvq.models.motion.features263 import check_features, joints_from_ric, joints_to_features, retarget
from fastvq.models.motion.humanml3d_folder import JOINTS, TEXTS, VECTORS, VectorClip
from fastvq.models.motion.humanml3d_texts import Caption, caption_lines
from fastvq.models.motion.layout263 import HUMANML3D, Layout
from fastvq.models.motion.mirror import mirror_features, mirror_text
from fastvq.models.motion.statistics263 import feature_statistics
from fastvq.models.motion.transform import resample
from fastvq.models.storage import replacing_folder


def vector_clip(clip: Clip, *, lengths: np.ndarray | None = None) -> VectorClip:
    """A clip as HumanML3D's features, at its 20 frames per second.

    Args:
        clip: At any frame rate; at least 2 frames must remain at 20 per second.
        lengths: (22,) metres, the bones of a body to bring it to (``features263.retarget``); None keeps its own.

    Raises:
        UserError: Too few frames.
    """
    joints = resample(clip.joints, clip.fps, HUMANML3D.fps)
    if len(joints) < 2:
        raise UserError(
            f"clip {clip.name!r} has {len(joints)} frame at {HUMANML3D.fps:g} frames per second: features need at "
            "least 2, so leave it out"
        )
    moved = joints if lengths is None else retarget(joints, lengths)
    captions = (Caption(clip.text),) if clip.text else ()
    return VectorClip(clip.name, joints_to_features(moved), captions, clip.split)


def mirror_vectors(clip: VectorClip, *, prefix: str = "M") -> VectorClip:
    """The clip as seen in a mirror, its descriptions included, named as the data sets name such: M000001.

    Raises:
        UserError: The features are neither HumanML3D's nor KIT-ML's.
    """
    captions = tuple(
        caption._replace(text=mirror_text(caption.text), tokens=tuple(map(mirror_text, caption.tokens)))
        for caption in clip.captions
    )
    return VectorClip(prefix + clip.name, mirror_features(clip.features), captions, clip.split)


def write_folder(
    folder: Path | str,
    clips: Sequence[VectorClip],
    layout: Layout = HUMANML3D,
    *,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Writes features, their joints, descriptions, split files and statistics.

    Args:
        folder: Must not be there yet, or be empty.
        clips: What to write; names must differ, and names and splits be names of files.
        layout: What the features are.
        statistics: (mean, std), (12 J - 1,) each, to write; None computes those of the clips of the train
            split, or of all clips where no clip has a split.

    Raises:
        UserError: The folder holds something, there is no clip, a clip or the statistics cannot be written, or
            the file system refuses; nothing is left of it.
    """
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: exists and is not an empty folder: choose another name")
    if not clips:
        raise UserError(f"{root}: no clips to write: give at least one")
    for clip in clips:
        if not _is_stem(clip.name) or clip.name.endswith(".npy"):
            raise UserError(f"{root}: {clip.name!r} is no name of a file: rename the clip")
        if is_statistics(Path(f"{clip.name}.npy")):
            raise UserError(f"{root}: {clip.name!r} is what a file of statistics is called: rename the clip")
        if clip.split and not _is_stem(clip.split):
            raise UserError(f"{root}: clip {clip.name!r}: its split {clip.split!r} is no name of a file: rename it")
    name, count = Counter(clip.name for clip in clips).most_common(1)[0]
    if count > 1:
        raise UserError(f"{root}: {count} clips are called {name!r}: rename all but one")
    if statistics is None:
        shown = [clip.features for clip in clips if clip.split in ("train", "")]
        if not shown:
            raise UserError(f"{root}: no clip is in the split 'train', which statistics are of: give statistics")
        statistics = feature_statistics(shown, layout)
    if len(statistics) != 2:
        raise UserError(f"{root}: statistics must be a pair (mean, std), got {len(statistics)} arrays: give both")
    mean = check_mean(np.asarray(statistics[0]), f"{root}: mean", layout.width)
    std = check_std(np.asarray(statistics[1]), f"{root}: std", layout.width)
    with replacing_folder(root) as partial:
        for part in (VECTORS, JOINTS, TEXTS):
            (partial / part).mkdir()
        for clip in clips:
            features = check_features(clip.features, layout).astype(np.float32)
            np.save(partial / VECTORS / f"{clip.name}.npy", features)
            np.save(partial / JOINTS / f"{clip.name}.npy", joints_from_ric(features, layout))
            if clip.captions:
                lines = caption_lines(clip.captions, f"clip {clip.name!r}")
                (partial / TEXTS / f"{clip.name}.txt").write_text(lines, encoding="utf-8")
        for split in sorted({clip.split for clip in clips if clip.split}):
            names = "".join(f"{clip.name}\n" for clip in clips if clip.split == split)
            (partial / f"{split}.txt").write_text(names, encoding="utf-8")
        np.save(partial / "Mean.npy", mean)
        np.save(partial / "Std.npy", std)


def _is_stem(name: str) -> bool:
    """Whether a file in a folder can be called this, and a line of a split file says it without loss."""
    return name not in ("", "..") and Path(name).name == name.strip() == name and name.isprintable()
