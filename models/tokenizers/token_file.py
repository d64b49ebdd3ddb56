"""Files of tokens: packed codes and a manifest that says what they are and which model wrote them.

A safetensors file with one tensor, ``codes`` (uint8): clip after clip, latent after latent, group after group, each
code in ceil(log2(K + 1)) bits, the lowest first, without gaps; K stands for a hole. Of residual tokenizers it holds
stage after stage in place of groups, each in the bits of its own K; pose codes come first, as stages like others.
Its metadata, JSON where not plain text: format, model_sha256, kind, K (one for each stage), groups, stages,
downsample, fps, and clips, a list of {name, frames, offset}. ``offset`` counts latents before the clip; it has
ceil(frames / downsample) of them.

Files of heatmaps' tokens have a format of their own (:mod:`fastvq.models.tokenizers.volume_token_file`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastvq.codes import pack_codes, unpack_codes
from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.files import check_readable, parse_json, replacing
from fastvq.models.tokenizers import checks
from fastvq.models.tokenizers.config import TokenizerConfig
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN
from fastvq.models.tokenizers.saved_config import SavedConfig
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

FORMAT = "fastvq-tokens/1"
# The same with volumes of codes in place of rows; models/tokenizers/volume_token_file.py says how.
VOLUME_FORMAT = "fastvq-tokens/2"
PLAIN = ("format", "model_sha256", "kind")


class ClipTokens(NamedTuple):
    """A clip in tokens.

    Attributes:
        name: of the clip.
        frames: how many the clip had; decoding crops to it.
        tokens: (streams, ceil(frames / downsample)) int64; -1 is a hole.
    """

    name: str
    frames: int
    tokens: Tensor


class HashedModel(Protocol):
    """What a hash of a model is taken over."""

    @property
    def config(self) -> SavedConfig:
        """Its settings."""

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name."""


