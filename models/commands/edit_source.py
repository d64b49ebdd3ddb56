"""What the two ways to edit share: which clips, which frames, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from fastvq.models.commands import common, options
from fastvq.models.commands.passes import encode_clips
from fastvq.models.errors import UserError
from fastvq.models.rendering.scene import Track
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import ClipTokens, read_tokens

TOKENS = ".safetensors"
SHOWN_CLIPS = 12


def span_of(text: str) -> tuple[int, int]:
    """The frames that --frames names.

    Raises:
        UserError: another form.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise UserError(f"--frames must be START:STOP, such as 20:40, got {text!r}")
    return int(match[1]), int(match[2])


def clips_of(command: options.Edit, model: PoseCodeTokenizer, console: Console) -> list[ClipTokens]:
    """The clips to edit as tokens, those of a token file or of motions, which are encoded.

    Raises:
        UserError: there is nothing usable, another model wrote the tokens, or no clip is called so.
    """
    if command.source.suffix.lower() == TOKENS:
        return _chosen(read_tokens(command.source, model), command.clip)
    clips = common.read_features(command.source, console, model.config, mapping=command.mapping, scale=command.scale)
    if command.clip:
        clips = [clip for clip in clips if clip.name in command.clip] or clips
    tokens = encode_clips(model, clips, console)
    encoded = [ClipTokens(clip.name, len(clip.features), codes) for clip, codes in zip(clips, tokens, strict=True)]
    return _chosen(encoded, command.clip)


def _chosen(clips: Sequence[ClipTokens], wanted: Sequence[str]) -> list[ClipTokens]:
    if not wanted:
        return list(clips)
    by_name = {clip.name: clip for clip in clips}
    for name in wanted:
        if name not in by_name:
            some = ", ".join(list(by_name)[:5]) + (" ..." if len(by_name) > 5 else "")
            raise UserError(f"there is no clip {name!r}; there are {some}")
    return [by_name[name] for name in wanted]


def tracks(model: PoseCodeTokenizer, before: np.ndarray, after: np.ndarray) -> list[Track]:
    """The motions decoded before an edit and after, (T, C) features each, to stand side by side."""
    both = (("Before", before), ("After", after))
    return [Track(label, model.config.features.to_smpl(features)) for label, features in both]
