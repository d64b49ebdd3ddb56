"""The table of layouts. Whoever adds one adds lines here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..estimators import RotationTrick
from ..projected import ProjectedResidualVQ
from ..residual import GroupedResidualVQ, ResidualVQ
from ..rules import EMA, AbsoluteUsage, CodebookRules, FirstRowsInit, RelativeUsage
from ..sim_vq import ResidualSimVQ, SimVQ
from ..split import SplitResidualVQ
from ..vector_quantize import VectorQuantize
from .projected import LENGTHS, PARAMETRIZED, WHOLE, FrozenMap, Projected
from .statistics import Groups, Leaves, Single, Split, Stack
from .trees import Tree


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        name: by which users know it.
        prefix: where the published files have the quantizer.
        trees: its forms; a file has one of them.
        detected: whether files are known by their names alone.
    """

    name: str
    prefix: str
    trees: tuple[Tree, ...]
    detected: bool = True


# EnCodec's own expiry of codes is undone by the moving average in the same step, so that none is what it does.
ENCODEC_RULES = {"rules": CodebookRules(update=EMA(0.99), dead=None)}
MIMI_RULES = {"rules": CodebookRules(update=EMA(0.99, smoothing="none"), dead=RelativeUsage(0.1))}
RESET = CodebookRules(update=EMA(0.99, smoothing="none"), init=FirstRowsInit(), dead=AbsoluteUsage(1.0, reset=None))
PEER: dict[str, Any] = {
    "channel_dim": -1,
    "defaults": {"rules": CodebookRules(update=EMA(0.8), dead=None), "estimator": RotationTrick()},
}

ENCODEC = Leaves(codes="embed", sums="embed_avg", sizes="cluster_size", flag="inited")
MIMI = Leaves(
    codes=None,
    sums="embedding_sum",
    sizes="cluster_usage",
    flag="_initialized",
    older={
        "embedding_sum": ("embed_sum", "embed_avg"),
        "cluster_usage": ("cluster_size",),
        "_initialized": ("inited",),
    },
)
HF_MIMI = Leaves(codes=None, sums="embed_sum", sizes="cluster_usage", flag="initialized")
VQ_PYTORCH = Leaves(
    codes="embed",
    sums="embed_avg",
    sizes="cluster_size",
    flag="initted",
    flag_shape=(),
    flag_dtype=torch.bool,
    heads=True,
)
BARE = Leaves(codes="")


def _projected(spelling: tuple[str, ...], *, strided: bool = False) -> tuple[Tree, ...]:
    return (
        Projected(
            native=ProjectedResidualVQ,
            marks=(f"quantizers.{{q}}.in_proj.{spelling[0]}",),
            hints=("quantizers.{q}.codebook.weight",),
            spelling=spelling,
            strided=strided,
        ),
    )


# In the order in which a file is compared with them: what has the longer names comes first.
TABLE = (
    Layout(
        "mimi",
        "quantizer",
        (
            Split(
                native=SplitResidualVQ,
                marks=tuple(
                    f"rvq_first.vq.layers.{{q}}._codebook.{size}" for size in ("cluster_usage", "cluster_size")
                ),
                hints=("rvq_first.input_proj.weight",),
                parts=("rvq_first", "rvq_rest"),
                stem="vq.layers.{q}._codebook",
                leaves=MIMI,
                defaults=MIMI_RULES,
            ),
        ),
    ),
    Layout(
        "hf-mimi",
        "quantizer",
        (
            Split(
                native=SplitResidualVQ,
                marks=("semantic_residual_vector_quantizer.layers.{q}.codebook.cluster_usage",),
                hints=("semantic_residual_vector_quantizer.input_proj.weight",),
                parts=("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer"),
                stem="layers.{q}.codebook",
                leaves=HF_MIMI,
                defaults=MIMI_RULES,
            ),
        ),
    ),
    Layout(
        "encodec",
        "quantizer",
        (
            Stack(
                native=ResidualVQ,
                marks=("vq.layers.{q}._codebook.inited",),
                hints=("vq.layers.{q}._codebook.embed",),
                stem="vq.layers.{q}._codebook",
                leaves=ENCODEC,
                defaults=ENCODEC_RULES,
            ),
        ),
    ),
    Layout(
        "hf-encodec",
        "quantizer",
        (
            Stack(
                native=ResidualVQ,
                marks=("layers.{q}.codebook.inited",),
                hints=("layers.{q}.codebook.embed",),
                stem="layers.{q}.codebook",
                leaves=ENCODEC,
                defaults=ENCODEC_RULES,
            ),
        ),
    ),
    Layout("dac", "quantizer", _projected(LENGTHS)),
    Layout("snac", "quantizer", _projected(PARAMETRIZED, strided=True)),
    Layout("dac-parametrized", "quantizer", _projected(PARAMETRIZED), detected=False),
    Layout("hf-dac", "quantizer", _projected(WHOLE)),
    Layout(
        "vector-quantize-pytorch",
        "",
        (
            Groups(
                native=GroupedResidualVQ,
                marks=("rvqs.{g}.layers.{q}._codebook.embed",),
                stem="rvqs.{g}.layers.{q}._codebook",
                leaves=VQ_PYTORCH,
                mixed=True,
                shareable=True,
                **PEER,
            ),
            Stack(
                native=ResidualVQ,
                marks=("layers.{q}._codebook.embed",),
                stem="layers.{q}._codebook",
                leaves=VQ_PYTORCH,
                projections=True,
                mixed=True,
                shareable=True,
                **PEER,
            ),
            Single(
                native=VectorQuantize,
                marks=("_codebook.embed",),
                stem="_codebook",
                leaves=VQ_PYTORCH,
                projections=True,
                metrics=("l2", "cosine"),
                **PEER,
            ),
            FrozenMap(
                native=ResidualSimVQ,
                marks=("layers.{q}.frozen_codebook",),
                stem="layers.{q}",
                channel_dim=-1,
            ),
            FrozenMap(native=SimVQ, marks=("frozen_codebook",), channel_dim=-1),
        ),
    ),
    Layout(
        "momask",
        "quantizer",
        (
            Stack(
                native=ResidualVQ,
                marks=("layers.{q}.codebook",),
                stem="layers.{q}.codebook",
                leaves=BARE,
                shareable=True,
                defaults={"rules": RESET},
            ),
        ),
    ),
    Layout(
        "t2m-gpt",
        "vqvae.quantizer",
        (
            Single(
                native=VectorQuantize, marks=("codebook",), stem="codebook", leaves=BARE, defaults={"rules": RESET}
            ),
        ),
    ),
)
