"""S3, the residual VQ-VAE of T2M-HiFiGPT (2023, arXiv 2312.10628): a residual stack against plain VQ."""

from __future__ import annotations

from fastvq.models.claims.study import Claim, Run, Study, View

STAGES = 8
PAPER = "T2M-HiFiGPT, arXiv 2312.10628"
NOT_AT_HAND = "the paper's reconstruction table is not among our sources, so only the direction is tested"
_EVERY = (*range(1, STAGES), None)


def _run(name: str, halvings: int, stages: int) -> Run:
    return Run(
        name,
        "rvqvae",
        model={"down_stages": halvings, "stages": stages},
        streams=_EVERY if stages > 1 else (None,),
    )


VQ4, VQ8 = View("vq_x4"), View("vq_x8")


def _better(sentence: str, source: str, worse: View, better: View, metric: str) -> Claim:
    return Claim(sentence, source, (worse, better), metric, why=NOT_AT_HAND if source == PAPER else "")


STUDY = Study(
    "s3",
    "S3: T2M-HiFiGPT's residual VQ-VAE",
    runs=(_run("vq_x4", 2, 1), _run("vq_x8", 3, 1), _run("rvq_x4", 2, STAGES), _run("rvq_x8", 3, STAGES)),
    equal=(
        "VQ and RVQ of one downsampling have the same auto-encoder, the same single codebook of 512 codes, the same "
        "windows in the same order, steps and loss, so that all that differs is how often the codebook is asked: "
        "once or 8 times for a latent, 9 or 72 bits. The first R of 8 are measured of one model, which was trained "
        "with quantize-dropout for it. x8 has one more halving and residual stack on either side than x4."
    ),
    claims=(
        _better(
            "A residual stack of 6 codes keeps joints better than one code of the same network (x4)",
            *(PAPER, VQ4, View("rvq_x4", 6), "mpjpe_mm"),
        ),
        _better(
            "The same for frame features (x4)",
            *(PAPER, VQ4, View("rvq_x4", 6), "recon_smooth_l1"),
        ),
        _better(
            "The same for the FID (x4)",
            *(PAPER, VQ4, View("rvq_x4", 6), "fid"),
        ),
        _better(
            "With residual codes motion can be downsampled more: 6 codes at x8 keep joints better than one at x4",
            *(PAPER, VQ4, View("rvq_x8", 6), "mpjpe_mm"),
        ),
        _better(
            "At an equal number of tokens per second depth pays like time: 2 codes at x8 beat one code at x4",
            *("ours", VQ4, View("rvq_x8", 2), "mpjpe_mm"),
        ),
        *(
            Claim(
                f"Every further stage from 1 to {STAGES} lowers the {name} at x{factor}",
                PAPER,
                tuple(View(f"rvq_x{factor}", streams) for streams in _EVERY),
                metric,
                why=NOT_AT_HAND,
            )
            for factor in (4, 8)
            for metric, name in (("mpjpe_mm", "joint error"), ("fid", "FID"))
        ),
    ),
)