def model_sha256(model: HashedModel) -> str:
    """A SHA-256 of all that decides a model's tokens: its settings, then its tensors in the order of their names.

    For every tensor its name, dtype, shape and bytes (row-major, little-endian) are hashed.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, separators=(",", ":")).encode())
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_tokens(path: Path, model: MotionTokenizer, clips: Iterable[tuple[str, int, Tensor]]) -> None:
    """Writes a token file, whole or not at all.

    Args:
        path: the file.
        model: the one that made the tokens.
        clips: (name, frames, tokens (streams, T')) of every clip; T' = ceil(frames / downsample).

    Raises:
        UserError: tokens that do not fit the model or their number of frames, a name that occurs twice, or a file
            that cannot be written.
    """
    config = model.config
    rows, manifest, offset = [], [], 0
    names: set[str] = set()
    for name, frames, tokens in clips:
        check_name(name, names)
        names.add(name)
        checked = checks.tokens(tokens, config.sizes).cpu()
        latents = -(-frames // config.downsample)
        if checked.shape[1:] != (1, latents):
            raise UserError(
                f"clip {name!r} of {frames} frames must have tokens of shape ({config.streams}, {latents}), "
                f"got {tuple(tokens.shape)}"
            )
        rows.append(checked[:, 0].t())
        manifest.append({"name": name, "frames": int(frames), "offset": offset})
        offset += latents
    if not rows:
        raise UserError(f"there are no clips to write to {path}")
    metadata = {
        "format": FORMAT,
        "model_sha256": model_sha256(model),
        "kind": config.kind,
        **{name: json.dumps(size) for name, size in _sizes(config).items()},
        "fps": json.dumps(config.fps),
        "clips": json.dumps(manifest),
    }
    codes = pack_codes(torch.cat(rows), config.sizes)
    with replacing(Path(path)) as partial:
        storage.write_tensors(partial, {"codes": codes}, metadata)


def check_name(name: str, taken: set[str]) -> None:
    """Raises a UserError unless a clip of that name can be written beside others."""
    if not _writable(name):
        raise UserError(f"the clip name {name!r} cannot be written: a name is text without a zero byte")
    if name in taken:
        raise UserError(f"two clips are called {name!r}: names in a token file must differ")


def read_manifest(path: Path) -> dict[str, Any]:
    """The metadata of a token file of either format, parsed; needs no model.

    Raises:
        UserError: no such file, no token file, a damaged one, or a format that this version does not read.
    """
    return read_codes(Path(path))[0]


def read_tokens(path: Path, model: MotionTokenizer) -> list[ClipTokens]:
    """Reads a token file.

    Args:
        path: the file.
        model: the one that wrote it.

    Raises:
        UserError: as :func:`read_manifest`, or another model wrote the file.
    """
    manifest, codes = read_codes(Path(path))
    config = model.config
    check_model(path, manifest, model, {"format": FORMAT, **_sizes(config)})
    latents = [-(-clip["frames"] // config.downsample) for clip in manifest["clips"]]
    try:
        rows = unpack_codes(codes, config.sizes, (sum(latents), config.streams))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return [
        ClipTokens(clip["name"], clip["frames"], rows[clip["offset"] : clip["offset"] + count].t().contiguous())
        for clip, count in zip(manifest["clips"], latents, strict=True)
    ]


def check_model(
    path: Path, manifest: Mapping[str, Any], model: MotionTokenizer | HeatmapVQGAN, sizes: Mapping[str, Any]
) -> None:
    """Raises a UserError unless a model wrote the file of that manifest, whose sizes are therefore the model's."""
    if manifest["model_sha256"] != model_sha256(model):
        several = "stages" if manifest["stages"] > 1 else "groups"
        least, most = min(manifest["K"]), max(manifest["K"])
        size = str(most) if least == most else f"{least} to {most}"
        what = f"{manifest[several]} {several} of {size} codes"
        if manifest["format"] == VOLUME_FORMAT:
            what = f"windows of {manifest['window']} frames and {size} codes"
        raise UserError(
            f"{path} was written by another model (a {manifest['kind']} with {what}, sha256 "
            f"{manifest['model_sha256'][:12]}): decode it with that one"
        )
    for name, wanted in sizes.items():
        if manifest[name] != wanted:
            raise UserError(f"{path} is damaged: its manifest has {name} = {manifest[name]}, and its model {wanted}")


def _sizes(config: TokenizerConfig) -> dict[str, Any]:
    """The entries of the manifest that a model decides."""
    groups, stages = config.token_shape
    return {
        "K": list(config.sizes[:stages]),
        "groups": groups,
        "stages": stages,
        "downsample": config.downsample,
    }


def read_codes(path: Path) -> tuple[dict[str, Any], Tensor]:
    """The parsed metadata of a token file of either format, and its packed codes.

    Raises:
        UserError: as :func:`read_manifest`.
    """
    if not path.is_file():
        raise UserError(f"there is no token file {path}")
    check_readable(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            written_as = metadata.get("format")
            if written_as not in (FORMAT, VOLUME_FORMAT):
                raise UserError(
                    f"{path} has the format {written_as!r}, and this version of fastvq reads {FORMAT!r} and "
                    f"{VOLUME_FORMAT!r}: "
                    "give a file that fastvq encode wrote, or use the version of fastvq that wrote this one"
                )
            codes = file.get_tensor("codes")
        manifest = {name: text if name in PLAIN else parse_json(text) for name, text in metadata.items()}
        _check_manifest(manifest)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a whole token file ({error})") from error
    return manifest, codes


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raises a ValueError unless every entry is there, of its type, and clips follow each other."""
    entries: dict[str, Callable[[Any], bool]] = {
        "model_sha256": _is_text,
        "kind": _is_text,
        "K": lambda value: isinstance(value, list) and bool(value) and all(map(_is_count, value)),
        "groups": _is_count,
        "stages": _is_count,
        "downsample": _is_count,
        "fps": lambda value: isinstance(value, (int, float)) and 0 < value < math.inf,
        "clips": lambda value: isinstance(value, list) and all(map(_is_clip, value)),
    }
    volumes = manifest["format"] == VOLUME_FORMAT
    if volumes:
        entries["grid"] = lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
        entries["window"] = lambda value: _is_count(value) and value % manifest["downsample"] == 0
    for name, valid in entries.items():
        if name not in manifest or not valid(manifest[name]):
            raise ValueError(f"the manifest has no valid {name}")
    offset, names = 0, set()
    for clip in manifest["clips"]:
        if clip["offset"] != offset or clip["name"] in names:
            raise ValueError(f"the manifest's entry of clip {clip['name']!r} does not follow the one before it")
        names.add(clip["name"])
        offset += latents_of(clip["frames"], manifest)


def latents_of(frames: int, manifest: Mapping[str, Any]) -> int:
    """Latents of a clip: of whole windows in files of volumes, else of as many frames as there are."""
    if manifest["format"] == VOLUME_FORMAT:
        return int(-(-frames // manifest["window"]) * (manifest["window"] // manifest["downsample"]))
    return int(-(-frames // manifest["downsample"]))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_clip(value: Any) -> bool:
    if not isinstance(value, dict) or not {"name", "frames", "offset"} <= set(value):
        return False
    return _writable(value["name"]) and _is_count(value["frames"]) and type(value["offset"]) is int


def _writable(name: Any) -> bool:
    """Whether archives and reports can hold the name of a clip: text, without halves of characters or zero bytes."""
    return isinstance(name, str) and "\0" not in name and name == name.encode("utf-8", "replace").decode()
