"""The Fréchet distance between two sets of embeddings as Gaussians, the FID where an evaluator made them."""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr, svdvals

from fastvq.models.errors import UserError


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances (Dowson and Landau 1982).

    Fewer rows than dimensions make covariances singular, and of such a product ``scipy.linalg.sqrtm`` has no exact
    root; libraries for images add a constant to the diagonal. Here nothing is added: with A and B the centred rows
    over sqrt(N - 1), C = A^T A and C' = B^T B, the trace of the root is the sum of the singular values of A B^T,
    which exists for any rank, and is computed from the triangular factors of A and B.

    Args:
        first, second: (N, D) and (M, D), at least two rows each.

    Returns:
        The distance, 0 at least.

    Raises:
        UserError: fewer than two rows, different widths, or values that are not finite.
    """
    first, second = (np.asarray(rows, dtype=np.float64) for rows in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(f"embeddings must be (N, D) and (M, D), got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise UserError(
            f"a Fréchet distance needs two embeddings on each side, got {len(first)} and {len(second)}: give more "
            "motions, or shorter windows"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("embeddings must be finite: the motions or the evaluator hold numbers that are not")
    means = first.mean(axis=0), second.mean(axis=0)
    factors = [
        qr((rows - mean) / np.sqrt(len(rows) - 1), mode="r")[0][: rows.shape[1]]
        for rows, mean in zip((first, second), means, strict=True)
    ]
    spread = sum(float(np.square(factor).sum()) for factor in factors)
    shared = float(svdvals(factors[0] @ factors[1].T).sum())
    return max(0.0, float(np.square(means[0] - means[1]).sum()) + spread - 2 * shared)


def matching(motions: np.ndarray, texts: np.ndarray, captions: list[str], *, batch: int = 32, seed: int = 0) -> dict:
    """How often a motion's own description is among the nearest of ``batch``: R-precision of Guo et al. 2022.

    Args:
        motions, texts: (N, D) embeddings, a row of each belongs together.
        captions: (N); a motion's description counts as found where one of the same words is. Of descriptions
            equally near, which an evaluator that cannot tell them apart makes, the first put together counts first.
        batch: how many descriptions there are to choose from; what is left of N is not used.
        seed: of the order in which they are put together.

    Returns:
        top1, top2, top3: shares; empty where there are fewer than ``batch``.
    """
    order = np.random.default_rng(seed).permutation(len(motions))
    ranks = []
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        distances = np.linalg.norm(motions[chosen, None] - texts[None, chosen], axis=-1)
        words = np.array([captions[index] for index in chosen])
        own = np.where(words[:, None] == words[None], distances, np.inf)
        first, nearest = own.argmin(axis=1)[:, None], own.min(axis=1, keepdims=True)
        tied = (distances == nearest) & (np.arange(batch) < first)
        ranks.append(((distances < nearest) | tied).sum(axis=1))
    if not ranks:
        return {}
    found = np.concatenate(ranks)
    return {f"top{k}": float((found < k).mean()) for k in (1, 2, 3)}
