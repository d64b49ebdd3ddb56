"""Options that exclude one another, each with a sentence that names what to choose instead."""

from __future__ import annotations

from ... import validation as check


def check_options(
    *,
    learnable: bool,
    ema_update: bool,
    cosine: bool,
    straight_through: bool,
    rotation_trick: bool,
    directional: bool,
    threshold: float,
    bridge: bool,
    affine: bool,
    sync_update_v: float,
    active_only_of_heads: bool,
    optimizer_without_codes: bool,
) -> None:
    """Raises ValueError where two options of :class:`VectorQuantize` exclude one another."""
    check.unit_interval("sync_update_v", sync_update_v)
    refused = (
        (
            straight_through + rotation_trick + directional > 1,
            "straight_through, rotation_trick and directional_reparam exclude one another; pass rotation_trick=False "
            "with one of the others",
        ),
        (
            cosine and learnable,
            "use_cosine_sim excludes learnable_codebook (which directional_reparam and vq_bridge imply); pass "
            "learnable_codebook=False, and the codes follow moving averages",
        ),
        (cosine and affine, "use_cosine_sim excludes affine_param; leave one of them out"),
        (
            directional and threshold == 0,
            "directional_reparam needs threshold_ema_dead_code above 0: codes that no row takes get no gradient",
        ),
        (
            straight_through and learnable,
            "straight_through excludes learnable_codebook; pass straight_through=False and the codes get gradients",
        ),
        (learnable and ema_update, "learnable_codebook excludes moving averages; pass ema_update=False with it"),
        (bridge and not learnable, "vq_bridge learns the codes; pass learnable_codebook=True, or leave it out"),
        (
            sync_update_v > 0 and not learnable,
            "sync_update_v changes the gradient of learned codes; pass learnable_codebook=True and ema_update=False",
        ),
        (
            active_only_of_heads,
            "orthogonal_reg_active_codes_only needs one codebook for all heads: separate_codebook_per_head=False",
        ),
        (
            optimizer_without_codes,
            "in_place_codebook_optimizer needs codes that are parameters; pass learnable_codebook=True and "
            "ema_update=False",
        ),
    )
    for wrong, message in refused:
        if wrong:
            raise ValueError(message)
