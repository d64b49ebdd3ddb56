"""Tokenised motions edited by their pose codes, and whether what is decoded does what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvq.models.editing.rules import Edit, check_agree
from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import CATEGORIES, CATEGORY_OF_CODE, NUM_CATEGORIES, PHRASES, PoseCodes
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import ClipTokens
from fastvq.models.tokenizers.tokenizer import MotionTokenizer


class Seen(NamedTuple):
    """Asked pose codes as a decoded motion shows them.

    Attributes:
        share: In what share of the frames it shows them.
        off: How many bins it is away from them, mean over the frames; a bin is 10 degrees or 0.1 m where there are
            more than three.
    """

    share: float
    off: float


@dataclass(frozen=True)
class Asked:
    """How one asked pose code fared.

    Attributes:
        code: Among the 392.
        latents: In how many latents it was asked for.
        before, after: How the motion shows it that is decoded from the tokens before the edit, and after.
    """

    code: int
    latents: int
    before: Seen
    after: Seen

    @property
    def phrase(self) -> str:
        """The code in words."""
        return str(PHRASES[self.code])


@dataclass(frozen=True)
class Edited:
    """A clip after its edit.

    Attributes:
        clip: The edited tokens.
        before, after: (frames, C) features decoded from the tokens before and after the edit, not normalised.
        asked: Every asked code.
        kept: Of the pose codes that were not asked for, the share that the decoded motion shows in the edited frames
            as it did before.
    """

    clip: ClipTokens
    before: np.ndarray
    after: np.ndarray
    asked: tuple[Asked, ...]
    kept: float


class Consistency(NamedTuple):
    """Edit consistency: how the decoded motion shows the asked pose codes, before the edit and after."""

    before: Seen
    after: Seen


def consistency(asked: Sequence[Asked]) -> Consistency:
    """Over all asked codes, each as often as it was asked for."""
    weights = [one.latents for one in asked]
    both = ([one.before for one in asked], [one.after for one in asked])
    return Consistency(*(Seen(*np.average(seen, axis=0, weights=weights).tolist()) for seen in both))


def pooled(clips: Sequence[Edited]) -> list[Asked]:
    """Every code that was asked for in any of the clips, over all of them."""
    found: dict[int, list[Asked]] = {}
    for clip in clips:
        for one in clip.asked:
            found.setdefault(one.code, []).append(one)
    return [Asked(code, sum(one.latents for one in ones), *consistency(ones)) for code, ones in sorted(found.items())]


def check_editable(model: MotionTokenizer) -> PoseCodeTokenizer:
    """The model, if its tokens can be edited.

    Raises:
        UserError: It has no pose codes.
    """
    if not isinstance(model, PoseCodeTokenizer):
        raise UserError(
            f"a {model.config.kind} has no pose codes to edit: give a model that has, such as fastvq train pose-rvq "
            "makes"
        )
    return model


def edit(
    model: PoseCodeTokenizer, clip: ClipTokens, edits: Sequence[Edit], *, without_residuals: bool = False
) -> Edited:
    """Edits a clip and measures what came of it.

    A latent holds the pose codes of its first frame, ``downsample`` apart; an edit changes the latents whose frame
    lies in its span. Residual codes were chosen for the pose before the edit, and may hold on to it.

    Args:
        model: The one that made the tokens; in evaluation mode.
        clip: Tokens (S, T') of one motion.
        edits: What to change.
        without_residuals: Leave the residual codes of the edited latents out.

    Raises:
        UserError: No edits, edits that contradict each other, a span that is not in the clip or holds no latent's
            frame, or pose codes that are left out.
    """
    if not edits:
        raise UserError("there is nothing to edit: give a rule or a pose code")
    check_agree(edits, clip.frames)
    model.pose_codes(clip.tokens)  # refuses tokens that leave pose codes out
    tokens = clip.tokens.clone()
    wanted = torch.full((NUM_CATEGORIES, tokens.shape[1]), -1)
    for one in edits:
        span = latents_of(one.name, one.frames, clip, model.config.downsample)
        for code in one.codes:
            category = CATEGORIES[int(CATEGORY_OF_CODE[code])]
            wanted[category.index, span] = code - category.start
    edited = (wanted >= 0).any(dim=0)
    tokens[:NUM_CATEGORIES] = torch.where(wanted >= 0, wanted, tokens[:NUM_CATEGORIES])
    if without_residuals:
        tokens[NUM_CATEGORIES:, edited] = -1
    after = ClipTokens(clip.name, clip.frames, tokens)
    was, became = decoded(model, clip), decoded(model, after)
    shown = shown_bins(model, was), shown_bins(model, became)
    asked = tuple(
        Asked(
            code=CATEGORIES[row].start + value,
            latents=int((wanted[row] == value).sum()),
            before=_seen(shown[0], row, value, wanted),
            after=_seen(shown[1], row, value, wanted),
        )
        for row in range(NUM_CATEGORIES)
        for value in sorted(set(wanted[row].tolist()) - {-1})
    )
    others = edited & (wanted < 0)
    kept = (shown[0] == shown[1])[others].float()
    return Edited(after, was, became, asked=asked, kept=float(kept.mean()) if len(kept) else 1.0)


def latents_of(what: str, frames: tuple[int, int] | None, clip: ClipTokens, downsample: int) -> slice:
    """The latents whose frame lies in a span.

    Args:
        what: Names the edit in messages.
        frames: From the first up to, but without, the second; None for the whole clip.
        clip: The one to edit.
        downsample: Frames of a latent.

    Raises:
        UserError: The span is not in the clip, or holds no latent's frame.
    """
    start, stop = frames or (0, clip.frames)
    if not 0 <= start < stop <= clip.frames:
        raise UserError(
            f"frames {start} to {stop} of {what!r} are not in clip {clip.name!r}, which has {clip.frames} "
            f"frames: give a start below an end, both from 0 to {clip.frames}, or choose clips that are longer"
        )
    first, last = -(-start // downsample), -(-stop // downsample)
    if first == last:
        raise UserError(
            f"frames {start} to {stop} of {what!r} hold no frame whose pose is a token, which every "
            f"{downsample}th is, from 0 on: give a longer span"
        )
    return slice(first, last)


def decoded(model: PoseCodeTokenizer, clip: ClipTokens) -> np.ndarray:
    """(frames, C) features of a clip's tokens, not normalised."""
    features: np.ndarray = model.decode(clip.tokens)[0, : clip.frames].float().cpu().numpy()
    return features


def shown_bins(model: PoseCodeTokenizer, features: np.ndarray) -> Tensor:
    """(70, T') bins that decoded features show in the frame of each latent."""
    codes: PoseCodes = model.parse(features[:: model.config.downsample])
    return torch.from_numpy(codes.bins).t()


def _seen(shown: Tensor, row: int, value: int, wanted: Tensor) -> Seen:
    off = (shown[row][wanted[row] == value] - value).abs()
    return Seen(float((off == 0).float().mean()), float(off.float().mean()))
