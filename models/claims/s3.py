"""S3, the residual VQ-VAE of T2M-HiFiGPT (2023, arXiv 2312.10628): a residual stack against plain VQ."""

from __future__ import annotations

from fastvq.models.claims.study import Claim, Run, Study, View

STAGES = 8
# Of the paper's model, where its residual stack is compared with one code.
DEPTH = 6
PAPER = "T2M-HiFiGPT, arXiv 2312.10628"
NOT_AT_HAND = (
    "the paper's reconstruction table is not among our sources, so only the direction is tested, each time in three "
    "metrics; of these the joint error contains the heading, which the features hold as turning from frame to frame, "
    "so that its errors add up over a clip, and the others do not"
)
METRICS = {"mpjpe_mm": "joint error", "pa_mpjpe_mm": "pose error", "fid": "FID"}
_EVERY = (*range(1, STAGES), None)


def _run(name: str, halvings: int, stages: int) -> Run:
    return Run(
        name,
        "rvqvae",
        model={"down_stages": halvings, "stages": stages},
        streams=_EVERY if stages > 1 else (None,),
    )


def _claims(sentence: str, source: str, *order: View) -> list[Claim]:
    """The sentence in every metric."""
    why = NOT_AT_HAND if source == PAPER else ""
    return [Claim(f"{sentence}: {name}", source, order, metric, why=why) for metric, name in METRICS.items()]


VQ4 = View("vq_x4")

STUDY = Study(
    "s3",
    "S3: T2M-HiFiGPT's residual VQ-VAE",
    runs=(_run("vq_x4", 2, 1), _run("vq_x8", 3, 1), _run("rvq_x4", 2, STAGES), _run("rvq_x8", 3, STAGES)),
    equal=(
        "VQ and RVQ of one downsampling have the same auto-encoder, the same single codebook of 512 codes, the same "
        "windows in the same order, steps and loss, so that all that differs is how often the codebook is asked: "
        f"once or {STAGES} times for a latent, 9 or {9 * STAGES} bits. The first R of {STAGES} are measured of one "
        "model, which was trained with quantize-dropout for it. x8 has one more halving and residual stack on either "
        "side than x4."
    ),
    claims=(
        *_claims(
            f"A residual stack of {DEPTH} codes keeps motion better than one code of the same network, x4",
            PAPER,
            VQ4,
            View("rvq_x4", DEPTH),
        ),
        *_claims(
            f"A residual stack of {DEPTH} codes keeps motion better than one code of the same network, x8",
            PAPER,
            View("vq_x8"),
            View("rvq_x8", DEPTH),
        ),
        *_claims(
            f"Residual codes allow more downsampling: {DEPTH} codes at x8 keep motion better than one at x4",
            PAPER,
            VQ4,
            View("rvq_x8", DEPTH),
        ),
        *_claims(
            "At as many codes a second depth is worth more than time: 2 codes at x8 beat one at x4",
            "ours",
            VQ4,
            View("rvq_x8", 2),
        ),
        *_claims(
            f"Every further stage from 1 to {STAGES} keeps motion better, x4",
            PAPER,
            *(View("rvq_x4", streams) for streams in _EVERY),
        ),
        *_claims(
            f"Every further stage from 1 to {STAGES} keeps motion better, x8",
            PAPER,
            *(View("rvq_x8", streams) for streams in _EVERY),
        ),
    ),
)
