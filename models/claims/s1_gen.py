"""S1, PGR2M's two transformers (2512.22464): the Base Transformer alone against Base and Refine Transformer."""

from __future__ import annotations

from fastvq.models.claims.generator_study import GeneratorRun, GeneratorStudy, view
from fastvq.models.claims.study import Claim, Run, Study
from fastvq.models.training.config import fastest_precision

PAPER = "PGR2M, arXiv 2512.22464"
NOT_AT_HAND = (
    "of the paper's tables only those of the whole system are among our sources, so that of base alone against base "
    "and refine the direction alone is tested"
)
BASE, REFINED = view("base"), view("base_refine")
SEEN = (("fid", "FID", False), ("top1", "R-precision", True), ("mm_dist", "MM-Dist", False))

STUDY = GeneratorStudy(
    "s1-gen",
    "S1: PGR2M's generators",
    tokenizer=Study(
        "s1-gen",
        "S1: the generators' tokenizer",
        runs=(Run("tokenizer", "pgr2m"),),
        claims=(),
        equal="",
    ),
    runs=(
        GeneratorRun("base", "pgr2m-base", {"end_weight": 20.0}),
        GeneratorRun("base_refine", "pgr2m-refine", training={"batch_size": 16}, base="base"),
    ),
    equal=(
        "Both have the same pose codes, written by the Base Transformer. Alone they are decoded without residual "
        "codes; refined they have the six residual codes that the Refine Transformer adds to each. In the Base "
        "Transformer's loss END counts 20 times, since so few steps do not teach it otherwise; keyword slots hold "
        "the first words of the text, since the paper's keywords cannot be had; codes are the likeliest ones, as "
        "in the paper, so that a text has one motion, and MultiModality is 0. For time the Refine Transformer "
        "learns from batches half as large."
    ),
    claims=(
        *(
            Claim(
                f"Residual codes make generated motions better: {name}",
                PAPER,
                (BASE, REFINED),
                metric,
                larger=larger,
                why=NOT_AT_HAND,
            )
            for metric, name, larger in SEEN
        ),
        *(
            Claim(
                f"Residual codes carry what poses do not tell: {what}",
                "ours",
                (BASE, REFINED),
                metric,
                larger=True,
                why="pose codes are those of a body that always faces ahead, and say nothing of where it goes",
            )
            for metric, what in (("direction", "where a body goes"), ("all", "all that was asked"))
        ),
    ),
    steps=400,
    dim=192,
    seeds=(0, 1),
    model={"layers": 4, "heads": 4, "dropout": 0.0, "keywords": "words"},
    training={"batch_size": 32, "lr": 1e-3, "drop_token": 0.0, "precision": fastest_precision()},
)
