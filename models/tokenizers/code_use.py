"""How a tokenizer uses its learned codes, from counts of them: pooled over the stages that share a codebook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvq import metrics
from fastvq.models.tokenizers.config import TokenizerConfig


def count_codes(indices: Tensor, config: TokenizerConfig) -> Tensor:
    """How often each learned code occurs; codes that are read off the motion are not counted.

    Args:
        indices: (..., streams) tokens; -1 is not counted.
        config: of the model.

    Returns:
        (learned streams, K) int64.
    """
    if config.streams == config.parsed:
        return torch.zeros(0, config.codebook_size, dtype=torch.int64, device=indices.device)
    return metrics.code_counts(indices[..., config.parsed :], config.codebook_size)


def code_use(counts: Tensor, config: TokenizerConfig, *, each: bool = True) -> dict[str, Any]:
    """Perplexity and utilisation as reports hold them.

    Args:
        counts: (learned streams, K), how often each code of each group or stage occurred.
        config: of the model.
        each: name every group or stage too.

    Returns:
        perplexity, utilisation: means over the codebooks; a codebook that stages share is counted over all of them.
        perplexity_per_<stream>, utilisation_per_<stream>: of each group or stage by itself.
        Nothing at all of a model without learned codes, or where none was taken.
    """
    if not counts.any():
        return {}
    books = counts.sum(dim=0, keepdim=True) if config.pooled else counts
    use: dict[str, Any] = {
        "perplexity": float(metrics.perplexity(books).mean()),
        "utilisation": float(metrics.utilisation(books).mean()),
    }
    if each:
        use[f"perplexity_per_{config.stream}"] = metrics.perplexity(counts).tolist()
        use[f"utilisation_per_{config.stream}"] = metrics.utilisation(counts).tolist()
    return use
