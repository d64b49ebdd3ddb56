"""The registry of tokenizers: everything that is looked up by a tokenizer's kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvq.models.errors import UserError
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import TokenizerConfig
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


def load_tokenizer(name_or_path: str | Path, **options: Any) -> MotionTokenizer:
    """A trained tokenizer of any kind, in evaluation mode.

    Args:
        name_or_path: a folder (also a run folder of the trainer), or a name on the Hugging Face Hub.
        options: as for :meth:`~fastvq.models.tokenizers.tokenizer.MotionTokenizer.from_pretrained`.

    Raises:
        UserError: files are missing or damaged, or the kind is none that this version knows.
    """
    hub = {name: value for name, value in options.items() if name not in ("key_map", "config")}
    folder = pretrained.locate(name_or_path, **hub)
    kind = MotionVQVAE.config_class.kind
    config = options.get("config")
    if config is not None:
        if not isinstance(config, TokenizerConfig):
            raise TypeError(f"config must be a TokenizerConfig, got {type(config).__name__}")
        kind = config.kind
    else:
        kind = pretrained.read_config(folder).get("kind", kind)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{folder / pretrained.CONFIG} is of the kind {kind!r}, and this version of fastvq knows "
            f"{', '.join(KINDS)}: use the version of fastvq that wrote it"
        )
    return KINDS[kind].tokenizer.from_pretrained(folder, **options)
