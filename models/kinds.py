"""The registry of tokenizers: everything that is looked up by a tokenizer's kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvq.models.errors import UserError
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import TokenizerConfig
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.pgr2m import PGR2MTokenizer
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.pgr2m import PGR2MTrainConfig
from fastvq.models.training.pose_residual_vqvae import PoseResidualTrainConfig
from fastvq.models.training.residual_vqvae import ResidualTrainConfig


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    Attributes:
        tokenizer: the model, which names its settings (``config_class``).
        training: the settings of its training, the loss among them; their defaults are its recipe.
        description: a few words for the command line.
    """

    tokenizer: type[MotionTokenizer]
    training: type[TrainConfig]
    description: str


KINDS: dict[str, Kind] = {
    kind.tokenizer.config_class.kind: kind
    for kind in (
        Kind(MotionVQVAE, TrainConfig, "the multi-group motion VQ-VAE"),
        Kind(ResidualVQVAE, ResidualTrainConfig, "the residual VQ-VAE of T2M-HiFiGPT"),
        Kind(PoseResidualVQVAE, PoseResidualTrainConfig, "readable pose codes with residual stages"),
        Kind(PGR2MTokenizer, PGR2MTrainConfig, "PGR2M: pose codes with residual stages by attention"),
    )
}


def kind_of(name_or_path: str | Path, **hub: Any) -> Any:
    """The kind of model that a folder holds, or a repository on the Hugging Face Hub; None where it does not say.

    Args:
        name_or_path: a folder, or "owner/name" on the hub.
        hub: as for :func:`fastvq.models.tokenizers.pretrained.locate`.

    Raises:
        UserError: ``config.json`` is missing or damaged.
    """
    folder = pretrained.locate(name_or_path, files=(pretrained.CONFIG,), weights=False, **hub)
    return pretrained.read_config(folder).get("kind")


def load_tokenizer(name_or_path: str | Path, **options: Any) -> MotionTokenizer:
    """A trained tokenizer of motions of any kind, in evaluation mode.

    Args:
        name_or_path: a folder (also a run folder of the trainer), or a name on the Hugging Face Hub.
        options: as for :meth:`~fastvq.models.tokenizers.tokenizer.MotionTokenizer.from_pretrained`.

    Raises:
        UserError: files are missing or damaged, or the kind is none that this version knows, or not one of motions.
    """
    hub = {name: value for name, value in options.items() if name not in ("key_map", "config")}
    config = options.get("config")
    if config is None:
        kind = kind_of(name_or_path, **hub)
        kind = MotionVQVAE.config_class.kind if kind is None else kind
    elif isinstance(config, TokenizerConfig):
        kind = config.kind
    else:
        raise TypeError(f"config must be a TokenizerConfig, got {type(config).__name__}")
    if kind == HeatmapVQGANConfig.kind:
        raise UserError(
            f"{name_or_path} is a tokenizer of heatmaps, and this needs one of motions: give one of the kinds "
            f"{', '.join(KINDS)}"
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{name_or_path} is of the kind {kind!r}, and this version of fastvq knows "
            f"{', '.join(KINDS)}: give one of these, or use the version of fastvq that wrote it"
        )
    return KINDS[kind].tokenizer.from_pretrained(name_or_path, **options)
