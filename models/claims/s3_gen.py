"""S3, the generator of T2M-HiFiGPT (2023, arXiv 2312.10628): corruption of the inputs, and guidance."""

from __future__ import annotations

from fastvq.models.claims.generator_study import GeneratorRun, GeneratorStudy, view
from fastvq.models.claims.study import Claim, Run, Study
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT
from fastvq.models.training.config import fastest_precision

# Of a public implementer's note on the paper's section 3.4, which has no other source here.
PAPER = "T2M-HiFiGPT, arXiv 2312.10628, at second hand"
SCALES = (0.0, 1.0, 2.0, 4.0, 6.0)
USUAL = DoubleTierGPT.usual_sampling.guidance
_ORDER = (view("none", USUAL), view("per_code", USUAL), view("per_time", USUAL))

STUDY = GeneratorStudy(
    "s3-gen",
    "S3: T2M-HiFiGPT's generator",
    tokenizer=Study(
        "s3-gen",
        "S3: the generator's tokenizer",
        # Eight frames a latent, as the paper has more downsampling than others, and few codes for few motions.
        runs=(Run("tokenizer", "rvqvae", {"down_stages": 3, "stages": 4, "codebook_size": 256, "depth": 2}),),
        claims=(),
        equal="",
    ),
    runs=(
        GeneratorRun("none", "hifigpt", {"corruption": "none"}, guidance=(USUAL,)),
        GeneratorRun("per_code", "hifigpt", {"corruption": "code"}, guidance=(USUAL,)),
        GeneratorRun("per_time", "hifigpt", {"corruption": "time"}, guidance=SCALES),
    ),
    equal=(
        "All runs have the same tokenizer, sizes, batches, steps and random draws; what differs is which codes of "
        "the inputs are replaced by random ones in training: none, half of all codes, or all codes of half of the "
        "moments. "
        "Guidance is set when generating, so that its values are measured of one model."
    ),
    claims=(
        Claim(
            "Corrupting codes beats no corruption, and whole moments beat single codes: FID",
            PAPER,
            _ORDER,
            "fid",
            published=(0.258, 0.149, 0.134),
            published_as="FID, HumanML3D",
        ),
        Claim(
            "Corrupting codes beats no corruption, and whole moments beat single codes: R-precision",
            PAPER,
            _ORDER,
            "top1",
            larger=True,
            published=(0.374, 0.476, 0.486),
            published_as="top 1, HumanML3D",
        ),
        Claim(
            "Corrupting codes beats no corruption, and whole moments beat single codes: MM-Dist",
            PAPER,
            _ORDER,
            "mm_dist",
            published=(3.846, 3.133, 3.077),
            published_as="MM-Dist, HumanML3D",
        ),
        Claim(
            f"Guidance makes motions follow their texts: scale {USUAL:g} beats the plain model, which beats no text",
            "ours",
            (view("per_time", 0.0), view("per_time", 1.0), view("per_time", USUAL)),
            "top1",
            larger=True,
        ),
        Claim(
            f"Guidance makes motions differ less: scale {USUAL:g} against the plain model",
            "ours",
            (view("per_time", 1.0), view("per_time", USUAL)),
            "multimodality",
        ),
    ),
    steps=600,
    model={"layers": 4, "depth_layers": 2, "heads": 4, "dropout": 0.0, "longest": 25},
    training={"batch_size": 32, "lr": 1e-3, "precision": fastest_precision()},
)
