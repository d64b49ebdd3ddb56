"""``fastvq encode``: motions to a file of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvq.models.commands import common
from fastvq.models.commands.finish import encode_clips
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.token_file import write_tokens


@dataclass(frozen=True)
class Encode:
    """Turn motions into a file of tokens.

    Motions are resampled to the model's frame rate and cut where a body jumps; a clip needs 4 frames.
    """

    checkpoint: str
    """A run folder, a folder of save_pretrained, or a name on the Hugging Face Hub."""
    data: Path
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays or 272-dimensional features."""
    out: Path
    """The token file to write, ending in .safetensors."""
    split: common.OptionalText = None
    """Only clips of this split, train or test; all if absent."""
    mapping: common.OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    batch_size: int = 16
    """Clips encoded at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --out if it exists."""


def main(arguments: Sequence[str]) -> int:
    """Encodes; returns the exit code."""
    command = common.parse(Encode, "encode", arguments)
    common.check_new_file(command.out, overwrite=command.overwrite, endings=(".safetensors",))
    if command.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {command.batch_size}")
    console = common.make_console()
    model = common.load_model(command.checkpoint, command.device)
    fps = model.config.fps
    clips = common.prepare(
        common.read_clips(command.data, console, fps=fps, split=command.split, mapping=command.mapping),
        console,
        fps=fps,
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
