"""Files of heatmaps' tokens: as those of motions, with a volume of codes for each window of frames.

A clip is cut into windows of the model's length, the last of them continued with its last frame. The format is
``fastvq-tokens/2``, which differs from the first (:mod:`fastvq.models.tokenizers.token_file`) in this: a latent is a
plane of ``grid`` codes, row after row, of ``downsample`` frames; a clip has those of ceil(frames / window) whole
windows, which ``offset`` counts; and each entry of ``clips`` has ``placed``, for every window and view the middle of
the picture, column then row in metres as that view sees them, and how many pixels a metre takes, since every window
is fitted into its pictures by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvq.codes import pack_codes, unpack_codes
from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.files import replacing
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.tokenizers.token_file import (
    VOLUME_FORMAT,
    check_model,
    check_name,
    latents_of,
    model_sha256,
    read_codes,
)


class VolumeTokens(NamedTuple):
    """A clip of heatmaps in tokens.

    Attributes:
        name: of the clip.
        frames: how many the clip had; decoding crops to it.
        tokens: (windows, T', H', W') int64.
        placed: (windows, views, 3) float64: see :meth:`fastvq.models.heatmaps.format.HeatmapFormat.placement`.
    """

    name: str
    frames: int
    tokens: Tensor
    placed: Tensor


def write_volume_tokens(path: Path, model: HeatmapVQGAN, clips: Iterable[VolumeTokens], *, fps: float) -> None:
    """Writes a token file, whole or not at all.

    Args:
        path: the file.
        model: the one that made the tokens.
        clips: windows = ceil(frames / window) each.
        fps: of the clips.

    Raises:
        UserError: tokens that do not fit the model or their number of frames, a name that occurs twice, or a file
            that cannot be written.
    """
    config = model.config
    rows, manifest, offset = [], [], 0
    names: set[str] = set()
    for clip in clips:
        check_name(clip.name, names)
        names.add(clip.name)
        windows = -(-clip.frames // config.frames)
        shapes = ((windows, *config.token_shape), (windows, config.in_channels, 3))
        if (tuple(clip.tokens.shape), tuple(clip.placed.shape)) != shapes:
            raise UserError(
                f"clip {clip.name!r} of {clip.frames} frames must have tokens of shape {shapes[0]} and placements of "
                f"shape {shapes[1]}, got {tuple(clip.tokens.shape)} and {tuple(clip.placed.shape)}"
            )
        low, high = int(clip.tokens.min()), int(clip.tokens.max())
        if low < 0 or high >= config.codebook_size:
            raise UserError(f"tokens must lie in 0 to {config.codebook_size - 1}, got {low} to {high}")
        rows.append(clip.tokens.flatten(0, 1).flatten(1))
        # A tenth of a millimetre, and as little of a pixel.
        placed = clip.placed.double().round(decimals=4).tolist()
        manifest.append({"name": clip.name, "frames": int(clip.frames), "offset": offset, "placed": placed})
        offset += len(rows[-1])
    if not rows:
        raise UserError(f"there are no clips to write to {path}")
    metadata = {
        "format": VOLUME_FORMAT,
        "model_sha256": model_sha256(model),
        "kind": config.kind,
        **{name: json.dumps(size) for name, size in _sizes(config).items()},
        "fps": json.dumps(fps),
        "clips": json.dumps(manifest),
    }
    with replacing(Path(path)) as partial:
        storage.write_tensors(partial, {"codes": pack_codes(torch.cat(rows), config.codebook_size)}, metadata)


def read_volume_tokens(path: Path, model: HeatmapVQGAN) -> tuple[list[VolumeTokens], float]:
    """Reads a token file.

    Args:
        path: the file.
        model: the one that wrote it.

    Returns:
        The clips, and their frames per second.

    Raises:
        UserError: no such file, no token file, a damaged one, a format that this version does not read, or another
            model wrote it.
    """
    manifest, codes = read_codes(Path(path))
    config = model.config
    check_model(path, manifest, model, {"format": VOLUME_FORMAT, **_sizes(config)})
    clips = manifest["clips"]
    latents = [latents_of(clip["frames"], manifest) for clip in clips]
    try:
        rows = unpack_codes(codes, config.codebook_size, (sum(latents), *config.token_shape[1:]))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if bool((rows < 0).any()):
        raise UserError(f"{path} is damaged: it has holes, and heatmaps have none")
    found = []
    for clip, count in zip(clips, latents, strict=True):
        tokens = rows[clip["offset"] : clip["offset"] + count].unflatten(0, (-1, config.token_shape[0]))
        found.append(VolumeTokens(clip["name"], clip["frames"], tokens, _placed(clip, tokens, path, config)))
    return found, float(manifest["fps"])


def _placed(clip: dict[str, Any], tokens: Tensor, path: Path, config: HeatmapVQGANConfig) -> Tensor:
    try:
        placed = torch.tensor(clip.get("placed"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        placed = torch.empty(0)
    wanted = (len(tokens), config.in_channels, 3)
    if tuple(placed.shape) != wanted or not bool(placed.isfinite().all() & (placed[..., 2] > 0).all()):
        raise UserError(f"{path} is damaged: clip {clip['name']!r} does not say where its windows are placed")
    return placed


def _sizes(config: HeatmapVQGANConfig) -> dict[str, Any]:
    """The entries of the manifest that a model decides."""
    return {
        "K": [config.codebook_size],
        "groups": 1,
        "stages": 1,
        "downsample": config.downsample,
        "grid": list(config.token_shape[1:]),
        "window": config.frames,
    }
