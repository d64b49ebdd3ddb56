"""A tokenised motion edited by a text: its transformer writes some pose codes anew, and all others are held.

The text is free to change the parts of the body that it names, or those that it is told, in a span of frames. Every
pose code outside of that stays as it is. The transformer reads on from left to right: what it writes follows from the
text and from what stands before, held codes among it, and not from what is held behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvq.models.editing.edit import decoded, latents_of, shown_bins
from fastvq.models.editing.parts import named_parts, part
from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import GREEDY, BaseTransformer
from fastvq.models.generators.refine_transformer import RefineTransformer
from fastvq.models.generators.sampling import Sampling
from fastvq.models.motion.pose_codes import NUM_CATEGORIES
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import ClipTokens


@dataclass(frozen=True)
class TextEdit:
    """What a text may change.

    Attributes:
        text: what the motion shall show.
        parts: names in :data:`fastvq.models.editing.parts.PARTS`; those that the text names where there are none.
        frames: from the first frame up to, but without, the second; None for the whole clip.
    """

    text: str
    parts: tuple[str, ...] = ()
    frames: tuple[int, int] | None = None

    @property
    def free_parts(self) -> tuple[str, ...]:
        """The parts that may change."""
        return self.parts or tuple(named_parts(self.text))


@dataclass(frozen=True)
class Retold:
    """A clip after an edit by a text.

    Attributes:
        clip: The edited tokens.
        before, after: (frames, C) features decoded from the tokens before the edit and after, not normalised.
        free: How many pose codes might change.
        changed: How many did.
        followed: Of those that changed, the share that the decoded motion shows as they are now.
        kept: Of the pose codes that were held, the share that the decoded motion shows, in the latents in which
            others changed, as it did before; 1 where there are none.
    """

    clip: ClipTokens
    before: np.ndarray
    after: np.ndarray
    free: int
    changed: int
    followed: float
    kept: float


def retell(
    model: PoseCodeTokenizer,
    generator: BaseTransformer | RefineTransformer,
    clip: ClipTokens,
    edit: TextEdit,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    without_residuals: bool = False,
) -> Retold:
    """Edits a clip by a text and measures what came of it.

    Residual codes stay in the latents in which no pose code changes. In the others a Refine Transformer predicts them
    anew; with a Base Transformer alone they stay too, and may hold on to the motion before the edit.

    Args:
        model: The tokenizer that made the tokens; in evaluation mode.
        generator: One that was trained on it.
        clip: Tokens (S, T') of one motion. Of a longer one than the generator writes it sees the latents about the
            span.
        edit: What to change.
        sampling: How codes are drawn; by default each is the likeliest.
        seed: Of the draw.
        without_residuals: Leave the residual codes of the changed latents out.

    Raises:
        UserError: The generator drives another tokenizer, a text that is empty or too long, a part that there is not,
            a span that is not in the clip, holds no latent's frame or is longer than the generator writes, or pose
            codes that are left out.
    """
    generator.check_tokenizer(model)
    model.pose_codes(clip.tokens)  # refuses tokens that leave pose codes out
    span = latents_of(edit.text, edit.frames, clip, model.config.downsample)
    free = torch.zeros(NUM_CATEGORIES, clip.tokens.shape[1], dtype=torch.bool)
    free[:, span] = torch.from_numpy(_categories(edit.free_parts))[:, None]
    seen = _window(span, clip, generator.config.longest)
    tokens = clip.tokens.clone()
    tokens[:, seen] = generator.rewrite(edit.text, tokens[:, seen], free[:, seen], sampling=sampling, seed=seed)
    changed = tokens[:NUM_CATEGORIES] != clip.tokens[:NUM_CATEGORIES]
    touched = changed.any(dim=0)
    if without_residuals:
        tokens[NUM_CATEGORIES:, touched] = -1
    after = ClipTokens(clip.name, clip.frames, tokens)
    was, became = decoded(model, clip), decoded(model, after)
    before_shown, after_shown = shown_bins(model, was), shown_bins(model, became)
    held = touched & ~free
    return Retold(
        clip=after,
        before=was,
        after=became,
        free=int(free.sum()),
        changed=int(changed.sum()),
        followed=_share((after_shown == tokens[:NUM_CATEGORIES])[changed]),
        kept=_share((after_shown == before_shown)[held]),
    )


def _categories(parts: Sequence[str]) -> np.ndarray:
    return np.logical_or.reduce([part(name) for name in parts])


def _window(span: slice, clip: ClipTokens, longest: int) -> slice:
    """The latents about a span that a generator can see at once."""
    if span.stop - span.start > longest:
        raise UserError(
            f"the generator writes at most {longest} latents, and {span.stop - span.start} of clip {clip.name!r} are "
            "free to change: give a shorter span of frames"
        )
    latents = clip.tokens.shape[1]
    start = min(max((span.start + span.stop - longest) // 2, 0), max(latents - longest, 0))
    return slice(start, min(start + longest, latents))


def _share(hits: Tensor) -> float:
    return float(hits.float().mean()) if len(hits) else 1.0
