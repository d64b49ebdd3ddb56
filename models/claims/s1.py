"""S1, PGR2M (2512.22464): residual dropout, attention against distance, and the entropy loss."""

from __future__ import annotations

from typing import Any

from fastvq.models.claims.study import Claim, Run, Study, View
from fastvq.models.motion.pose_codes import NUM_CATEGORIES

PAPER = "PGR2M, arXiv 2512.22464"
NOT_AT_HAND = (
    "of the paper's ablation only the chosen settings are among our sources, so the direction alone is tested"
)
PUBLISHED_START = "what the paper's ablation varies, we vary around attention that starts and keeps its codes our way"


def _run(name: str, **model: Any) -> Run:
    return Run(name, "pgr2m", model=model, streams=(NUM_CATEGORIES, None) if model.get("stages", 1) else (None,))


CHOSEN, ALONE = View("chosen"), View("pose_alone")
SEEN = (("mpjpe_mm", "joint error"), ("fid", "FID"))


def _better(sentence: str, worse: View, better: View) -> tuple[Claim, ...]:
    """A claim of the paper, for every metric by which it may be seen."""
    return tuple(
        Claim(f"{sentence}: {name}", PAPER, (worse, better), metric, why=NOT_AT_HAND) for metric, name in SEEN
    )


STUDY = Study(
    "s1",
    "S1: PGR2M's tokenizer",
    runs=(
        _run("pose_alone", stages=0),
        _run("chosen"),
        _run("tau_0", residual_dropout=0.0),
        _run("tau_0_5", residual_dropout=0.5),
        _run("distance", quantizer="distance"),
        _run("no_entropy", entropy_weight=0.0),
        _run("published_start", start="random", dead_below=0.0),
    ),
    equal=(
        "All runs have the same auto-encoder (pose codes alone have no encoder), windows in the same order, steps "
        "and loss; those with a residual have 6 stages of 512 codes. The chosen settings are the paper's: tau 0.1, "
        "attention, entropy weight 0.01 at temperature 0.01; attention begins at the nearest codes and replaces "
        "unused ones, which is ours, and the run published_start does neither. Distance is an EMA codebook with the "
        "same replacement of unused codes. What is measured of the first 70 codes is the pose codes of that model "
        "with the residual left out. The paper calls it a failure where a codebook's perplexity falls below 200 of "
        "512, or where an orthogonality of the categories that it does not define exceeds 0.03; here that is the "
        "mean absolute cosine of two categories' centroids."
    ),
    claims=(
        *_better("Residual codes keep more of a motion than pose codes alone", ALONE, CHOSEN),
        *_better("Residual dropout of 0.1 is better than none", View("tau_0"), CHOSEN),
        *_better("Residual dropout of 0.1 is better than 0.5", View("tau_0_5"), CHOSEN),
        Claim(
            "The more often the residual is dropped in training, the better pose codes decode without it",
            "ours",
            tuple(View(run, NUM_CATEGORIES) for run in ("tau_0", "chosen", "tau_0_5")),
            "mpjpe_mm",
        ),
        *_better("Attention is better than distance", View("distance"), CHOSEN),
        *_better("The entropy loss is worth having", View("no_entropy"), CHOSEN),
        Claim(
            "With the entropy loss codes are used more evenly",
            PAPER,
            (View("no_entropy"), CHOSEN),
            "train_perplexity",
            larger=True,
            why=PUBLISHED_START,
        ),
        Claim(
            "With residual dropout pose categories are less alike",
            "ours",
            (View("tau_0"), CHOSEN),
            "centroid_cosine",
        ),
        Claim(
            "Attention as published uses fewer of its codes than with our start and replacement",
            "ours",
            (View("published_start"), CHOSEN),
            "train_perplexity",
            larger=True,
        ),
    ),
    metrics={
        "centroid_cosine": "likeness of pose categories, mean absolute cosine",
        "centroid_centred_cosine": "the same after their mean was subtracted",
    },
)
