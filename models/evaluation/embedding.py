"""How motions differ as an evaluator sees them: the FID, and how well descriptions still find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import UNIT, MotionTextEvaluator
from fastvq.models.evaluation.frechet import frechet_distance, matching


def embedding_metrics(
    evaluator: MotionTextEvaluator,
    originals: Sequence[np.ndarray],
    decoded: Sequence[np.ndarray],
    texts: Sequence[str],
) -> dict[str, Any]:
    """Compares motions with what became of them.

    Args:
        evaluator: its windows are what is compared; clips shorter than one are left out.
        originals, decoded: (T_i, C) features each, not normalised.
        texts: their descriptions; "" where there is none.

    Returns:
        fid: Fréchet distance of the windows' embeddings, decoded against original.
        fid_name: what it must be called.
        fid_windows, fid_clips: how many windows of how many clips; windows overlap, so they are not independent, and
            fewer than ``fid_dimensions`` of them make covariances singular (see ``frechet_distance``).
        fid_dimensions: of the embeddings.
        top1, top2, top3: shares of decoded windows whose own description is among the nearest of 32, and
            ``original_top1``, ... of the original ones; absent where the evaluator embeds no descriptions, and where
            fewer than 32 windows have one.

    Raises:
        UserError: features of another width, or fewer than two windows.
    """
    for width in {motion.shape[1] for motion in (*originals, *decoded)}:
        check_takes(evaluator, width)
    pairs = [
        (index, window, other)
        for index, (clip, motion) in enumerate(zip(originals, decoded, strict=True))
        for window, other in zip(evaluator.windows(clip), evaluator.windows(motion), strict=True)
    ]
    if len(pairs) < 2:
        frames = evaluator.config.window or UNIT
        raise UserError(
            f"an FID needs two windows of {frames} frames, and the clips have {len(pairs)}: give more or longer ones"
        )
    owners = [index for index, _, _ in pairs]
    before = evaluator.embed_motions([window for _, window, _ in pairs])
    after = evaluator.embed_motions([window for _, _, window in pairs])
    return {
        "fid": frechet_distance(after, before),
        "fid_name": evaluator.name,
        "fid_windows": len(pairs),
        "fid_clips": len(set(owners)),
        "fid_dimensions": evaluator.config.embedding_dim,
        **_found(evaluator, before, after, [texts[index] for index in owners]),
    }


def check_takes(evaluator: MotionTextEvaluator, width: int) -> None:
    """Raises a UserError unless the evaluator takes features of a model's width."""
    if evaluator.config.input_dim != width:
        raise UserError(
            f"the evaluator ({evaluator.label}) takes {evaluator.config.input_dim} features and the model has "
            f"{width}: train one on the model's with fastvq train-evaluator --input-dim"
        )


def _found(
    evaluator: MotionTextEvaluator, before: np.ndarray, after: np.ndarray, texts: Sequence[str]
) -> dict[str, float]:
    kept = np.array([bool(text.strip()) for text in texts])
    captions = [text for text in texts if text.strip()]
    if evaluator.words is None or not captions:
        return {}
    rows, embedded = list(dict.fromkeys(captions)), {}
    for text, row in zip(rows, evaluator.embed_texts(rows), strict=True):
        embedded[text] = row
    described = np.stack([embedded[text] for text in captions])
    original = matching(before[kept], described, captions)
    return {
        **matching(after[kept], described, captions),
        **{f"original_{name}": share for name, share in original.items()},
    }
