"""``fastvq encode`` and ``decode`` of heatmaps: motions to tokens, and tokens to heatmaps and the joints in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
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
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.windows import cut, join
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.tokenizers.checks import MIN_FRAMES
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN
from fastvq.models.tokenizers.volume_token_file import VolumeTokens, read_volume_tokens, write_volume_tokens
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig

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
    if command.format in ("bvh", "npz"):
        raise UserError(
            f"--format {command.format} is of motions, and {command.checkpoint} is a tokenizer of heatmaps: "
            "use npy or json"
        )
    if command.rigid_bones:
        raise UserError("--rigid-bones is of motions, not of heatmaps: leave it out")
    if command.format == "json" and command.data is None:
        raise UserError("--format json writes joints, which are looked for near those of --data: give it")
    model, config = load_model(command.checkpoint, command.device)
    clips, fps = read_volume_tokens(command.tokens, model)
    near = None if command.data is None else _near(command, console, config, clips)
    names = common.file_names([clip.name for clip in clips])
    contents: dict[str, Any] = {
        "format": FORMAT,
        "fps": fps,
        "size": config.model.size,
        "window": config.model.frames,
        "joints": list(JOINT_NAMES),
        "clips": {},
    }
    with storage.replacing_files(command.out) as folder, common.progress_bar(console, "decoding") as bar:
        task = bar.add_task("decoding", total=len(clips), name="")
        for index, (clip, name) in enumerate(zip(clips, names, strict=True)):
            joints = None if near is None else near[index]
            written = _write(folder, name, command.format, clip, model, config.heatmaps, joints)
            contents["clips"][clip.name] = {"frames": clip.frames, **written, "placed": clip.placed.tolist()}
            bar.update(task, advance=1, name=clip.name)
        common.write_json(folder / "clips.json", contents)
    frames = sum(clip.frames for clip in clips)
    what = {"json": "joints"}.get(command.format, "heatmaps" if near is None else "heatmaps and joints")
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {fps:g} per second -> {what} in {command.out}", markup=False
    )
    if near is None:
        console.print("Joints are looked for too where --data gives the motions that were encoded.", style="dim")
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


def _near(
    command: Decode, console: Console, config: HeatmapTrainConfig, clips: Sequence[VolumeTokens]
) -> list[Tensor]:
    """Where the joints of the encoded motions lie in the views of each window, (W, C, T, J, 2) pixels."""
    read = {clip.name: clip for clip in read_clips(command, console, config, least=MIN_FRAMES)}
    found = []
    for clip in clips:
        motion = read.get(clip.name)
        if motion is None or motion.frames != clip.frames:
            held = "no such clip" if motion is None else f"one of {motion.frames} frames"
            raise UserError(
                f"{command.data} must hold the motions that were encoded, but of the clip {clip.name!r} of "
                f"{clip.frames} frames it has {held}: give the data that fastvq encode got"
            )
        found.append(config.heatmaps.views(cut(motion.joints, config.model.frames)))
    return found


def _write(
    folder: Path,
    name: str,
    kind: str,
    clip: VolumeTokens,
    model: HeatmapVQGAN,
    form: HeatmapFormat,
    near: Tensor | None,
) -> dict[str, str]:
    """Writes the files of a clip; their names by what they hold."""
    written, joints = {}, []
    shape = (clip.frames, form.channels, form.size, form.size)
    with contextlib.ExitStack() as stack:
        pictures = None
        if kind != "json":
            written["heatmaps"] = f"{name}.heatmaps.npy"
            pictures = stack.enter_context(open(folder / written["heatmaps"], "wb"))
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(pictures, header)
        first, left = 0, clip.frames
        for windows in decoded_windows(model, clip.tokens):
            if near is not None:
                joints.append(form.find_drawn(windows, near[first : first + len(windows)]))
            part = join(windows, left)
            if pictures is not None:
                pictures.write(part.numpy().astype("<f2").tobytes())
            first, left = first + len(windows), left - len(part)
    if near is not None:
        pixels = join(torch.cat(joints), clip.frames).numpy().astype(np.float32)
        written["keypoints"] = f"{name}.keypoints.{'json' if kind == 'json' else 'npy'}"
        if kind == "json":
            values = {"format": FORMAT, "name": clip.name, "pixels": _plain(pixels)}
            common.write_json(folder / written["keypoints"], values)
        else:
            np.save(folder / written["keypoints"], pixels)
    return written


def _plain(pixels: np.ndarray) -> list[Any]:
    """Lists of numbers with three digits; None for NaN, which JSON has not."""
    return [
        [[[None if math.isnan(x) else round(float(x), 3) for x in place] for place in view] for view in frame]
        for frame in pixels
    ]
