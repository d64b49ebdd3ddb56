"""Motions from any file or folder: BVH, ASF/AMC, joint arrays, features of 272, 263 or 251 columns, or all mixed.

Kinds are told by the ending of a file and, where that says nothing, by how its content begins. Folders are
searched to the bottom, links followed, files taken in the order of their paths. A motion's split is the one
that its data set gives (a row of the ``.json``, a ``train.txt``); where there is none, a tenth of all names,
drawn by a hash of the name, goes to the test split, so that a motion stays where it is when others come or go.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.files import find_files
from fastvq.models.motion import asf_amc, bvh, feature_folder, joint_arrays
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features263 import joints_from_ric
from fastvq.models.motion.features272 import WIDTH, Heading, joints_to_features
from fastvq.models.motion.humanml3d_clips import LayoutMotion, doubles, joints_layout, layout_clips
from fastvq.models.motion.humanml3d_folder import check_vectors, layout_of
from fastvq.models.motion.mapping import MappingReport, read_mapping_file
from fastvq.models.motion.placement import UpAxis, place
from fastvq.models.motion.published_turns import correct_turns
from fastvq.models.motion.source import SourceMotion
from fastvq.models.motion.transform import resample_clip

MIN_FRAMES = 4
TEST_SHARE = 0.1

Kind = Literal["bvh", "amc", "npz", "npy", "archive", "companion", "other"]
Progress = Callable[[int, int, str], None]

_ENDINGS: dict[str, Kind] = {
    ".bvh": "bvh",
    ".amc": "amc",
    ".npz": "npz",
    ".npy": "npy",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"), "archive"),
    **dict.fromkeys((".asf", ".json", ".txt", ".md"), "companion"),
}
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"HIERARCHY", "bvh"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "archive"),
    (b"\x1f\x8b", "archive"),
)
_KINDS = "BVH (.bvh), ASF/AMC (.amc with its .asf), joint arrays (.npz, .npy) or features (.npy)"


@dataclass
class LoadReport:
    """What was loaded.

    Attributes:
        clips: In the order of the files, names unique.
        mappings: For every kind of skeleton that had to be mapped, how it was; the key describes it.
        notes: What was skipped, assumed or guessed, a sentence each.
    """

    clips: list[Clip]
    mappings: dict[str, MappingReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Options:
    overrides: Mapping[str, str] | None
    scale: float | None
    up_axis: UpAxis | None
    source_fps: float | None
    heading: Heading | None


@dataclass(frozen=True)
class _Found:
    """A clip and the file it came from."""

    path: Path
    clip: Clip


@dataclass(frozen=True)
class _Features:
    """The features of a file, which become a clip once their variant is known."""

    path: Path
    values: np.ndarray
    text: str


def load_clips(
    path: Path | str,
    *,
    fps: float | None = 30.0,
    split: str | None = None,
    mapping_file: Path | str | None = None,
    scale: float | None = None,
    up_axis: UpAxis | None = None,
    source_fps: float | None = None,
    heading: Heading | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
) -> LoadReport:
    """Loads every motion of a file or folder.

    Args:
        path: A file of one of the kinds above, or a folder that holds such files at any depth.
        fps: Frames per second to resample to; None keeps each source's own.
        split: Only the clips of this split (``"train"``, ``"test"``, ...); None takes all.
        mapping_file: JSON of {SMPL name: source name} for skeletons whose joint names say too little.
        scale: Metres per unit of BVH, AMC, HumanML3D and KIT-ML files; guessed from the body's size when None.
        up_axis: Vertical axis of BVH and AMC files, ``"y"`` or ``"z"``; guessed when None.
        source_fps: Frame rate of files that do not say theirs: AMC (120 when None), arrays (30 when None),
            HumanML3D (20 when None), KIT-ML (12.5 when None).
        heading: The heading variant that 272-dimensional features hold; detected when None
            (``feature_folder.detect_heading``).
        on_error: ``"skip"`` leaves files out that cannot be used, with a note, instead of raising.
        progress: Called as (files done, files in all, name of the file) after every file.

    Returns:
        The clips, how skeletons were mapped, and notes. Positions stay where the source has them; features
        are moved to the origin by definition. Clips of fewer than 4 frames are left out with a note.

    Raises:
        UserError: The path is missing, holds no motion, or a file cannot be used; or nothing remains.
    """
    path = Path(path)
    files, notes = _files(path)
    overrides = None if mapping_file is None else read_mapping_file(Path(mapping_file))
    options = _Options(overrides, scale, up_axis, source_fps, heading)
    report = LoadReport([], notes=notes)
    found: list[_Found] = []
    features: list[_Features] = []
    layouts: list[LayoutMotion] = []
    for done, (file, kind) in enumerate(files, start=1):
        try:
            found += _load_file(file, kind, options, features, layouts, report)
        except UserError as error:
            if on_error == "raise":
                raise
            report.notes.append(f"skipped: {error}")
        if progress is not None:
            progress(done, len(files), file.name)
    found += _feature_clips(features, options, report)
    placed, more = layout_clips(layouts, scale=scale, fps=source_fps)
    found += [_Found(one.path, clip) for one, clip in zip(layouts, placed, strict=True)]
    report.notes += more
    found.sort(key=lambda one: (one.path, one.clip.name))
    clips = _with_splits(path, _with_unique_names(path, found), report)
    clips = [clip if fps is None else resample_clip(clip, fps) for clip in clips]
    report.clips = _selected(path, clips, split, report)
    return report


def clip_features(clip: Clip) -> np.ndarray:
    """(T, 272) float32 features of a clip at its own frame rate, absolute heading, not normalised.

    Those that came from a features file are returned as they were.
    """
    if clip.features is not None and clip.features.shape[1] == WIDTH:
        return clip.features
    return joints_to_features(clip.joints, rotations=clip.rotations, heading="absolute")


def split_of(name: str) -> str:
    """``"test"`` for a tenth of all names, ``"train"`` for the others; it depends on nothing but the name."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < TEST_SHARE else "train"


