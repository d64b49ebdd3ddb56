"""``fastvq encode`` and ``decode`` of heatmaps: motions to tokens, and tokens to heatmaps and the joints in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastvq.models import storage
from fastvq.models.commands import common
from fastvq.models.commands.heatmap_vqgan import load_model, read_clips, windows_at_once
from fastvq.models.commands.options import Decode, Encode
from fastvq.models.errors import UserError
from fastvq.models.heatmaps.bodies import keypoints, volume_joints
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.windows import cut, join
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.tokenizers.checks import MIN_FRAMES
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN
from fastvq.models.tokenizers.volume_token_file import VolumeTokens, read_volume_tokens, write_volume_tokens

FORMAT = "fastvq-heatmaps/1"
# As many as fastvq encode takes unless told otherwise.
BATCH = 16


def encode(command: Encode, console: Console) -> int:
    """Encodes; returns the exit code."""
    model, config = load_model(command.checkpoint, command.device)
    clips = read_clips(command, console, config, least=MIN_FRAMES, split=command.split)
    tokens = encode_clips(model, clips, config.heatmaps, console, batch_size=command.batch_size)
    write_volume_tokens(command.out, model, tokens, fps=config.fps)
    frames, windows = sum(clip.frames for clip in clips), sum(len(one.tokens) for one in tokens)
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {config.fps:g} per second, {windows:,} windows -> "
        f"{sum(one.tokens.numel() for one in tokens):,} tokens in {command.out} "
        f"({common.size_text(command.out.stat().st_size)})",
        markup=False,
    )
    return 0


@torch.no_grad()
def encode_clips(
    model: HeatmapVQGAN, clips: Sequence[Clip], form: HeatmapFormat, console: Console, *, batch_size: int = BATCH
) -> list[VolumeTokens]:
    """Clips in tokens, window after window, every joint as sure as can be.

    Raises:
        UserError: a clip that cannot be drawn, naming it.
    """
    windows = [cut(clip.joints, model.config.frames) for clip in clips]
    placed = [_named(clip.name, form, rows) for clip, rows in zip(clips, windows, strict=True)]
    device, found = model.last_weight.device, []
    joints = torch.cat(windows)
    with common.progress_bar(console, "encoding") as bar:
        task = bar.add_task("encoding", total=len(joints), name="")
        for part in joints.split(windows_at_once(model, batch_size)):
            found.append(model.encode(form.render(part).to(device)).cpu())
            bar.update(task, advance=len(part))
    tokens = torch.cat(found).split([len(rows) for rows in windows])
    return [
        VolumeTokens(clip.name, clip.frames, codes, where)
        for clip, codes, where in zip(clips, tokens, placed, strict=True)
    ]


def decode(command: Decode, console: Console) -> int:
    """Decodes; returns the exit code."""
    if command.format == "bvh":
        raise UserError(
            f"--format bvh is of motions, and {command.checkpoint} is a tokenizer of heatmaps: use npy, json or npz"
        )
    if command.rigid_bones:
        raise UserError("--rigid-bones is of motions, not of heatmaps: leave it out")
    model, config = load_model(command.checkpoint, command.device)
    form = config.heatmaps
    if command.format == "npz" and form.projection == "plane":
        raise UserError("--format npz needs the views of a volume, and these are of cameras: use npy or json")
    clips, fps = read_volume_tokens(command.tokens, model)
    with storage.replacing_files(command.out) as folder, common.progress_bar(console, "decoding") as bar:
        task = bar.add_task("decoding", total=sum(len(clip.tokens) for clip in clips), name="")

        def shown(done: int, name: str) -> None:
            bar.update(task, advance=done, name=name)

        if command.format == "npz":
            write_joint_arrays(folder / "motions.npz", [_motion(clip, model, form, fps, shown) for clip in clips])
        else:
            names = common.file_names([clip.name for clip in clips])
            written = {
                clip.name: _write(folder, name, clip, model, form, shown, pictures=command.format != "json")
                for clip, name in zip(clips, names, strict=True)
            }
            size, window = config.model.size, config.model.frames
            contents = {"format": FORMAT, "fps": fps, "size": size, "window": window, "joints": list(JOINT_NAMES)}
            common.write_json(folder / "clips.json", {**contents, "clips": written})
    frames = sum(clip.frames for clip in clips)
    what = {"json": "joints", "npz": "motions.npz and motions.json"}.get(command.format, "heatmaps and joints")
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {fps:g} per second -> {what} in {command.out}", markup=False
    )
    return 0


@torch.no_grad()
def decoded_windows(model: HeatmapVQGAN, tokens: Tensor) -> Iterator[Tensor]:
    """Heatmaps (w, C, T, H, W) in 0 to 1, on the CPU, of a clip's tokens (W, T', H', W'), some windows at a time."""
    for part in tokens.split(windows_at_once(model, BATCH)):
        yield model.decode(part).float().clamp(0, 1).cpu()


def _named(name: str, form: HeatmapFormat, windows: Tensor) -> Tensor:
    try:
        return form.placement(windows)
    except UserError as error:
        raise UserError(f"clip {name!r} cannot be drawn: {error}") from error


def _write(
    folder: Path,
    name: str,
    clip: VolumeTokens,
    model: HeatmapVQGAN,
    form: HeatmapFormat,
    shown: Callable[[int, str], None],
    *,
    pictures: bool,
) -> dict[str, Any]:
    """Writes the files of a clip; what ``clips.json`` says of it."""
    entry: dict[str, Any] = {"frames": clip.frames}
    joints: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        file = None
        if pictures:
            entry["heatmaps"] = f"{name}.heatmaps.npy"
            file = stack.enter_context(open(folder / entry["heatmaps"], "wb"))
            shape = (clip.frames, form.channels, form.size, form.size)
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        first, left = 0, clip.frames
        for windows in decoded_windows(model, clip.tokens):
            joints.append(keypoints(form, windows, clip.placed[first : first + len(windows)]))
            part = join(windows, left)
            if file is not None:
                file.write(part.numpy().astype("<f2").tobytes())
            first, left = first + len(windows), left - len(part)
            shown(len(windows), clip.name)
    pixels = join(torch.cat(joints), clip.frames).numpy().astype(np.float32)
    entry["keypoints"] = f"{name}.keypoints.{'npy' if pictures else 'json'}"
    entry["placed"] = clip.placed.tolist()
    if pictures:
        np.save(folder / entry["keypoints"], pixels)
    else:
        values = {"format": FORMAT, "name": clip.name, "pixels": _plain(pixels)}
        common.write_json(folder / entry["keypoints"], values)
    return entry


def _motion(
    clip: VolumeTokens, model: HeatmapVQGAN, form: HeatmapFormat, fps: float, shown: Callable[[int, str], None]
) -> Clip:
    """The joints of a clip in metres; where a frame shows no body, those of the nearest that does.

    Raises:
        UserError: no frame shows one.
    """
    found, first = [], 0
    for windows in decoded_windows(model, clip.tokens):
        found.append(volume_joints(form, windows, clip.placed[first : first + len(windows)]))
        first += len(windows)
        shown(len(windows), clip.name)
    joints = torch.cat(found).flatten(0, 1)[: clip.frames]
    there = joints.isfinite().flatten(1).all(dim=1).nonzero().flatten()
    if not len(there):
        raise UserError(f"the heatmaps of the clip {clip.name!r} show no body: train the model for longer")
    nearest = (torch.arange(clip.frames)[:, None] - there).abs().argmin(dim=1)
    return Clip(name=clip.name, fps=fps, joints=joints[there[nearest]].numpy(), split="")


def _plain(pixels: np.ndarray) -> list[Any]:
    """Lists of numbers with three digits; None for NaN, which JSON has not."""
    return [
        [[[None if math.isnan(x) else round(float(x), 3) for x in place] for place in view] for view in frame]
        for frame in pixels
    ]
