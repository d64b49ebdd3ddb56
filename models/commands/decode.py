"""``fastvq decode``: a file of tokens to motions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from fastvq.models.commands import common
from fastvq.models.motion.bvh import write_bvh
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import features_to_joints, features_to_rotations, rest_offsets
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.token_file import ClipTokens, read_tokens


@dataclass(frozen=True)
class Decode:
    """Turn a file of tokens back into motions.

    bvh writes one file for each clip; npz writes motions.npz, joint positions (frames, 22, 3) in metres of every clip
    by name, with motions.json beside it. Both have Y up and SMPL's 22 joints, and fastvq reads them again.
    """

    checkpoint: str
    """The model that wrote the tokens: a run folder, a folder of save_pretrained, or a name on the hub."""
    tokens: Path
    """The token file."""
    out: Path
    """The folder to write into."""
    format: Literal["bvh", "npz"] = "bvh"
    """Kind of files to write."""
    rigid_bones: bool = False
    """Pose a skeleton of constant bone lengths by the decoded rotations. Otherwise joints are where the model puts
    them, and BVH files hold positions for joints whose distances vary."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Write into --out although it is not empty; files of the same names are replaced."""


def main(arguments: Sequence[str]) -> int:
    """Decodes; returns the exit code."""
    command = common.parse(Decode, "decode", arguments)
    common.check_new_folder(command.out, overwrite=command.overwrite)
    console = common.make_console()
    model = common.load_model(command.checkpoint, command.device)
    clips = read_tokens(command.tokens, model)
    names = file_names([clip.name for clip in clips])
    decoded: list[Clip] = []
    with common.progress_bar(console, "decoding") as bar:
        task = bar.add_task("decoding", total=len(clips), name="")
        for done, (clip, features) in enumerate(zip(clips, decode_clips(model, clips), strict=True), start=1):
            joints, rotations = posed(features, rigid=command.rigid_bones)
            if command.format == "bvh":
                path = command.out / f"{names[done - 1]}.bvh"
                write_bvh(path, joints, model.config.fps, rotations=rotations)
            else:
                decoded.append(Clip(name=clip.name, fps=model.config.fps, joints=joints, split=""))
            bar.update(task, completed=done, name=clip.name)
    if command.format == "npz":
        write_joint_arrays(command.out / "motions.npz", decoded)
    what = f"{len(clips)} BVH files" if command.format == "bvh" else "motions.npz and motions.json"
    frames = sum(clip.frames for clip in clips)
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {model.config.fps:g} per second -> {what} in {command.out}",
        markup=False,
    )
    return 0


def decode_clips(model: MotionVQVAE, clips: Sequence[ClipTokens], *, batch_size: int = 16) -> list[np.ndarray]:
    """(frames, 272) features of every clip."""
    features: list[np.ndarray] = []
    for start in range(0, len(clips), batch_size):
        part = clips[start : start + batch_size]
        longest = max(clip.tokens.shape[1] for clip in part)
        padded = [F.pad(clip.tokens, (0, longest - clip.tokens.shape[1]), value=-1) for clip in part]
        motions = model.decode_batch(torch.stack(padded, dim=1), [clip.frames for clip in part])
        features += [motion.cpu().numpy() for motion in motions]
    return features


def posed(features: np.ndarray, *, rigid: bool) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, 22, 3) in metres and local rotations (T, 22, 3, 3) of decoded features.

    Args:
        features: (T, 272), absolute heading.
        rigid: bones keep the lengths that fit the whole clip best.
    """
    rotations = features_to_rotations(features)
    joints = features_to_joints(features)
    if rigid:
        joints = features_to_joints(features, offsets=rest_offsets(joints, rotations))
    return joints, rotations


def file_names(names: Sequence[str]) -> list[str]:
    """Names of clips as names of files: no characters that a file system refuses, and all different."""
    taken: set[str] = set()
    found = []
    for name in names:
        safe = re.sub(r"[^\w.\- ]+", "_", name).strip(" .")[:120] or "clip"
        unique, number = safe, 2
        # Some file systems do not tell A from a.
        while unique.lower() in taken:
            unique, number = f"{safe}_{number}", number + 1
        taken.add(unique.lower())
        found.append(unique)
    return found
