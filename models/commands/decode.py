"""``fastvq decode``: a file of tokens to motions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastvq.models import storage
from fastvq.models.commands import common
from fastvq.models.commands.options import Decode
from fastvq.models.commands.passes import decode_clips
from fastvq.models.motion.bvh import write_bvh
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.tokenizers.token_file import read_tokens

LONGEST_NAME = 180


def run(command: Decode) -> int:
    """Decodes; returns the exit code."""
    common.check_new_folder(command.out, overwrite=command.overwrite)
    console = common.make_console()
    model = common.load_model(command.checkpoint, command.device)
    clips = read_tokens(command.tokens, model)
    names = file_names([clip.name for clip in clips])
    decoded: list[Clip] = []
    with storage.replacing_files(command.out) as folder, common.progress_bar(console, "decoding") as bar:
        task = bar.add_task("decoding", total=len(clips), name="")
        for done, (clip, features) in enumerate(zip(clips, decode_clips(model, clips), strict=True), start=1):
            joints, rotations = model.config.features.posed(features, rigid=command.rigid_bones)
            if command.format == "bvh":
                write_bvh(folder / f"{names[done - 1]}.bvh", joints, model.config.fps, rotations=rotations)
            else:
                decoded.append(Clip(name=clip.name, fps=model.config.fps, joints=joints, split=""))
            bar.update(task, completed=done, name=clip.name)
        if command.format == "npz":
            write_joint_arrays(folder / "motions.npz", decoded)
    what = f"{len(clips)} BVH files" if command.format == "bvh" else "motions.npz and motions.json"
    frames = sum(clip.frames for clip in clips)
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {model.config.fps:g} per second -> {what} in {command.out}",
        markup=False,
    )
    return 0


def file_names(names: Sequence[str]) -> list[str]:
    """Names of clips as names of files: no characters that a file system refuses, and all different."""
    taken: set[str] = set()
    found = []
    for name in names:
        safe = re.sub(r"[^\w.\- ]+", "_", name).strip(" .")[:120]
        # File systems count bytes, of which they take 255, endings and those of partial files included.
        safe = safe.encode()[:LONGEST_NAME].decode(errors="ignore") or "clip"
        unique, number = safe, 2
        # Some file systems do not tell A from a.
        while unique.lower() in taken:
            unique, number = f"{safe}_{number}", number + 1
        taken.add(unique.lower())
        found.append(unique)
    return found
