"""S0, residual VQ on pose codes (2025, arXiv 2508.14561): pose codes with residual codes against pose codes alone."""

from __future__ import annotations

from fastvq.models.claims.study import Claim, Run, Study, View
from fastvq.models.motion.pose_codes import NUM_CATEGORIES

PAPER = "arXiv 2508.14561"
ALONE, RVQ = View("pose_codes"), View("pose_rvq")
_STRIPPED, _ONE = View("pose_rvq", NUM_CATEGORIES), View("pose_rvq", NUM_CATEGORIES + 1)
_OFFICIAL = "on HumanML3D, by the official evaluator"


STUDY = Study(
    "s0",
    "S0: residual VQ on pose codes",
    runs=(
        Run("pose_codes", "pose-rvq", model={"stages": 0}),
        Run("pose_rvq", "pose-rvq", streams=(NUM_CATEGORIES, NUM_CATEGORIES + 1, None)),
    ),
    equal=(
        "Both runs have the same parser, pose codebook and decoder, the same windows in the same order, steps and "
        "loss; the pose codes alone are trained by themselves, without an encoder, which they do not need. Residual "
        "codes add 2 times 6 bits a latent. The first 70 and 71 tokens are measured of the model with residual codes."
    ),
    claims=(
        Claim(
            "Residual codes lower the FID of reconstruction",
            PAPER,
            (ALONE, RVQ),
            "fid",
            published=(0.041, 0.015),
            published_as=f"FID {_OFFICIAL}",
        ),
        Claim(
            "Residual codes keep descriptions as easily told",
            PAPER,
            (ALONE, RVQ),
            "top1",
            larger=True,
            published=(0.508, 0.510),
            published_as=f"R-precision Top-1 {_OFFICIAL}",
            why="the published difference, 0.002, is within the noise of an evaluator that is trained on so little",
        ),
        Claim("Residual codes keep frame features better", "ours", (ALONE, RVQ), "recon_smooth_l1"),
        Claim("Residual codes keep joints better", "ours", (ALONE, RVQ), "mpjpe_mm"),
        Claim("The second residual stage adds to the first", "ours", (_STRIPPED, _ONE, RVQ), "recon_smooth_l1"),
        Claim(
            "With residual codes, the decoded motion shows more of its own pose codes",
            "ours",
            (ALONE, RVQ),
            "pose_codes_shown",
            larger=True,
        ),
    ),
    metrics={"pose_codes_shown": "pose codes shown, share"},
)
