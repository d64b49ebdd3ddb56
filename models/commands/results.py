"""An evaluation in plain words: the rows of the table that is printed and of the one in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastvq.models.rendering.axes import number_text
from fastvq.models.rendering.report import Metric
from fastvq.models.tokenizers.config import TokenizerConfig

# Characters.
LONGEST_NAME = 32
_SLICES = {
    "root_velocity": ("root velocity", "how fast the body moves over the ground"),
    "root_heading": ("heading", "which way the body faces"),
    "joint_position": ("joint positions", "where the joints are, relative to the body"),
    "joint_velocity": ("joint velocities", "how the joints move from frame to frame"),
    "joint_rotation": ("joint rotations", "how the limbs are turned"),
    "root_turn": ("turning", "how fast the body turns"),
    "root_height": ("height", "how high the body is above the floor"),
    "contact": ("contacts", "which feet stand"),
}


def uses(config: TokenizerConfig) -> str:
    """Whose use of codes perplexity and utilisation are."""
    return "the codebook over all stages" if config.pooled else f"a {config.stream}, mean over the {config.stream}s"


def metrics(evaluation: Mapping[str, Any], config: TokenizerConfig) -> list[Metric]:
    """The rows, most telling first.

    Args:
        evaluation: what :func:`fastvq.models.evaluation.evaluate.evaluate` returned.
        config: of the model.
    """
    counted = evaluation["latents"] * (config.streams - config.parsed if config.pooled else 1)
    whole = "the codebook" if config.pooled else f"a {config.stream}"
    speed = float(f"{evaluation['tokens_per_second']:.3g}")
    shuffled, mean = evaluation["mpjpe_shuffled_tokens_mm"], evaluation["mpjpe_mean_features_mm"]
    rows = [
        Metric(
            "Joint error (MPJPE)",
            f"{evaluation['mpjpe_mm']:.1f} mm",
            "Mean distance of a joint from its true place, pelvises moved together. For comparison: "
            f"{shuffled:.0f} mm with the same tokens in shuffled order, {mean:.0f} mm with the average pose.",
            headline=True,
        ),
    ]
    if "pose_codes_shown" in evaluation:
        rows.append(
            Metric(
                "Pose codes shown",
                f"{evaluation['pose_codes_shown']:.1%}",
                "Share of the pose codes that the decoded motion shows when it is read again.",
                headline=True,
            )
        )
    if "perplexity" in evaluation:
        rows += [
            Metric(
                "Perplexity",
                f"{evaluation['perplexity']:.0f} of {config.codebook_size}",
                f"How many codes are used evenly by {uses(config)}; at most {config.codebook_size}, and no more than "
                f"the {counted:,} tokens of {whole} that were counted.",
                headline=True,
            ),
            Metric(
                "Utilisation",
                f"{evaluation['utilisation']:.1%}",
                f"Share of the codes that occur at least once, counted for {uses(config)}.",
                headline=True,
            ),
        ]
    rows += [
        Metric(
            "Encoding speed",
            f"{number_text(speed)} tokens/s",
            f"Motion to tokens: {evaluation['frames'] / evaluation['encode_seconds']:,.0f} frames a second.",
            headline=True,
        ),
        Metric(
            "Acceleration error",
            f"{evaluation['accel_error_mm']:.2f} mm/frame²",
            "How much the reconstruction jitters or smooths; 0 moves exactly alike.",
        ),
        Metric(
            "Pose error (PA-MPJPE)",
            f"{evaluation['pa_mpjpe_mm']:.1f} mm",
            "Joint error after each frame was turned, moved and scaled to fit best.",
        ),
        Metric(
            "Foot skate",
            f"{evaluation['foot_skate']:.1%}",
            "Frames in which a foot slides over the floor (below 5 cm, above 0.5 m/s); "
            f"{evaluation['foot_skate_original']:.1%} in the original.",
        ),
        Metric(
            "Bone drift",
            f"{evaluation['bone_drift_mm']:.1f} mm",
            "Mean distance of a bone's length from what it is in the original.",
        ),
        Metric(
            "Reconstruction loss",
            number_text(evaluation["recon_smooth_l1"]),
            "Smooth-L1 over all features, each in units of its usual variation; smaller is better.",
        ),
    ]
    rows += [
        Metric(f"Loss of {_SLICES[name][0]}", number_text(value), f"The same for {_SLICES[name][1]}.")
        for name, value in evaluation["recon_per_slice"].items()
    ]
    if "perplexity_per_stage" in evaluation:
        each = zip(evaluation["perplexity_per_stage"], evaluation["utilisation_per_stage"], strict=True)
        rows += [
            Metric(f"Stage {stage}", f"{perplexity:.0f}, {share:.0%}", "Perplexity and utilisation of this stage.")
            for stage, (perplexity, share) in enumerate(each)
        ]
    if "fid" in evaluation:
        rows.append(
            Metric(
                evaluation["fid_name"],
                number_text(evaluation["fid"]),
                f"Fréchet distance of {evaluation['fid_dimensions']} embeddings over {evaluation['fid_windows']:,} "
                f"windows of {evaluation['fid_clips']} clips. It compares with others of this evaluator only, never "
                "with a paper's.",
            )
        )
    if "top1" in evaluation:
        rows.append(
            Metric(
                "Found by description",
                f"{evaluation['top1']:.1%}",
                "Windows that are nearest to their own description among 32 (R-precision, top 1, by the same "
                f"evaluator); {evaluation['original_top1']:.1%} of the original ones.",
            )
        )
    if "centroid_cosine" in evaluation:
        rows.append(
            Metric(
                "Likeness of the pose categories",
                f"{evaluation['centroid_cosine']:.3f}",
                "Mean |cosine| between the mean codes of two of the 70 categories; 0 where all are orthogonal. "
                f"{evaluation['centroid_centred_cosine']:.3f} after their common mean was subtracted.",
            )
        )
    rows.append(
        Metric(
            "Measured on",
            f"{evaluation['clips']} clips",
            f"{evaluation['frames']:,} frames, {evaluation['tokens']:,} tokens.",
        )
    )
    return rows


def print_table(rows: Sequence[Metric], console: Console, title: str) -> None:
    """The rows as a table."""
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    # A name wraps only where it is longer than any of our own, such as that of an FID with its evaluator's data.
    table.add_column("measure", max_width=LONGEST_NAME, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True, style="bold")
    table.add_column("what it says", style="dim")
    for row in rows:
        table.add_row(row.label, row.value, row.meaning)
    console.print(table, soft_wrap=False)