def _kind(path: Path) -> Kind:
    kind = _ENDINGS.get(path.suffix.lower(), "other")
    if kind == "other":
        try:
            with open(path, "rb") as file:
                start = file.read(16).lstrip(b"\xef\xbb\xbf \t\r\n").upper()
        except OSError:
            return "other"
        kind = next((known for magic, known in _STARTS if start.startswith(magic)), "other")
    if kind == "npy" and feature_folder.is_statistics(path):
        return "companion"
    return kind


def _files(path: Path) -> tuple[list[tuple[Path, Kind]], list[str]]:
    """The motion files to read, in order, and notes on what else lies there."""
    if path.is_file():
        kind = _kind(path)
        if kind == "archive":
            raise UserError(f"{path}: is an archive: unpack it and give the folder")
        if kind in ("companion", "other"):
            raise UserError(f"{path}: is no motion file: expected {_KINDS}, or a folder of them")
        return [(path, kind)], []
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder: check the path")
    everything, broken = find_files(path)
    everything = [file for file in everything if "__MACOSX" not in file.relative_to(path).parts]
    if not everything:
        raise UserError(f"{path}: the folder is empty: expected {_KINDS}")
    twice = doubles(everything)
    kinds = [(file, "companion" if file in twice else _kind(file)) for file in everything]
    motions = [(file, kind) for file, kind in kinds if kind not in ("archive", "companion", "other")]
    notes = [f"{file}: skipped, a link to what is not there" for file in broken]
    notes += [f"{file}: skipped, an archive: unpack it to use it" for file, kind in kinds if kind == "archive"]
    if twice:
        notes.append(f"skipped {len(twice)} files of joints whose features lie beside them, first {min(twice)}")
    others = Counter(file.suffix or file.name for file, kind in kinds if kind == "other")
    notes += [f"skipped {count} files {ending}: no kind of motion" for ending, count in sorted(others.items())]
    if not motions:
        seen = ", ".join(sorted({file.suffix or file.name for file in everything})[:8])
        raise UserError(f"{path}: no motions in {len(everything)} files ({seen}): expected {_KINDS}")
    return motions, notes


def _load_file(
    path: Path,
    kind: Kind,
    options: _Options,
    features: list[_Features],
    layouts: list[LayoutMotion],
    report: LoadReport,
) -> list[_Found]:
    """The clips of one file. Features are put aside: variant and unit are told from all of them together."""
    if kind in ("bvh", "amc"):
        return [_placed(path, _read_skeleton_file(path, kind, options), options, report)]
    if kind == "npz":
        clips, notes = joint_arrays.read_joint_npz(path, fps=options.source_fps)
        report.notes += notes
        return [_Found(path, clip) for clip in clips]
    array = joint_arrays.read_array(path)
    layout = layout_of(array) if array.ndim == 2 else joints_layout(array, path)
    if layout is not None:
        text, corrected, values = feature_folder.read_description(path), 0, None
        if array.ndim == 2:
            values, corrected = correct_turns(check_vectors(array, path, layout), layout)
            joints = joints_from_ric(values, layout)
        else:
            joints = joint_arrays.check_joints(array, str(path), layout.joints)
        layouts.append(LayoutMotion(path, layout, joints, text, corrected, values))
        return []
    if array.ndim != 3:
        text = feature_folder.read_description(path)
        features.append(_Features(path, feature_folder.check_features(array, path), text))
        return []
    clip, notes = joint_arrays.read_joint_npy(path, fps=options.source_fps)
    report.notes += notes
    return [_Found(path, replace(clip, text=feature_folder.read_description(path)))]


