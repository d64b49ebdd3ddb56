"""``fastvq decode``: a file of tokens to motions."""

from __future__ import annotations

from fastvq.models import storage
from fastvq.models.commands import common, heatmap_tokens, heatmap_vqgan
from fastvq.models.commands.options import Decode
from fastvq.models.commands.passes import decode_clips
from fastvq.models.errors import UserError
from fastvq.models.motion.bvh import write_bvh
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.tokenizers.token_file import read_tokens


def run(command: Decode) -> int:
    """Decodes; returns the exit code."""
    common.check_new_folder(command.out, overwrite=command.overwrite)
    console = common.make_console()
    if heatmap_vqgan.is_heatmap_model(command.checkpoint):
        return heatmap_tokens.decode(command, console)
    form = "bvh" if command.format == "auto" else command.format
    if form not in ("bvh", "npz"):
        raise UserError(
            f"--format {form} is of heatmaps, and {command.checkpoint} is a tokenizer of motions: use bvh or npz"
        )
    model = common.load_model(command.checkpoint, command.device)
    clips = read_tokens(command.tokens, model)
    names = common.file_names([clip.name for clip in clips])
    decoded: list[Clip] = []
    with storage.replacing_files(command.out) as folder, common.progress_bar(console, "decoding") as bar:
        task = bar.add_task("decoding", total=len(clips), name="")
        for done, (clip, features) in enumerate(zip(clips, decode_clips(model, clips), strict=True), start=1):
            joints, rotations = model.config.features.posed(features, rigid=command.rigid_bones)
            if form == "bvh":
                write_bvh(folder / f"{names[done - 1]}.bvh", joints, model.config.fps, rotations=rotations)
            else:
                decoded.append(Clip(name=clip.name, fps=model.config.fps, joints=joints, split=""))
            bar.update(task, completed=done, name=clip.name)
        if form == "npz":
            write_joint_arrays(folder / "motions.npz", decoded)
    what = f"{len(clips)} BVH files" if form == "bvh" else "motions.npz and motions.json"
    frames = sum(clip.frames for clip in clips)
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {model.config.fps:g} per second -> {what} in {command.out}",
        markup=False,
    )
    return 0
