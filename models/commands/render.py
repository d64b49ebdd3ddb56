"""``fastvq render``: motions or tokens as a page with moving skeletons, or as a GIF."""

from __future__ import annotations

from rich.console import Console

from fastvq.models.commands import common, heatmap_render, heatmap_vqgan
from fastvq.models.commands.options import Render
from fastvq.models.commands.passes import decode_clips, reconstruct
from fastvq.models.errors import UserError
from fastvq.models.rendering.gif import write_gif
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.scene import Scene, Track
from fastvq.models.tokenizers.token_file import read_tokens


def run(command: Render) -> int:
    """Renders; returns the exit code."""
    common.check_new_file(command.out, overwrite=command.overwrite, endings=(".html", ".htm", ".gif"))
    if (command.data is None) == (command.tokens is None):
        raise UserError("render needs either --data or --tokens: give one of them")
    if command.tokens is not None and command.checkpoint is None:
        raise UserError("--tokens needs --checkpoint, the model that wrote them")
    if command.max_clips < 1:
        raise UserError(f"--max-clips must be at least 1, got {command.max_clips}")
    if not 16 <= command.size <= 4096:
        raise UserError(f"--size must be from 16 to 4096 pixels, got {command.size}")
    console = common.make_console()
    if command.checkpoint is not None and heatmap_vqgan.is_heatmap_model(command.checkpoint):
        return heatmap_render.render(command, console)
    gif = command.out.suffix.lower() == ".gif"
    limit = 1 if gif else command.max_clips
    scenes = _motions(command, limit, console) if command.data is not None else _tokens(command, limit, console)
    if gif:
        write_gif(command.out, scenes[0], size=command.size)
    else:
        source = command.data if command.data is not None else command.tokens
        assert source is not None
        write_player(command.out, scenes, title=source.name)
    shown = scenes[0].name if len(scenes) == 1 else f"{len(scenes)} clips"
    console.print(f"{shown} -> {command.out} ({common.size_text(command.out.stat().st_size)})", markup=False)
    return 0


def _motions(command: Render, limit: int, console: Console) -> list[Scene]:
    assert command.data is not None
    if command.checkpoint is None:
        clips = common.read_clips(command.data, console, fps=None, mapping=command.mapping, scale=command.scale)
        chosen = common.choose_clips([clip.name for clip in clips], command.clip, limit, console)
        return [
            Scene(clips[index].name, clips[index].fps, [Track("", clips[index].joints)], clips[index].text)
            for index in chosen
        ]
    model = common.load_model(command.checkpoint, command.device)
    prepared = common.read_features(command.data, console, model.config, mapping=command.mapping, scale=command.scale)
    chosen = common.choose_clips([clip.name for clip in prepared], command.clip, limit, console)
    return [
        Scene(
            name=one.clip.name,
            fps=model.config.fps,
            tracks=(Track("Original", one.clip.joints), Track("Reconstruction", one.joints)),
            caption=one.clip.text,
            note=f"{one.mpjpe_mm:.1f} mm",
        )
        for one in reconstruct(model, [prepared[index] for index in chosen], limit=limit)
    ]


def _tokens(command: Render, limit: int, console: Console) -> list[Scene]:
    assert command.tokens is not None
    assert command.checkpoint is not None
    model = common.load_model(command.checkpoint, command.device)
    clips = read_tokens(command.tokens, model)
    clips = [
        clips[index] for index in common.choose_clips([clip.name for clip in clips], command.clip, limit, console)
    ]
    return [
        Scene(clip.name, model.config.fps, [Track("", model.config.features.to_smpl(features))])
        for clip, features in zip(clips, decode_clips(model, clips), strict=True)
    ]