def _read_skeleton_file(path: Path, kind: Kind, options: _Options) -> SourceMotion:
    if kind == "bvh":
        return bvh.read_bvh(path)
    asf = asf_amc.read_asf(asf_amc.find_asf(path))
    return asf_amc.read_amc(path, asf, fps=options.source_fps or asf_amc.DEFAULT_FPS)


def _placed(path: Path, motion: SourceMotion, options: _Options, report: LoadReport) -> _Found:
    placed = place(motion, overrides=options.overrides, scale=options.scale, up_axis=options.up_axis, where=str(path))
    report.notes += placed.notes
    signature = hashlib.sha256(str(placed.report).encode()).hexdigest()[:8]
    report.mappings[f"{placed.report.skeleton}, {signature}"] = placed.report
    text = feature_folder.read_description(path)
    return _Found(path, Clip(name=path.stem, fps=placed.fps, joints=placed.joints, text=text, split=""))


def _feature_clips(features: list[_Features], options: _Options, report: LoadReport) -> list[_Found]:
    if not features:
        return []
    heading = options.heading
    if heading is None:
        heading = feature_folder.detect_heading([one.values for one in features])
        report.notes.append(f"{len(features)} files of features are taken to hold the heading as: {heading}")
    return [
        _Found(one.path, replace(feature_folder.feature_clip(one.path.stem, one.values, heading), text=one.text))
        for one in features
    ]


def _with_unique_names(root: Path, found: list[_Found]) -> list[_Found]:
    """Clips that share a name get their folders before it, then the file's name behind it, then a number."""

    def folders(one: _Found, _: int) -> str:
        return _utf8("__".join((*one.path.relative_to(root).parent.parts, one.clip.name)))

    def file(one: _Found, _: int) -> str:
        return f"{one.clip.name}__{_utf8(one.path.name)}"

    def numbered(one: _Found, place: int) -> str:
        return f"{one.clip.name}__{place}"

    found = [
        _Found(
            one.path,
            replace(one.clip, name=_utf8(one.clip.name), text=_utf8(one.clip.text), split=_utf8(one.clip.split)),
        )
        for one in found
    ]
    for rename in (folders, file, numbered):
        counts = Counter(one.clip.name for one in found)
        found = [
            one if counts[one.clip.name] == 1 else _Found(one.path, replace(one.clip, name=rename(one, place)))
            for place, one in enumerate(found)
        ]
    return found


def _utf8(text: str) -> str:
    """The text with "?" for what no UTF-8 file can hold: names in another encoding, broken characters in JSON."""
    return text.encode("utf-8", "replace").decode()


def _with_splits(root: Path, found: list[_Found], report: LoadReport) -> list[Clip]:
    """Fills in the splits that the clips' own files did not give."""
    listed = feature_folder.read_split_files(root) if root.is_dir() else None
    clips: list[Clip] = []
    unlisted: list[Clip] = []
    for one in found:
        clip = one.clip
        if clip.split:
            clips.append(clip)
        elif listed is None or one.path.suffix.lower() != ".npy":
            clips.append(replace(clip, split=split_of(clip.name)))
        else:
            relative = one.path.relative_to(root).with_suffix("").as_posix()
            given = next((listed[key] for key in (clip.name, relative, one.path.stem) if key in listed), None)
            (clips if given else unlisted).append(replace(clip, split=given or ""))
    if unlisted:
        report.notes.append(
            f"skipped {len(unlisted)} .npy files that no split file names, first {unlisted[0].name!r}"
        )
    return clips


def _selected(root: Path, clips: list[Clip], split: str | None, report: LoadReport) -> list[Clip]:
    """Those long enough and of the wanted split."""
    short = [clip for clip in clips if clip.frames < MIN_FRAMES]
    if short:
        report.notes.append(
            f"skipped {len(short)} clips of fewer than {MIN_FRAMES} frames, first {short[0].name!r} with "
            f"{short[0].frames} at {short[0].fps:g} frames per second"
        )
    kept = [clip for clip in clips if clip.frames >= MIN_FRAMES]
    if not kept:
        reasons = "; ".join(report.notes[:3])
        raise UserError(f"{root}: nothing remains to load ({reasons or 'no clips'}): give other motions")
    chosen = [clip for clip in kept if split is None or clip.split == split]
    if not chosen:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(c.split for c in kept).items()))
        raise UserError(f"{root}: no clips in the split {split!r}: it has {there}")
    return chosen
