"""``fastvq render`` of heatmaps: a GIF of what a clip looks like, and of what its tokens say."""

from __future__ import annotations

import torch
from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.heatmap_tokens import decoded_windows, encode_clips
from fastvq.models.commands.heatmap_vqgan import load_model, read_clips
from fastvq.models.commands.options import Render
from fastvq.models.errors import UserError
from fastvq.models.heatmaps.windows import cut, join
from fastvq.models.rendering.heatmap_gif import HeatmapTrack, write_heatmap_gif
from fastvq.models.tokenizers.checks import MIN_FRAMES
from fastvq.models.tokenizers.volume_token_file import read_volume_tokens


def render(command: Render, console: Console) -> int:
    """Renders; returns the exit code."""
    if command.out.suffix.lower() != ".gif":
        raise UserError(f"heatmaps are shown as a GIF, got --out {command.out}: give a name that ends in .gif")
    assert command.checkpoint is not None
    model, config = load_model(command.checkpoint, command.device)
    form, fps, tracks = config.heatmaps, config.fps, []
    if command.data is not None:
        clips = read_clips(command, console, config, least=MIN_FRAMES)
        clip = clips[common.choose_clips([each.name for each in clips], command.clip, 1, console)[0]]
        (tokens,) = encode_clips(model, [clip], form, console)
        drawn = form.render(cut(clip.joints, config.model.frames))
        tracks.append(HeatmapTrack("Original", join(drawn, clip.frames).numpy()))
    else:
        assert command.tokens is not None
        stored, fps = read_volume_tokens(command.tokens, model)
        tokens = stored[common.choose_clips([each.name for each in stored], command.clip, 1, console)[0]]
    decoded = torch.cat(list(decoded_windows(model, tokens.tokens)))
    label = "Reconstruction" if tracks else ""
    tracks.append(HeatmapTrack(label, join(decoded, tokens.frames).numpy()))
    write_heatmap_gif(command.out, tracks, fps, size=command.size)
    windows = "" if len(tokens.tokens) == 1 else f", {len(tokens.tokens)} windows"
    size = common.size_text(command.out.stat().st_size)
    console.print(f"{tokens.name}{windows} -> {command.out} ({size})", markup=False)
    return 0
