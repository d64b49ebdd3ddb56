"""``fastvq encode``: motions to a file of tokens."""

from __future__ import annotations

from fastvq.models.commands import common, heatmap_tokens, heatmap_vqgan
from fastvq.models.commands.options import Encode
from fastvq.models.commands.passes import encode_clips
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.token_file import write_tokens


def run(command: Encode) -> int:
    """Encodes; returns the exit code."""
    common.check_new_file(command.out, overwrite=command.overwrite, endings=(".safetensors",))
    if command.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {command.batch_size}")
    console = common.make_console()
    if heatmap_vqgan.is_heatmap_model(command.checkpoint):
        return heatmap_tokens.encode(command, console)
    model = common.load_model(command.checkpoint, command.device)
    fps = model.config.fps
    clips = common.read_features(
        command.data, console, model.config, split=command.split, mapping=command.mapping, scale=command.scale
    )
    tokens = encode_clips(model, clips, console, batch_size=command.batch_size)
    write_tokens(
        command.out,
        model,
        [(clip.name, len(clip.features), codes) for clip, codes in zip(clips, tokens, strict=True)],
    )
    frames = sum(len(clip.features) for clip in clips)
    console.print(
        f"{len(clips)} clips, {frames:,} frames at {fps:g} per second -> {sum(codes.numel() for codes in tokens):,} "
        f"tokens in {command.out} ({common.size_text(command.out.stat().st_size)})",
        markup=False,
    )
    return 0
