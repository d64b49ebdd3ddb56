"""The adversarial VQ-GAN on spatio-temporal heatmaps (2025, arXiv 2509.19252), and the dVAE that it is compared with.

The discriminator is needed in training only and is not part of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastvq import EMA, CodebookRules, GumbelSoftmax, KMeansInit, Learned, RelativeUsage, VectorQuantize
from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.nn.volume_autoencoder import VolumeDecoder, VolumeEncoder
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.saved_config import SavedConfig

HeatmapQuantizer = Literal["vq", "gumbel"]
CodebookUpdate = Literal["learned", "ema"]


@dataclass(frozen=True)
class HeatmapVQGANConfig(SavedConfig):
    """Sizes of a :class:`HeatmapVQGAN`; the defaults are those of the published F8 model with 1024 codes.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    in_channels: int = 3
    """Views of a heatmap: 3 of a volume, or one for each camera."""
    frames: int = 64
    """Frames of a window."""
    size: int = 128
    """Rows and columns of a view."""
    down_stages: int = 3
    """Halvings of frames, rows and columns: 3, 4 and 5 are the published F8, F16 and F32."""
    channels: tuple[int, ...] = (64, 64, 128, 128, 256)
    """Channels of each level of the encoder."""
    latent_channels: int = 256
    """Channels of a latent."""
    codebook_size: int = 1024
    """Codes; 128 to 1024 are published."""
    code_dim: int = 256
    """Channels of a code."""
    codebook_weight: float = 0.25
    """Weight of the loss that moves codes to latents; published with the commitment at 1 and this at 0.25."""
    quantizer: HeatmapQuantizer = "vq"
    """vq takes the nearest code; gumbel draws codes, as a discrete VAE does."""
    temperature: float = 1.0
    """Of the drawing of codes; only of gumbel."""
    codebook_update: CodebookUpdate = "learned"
    """learned, as published: codes begin between -1 / K and 1 / K, follow gradients, and are never replaced. ema, a
    deviation for short trainings: they begin at the means of the first batch's latents, follow moving averages, and
    unused ones are replaced."""
    attention_size: int = 16
    """Rows at which the encoder's levels have non-local blocks."""
    norm_groups: int = 32
    """Groups of the group normalisations."""

    kind = "heatmap-vqgan"

    def __post_init__(self) -> None:
        if not isinstance(self.channels, (tuple, list)):
            raise UserError(f"channels must name the channels of each level, got {self.channels!r}")
        object.__setattr__(self, "channels", tuple(self.channels))
        for name in ("in_channels", "frames", "size", "latent_channels", "codebook_size", "code_dim", "norm_groups"):
            check_integer(name, getattr(self, name), 1)
        if not self.channels:
            raise UserError("channels must name at least one level, got none")
        for width in self.channels:
            check_integer("channels", width, 1)
            if width % self.norm_groups:
                raise UserError(
                    f"channels must be multiples of norm_groups, got channels={self.channels} and "
                    f"norm_groups={self.norm_groups}: choose norm_groups that divide them"
                )
        check_integer("down_stages", self.down_stages, 1, len(self.channels))
        check_integer("attention_size", self.attention_size, 1)
        check_number("codebook_weight", self.codebook_weight, 0)
        check_number("temperature", self.temperature, 0, above=True)
        if self.quantizer not in get_args(HeatmapQuantizer):
            raise UserError(
                f"quantizer must be one of {', '.join(get_args(HeatmapQuantizer))}, got {self.quantizer!r}"
            )
        if self.codebook_update not in get_args(CodebookUpdate):
            raise UserError(
                f"codebook_update must be one of {', '.join(get_args(CodebookUpdate))}, got {self.codebook_update!r}"
            )
        if self.codebook_update != "learned" and self.quantizer == "gumbel":
            raise UserError("drawn codes learn by gradients: with quantizer gumbel, codebook_update must be learned")
        for name in ("frames", "size"):
            check_divisible(name, getattr(self, name), self.downsample)

    @property
    def downsample(self) -> int:
        """Frames, rows and columns of one token."""
        return 2**self.down_stages

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Tokens of a window along time, height and width."""
        return (self.frames // self.downsample, *(self.size // self.downsample,) * 2)

    @property
    def summary(self) -> str:
        """The model in a few words."""
        name = "VQ-GAN" if self.quantizer == "vq" else "discrete VAE"
        return f"heatmap {name} F{self.downsample} with {self.codebook_size} codes"


class HeatmapReconstruction(NamedTuple):
    """What :meth:`HeatmapVQGAN.forward` returns.

    Attributes:
        heatmaps: (B, C, T, H, W), not clipped.
        indices: (B, T', H', W') int64.
        loss: scalar, the quantizer's.
    """

    heatmaps: Tensor
    indices: Tensor
    loss: Tensor


class HeatmapVQGAN(nn.Module):
    """Heatmaps to tokens and back: a volumetric auto-encoder around a learned codebook.

    Heatmaps are (B, C, T, H, W), values in 0 to 1, as :class:`fastvq.models.heatmaps.format.HeatmapFormat` renders
    them; T, H and W are multiples of ``config.downsample``. Tokens are (B, T', H', W') int64. Latents stay
    channels-first: the quantizer reads them in place.

    The codes are parameters, drawn evenly from -1 / K to 1 / K, and never replaced, unless ``codebook_update`` says
    otherwise. As a discrete VAE, where the published comparison gives no details, the same model draws its codes with
    probability softmax(-distance^2 / temperature) in training, and latents and codes get their gradients through the
    relaxed draw alone; such codes begin normal, of length 1 or so.

    Args:
        config: sizes; those of the published model if absent.

    Parameters:
        those of encoder, decoder, and of the 1 x 1 x 1 convolutions ``to_codes`` and ``from_codes``;
        ``quantizer.codebooks.codebook``: (1, K, code_dim).

    Buffers:
        the other state of :class:`fastvq.Codebook`, under ``quantizer.codebooks.``.
    """

    config: HeatmapVQGANConfig

    def __init__(self, config: HeatmapVQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = HeatmapVQGANConfig() if config is None else config
        shape: dict[str, Any] = {"channels": config.channels, "norm_groups": config.norm_groups}
        self.encoder = VolumeEncoder(
            config.in_channels,
            config.latent_channels,
            down_stages=config.down_stages,
            size=config.size,
            attention_size=config.attention_size,
            **shape,
        )
        self.to_codes = nn.Conv3d(config.latent_channels, config.code_dim, 1)
        drawn = config.quantizer == "gumbel"
        self.quantizer = VectorQuantize(
            config.code_dim,
            config.codebook_size,
            rules=_rules(config),
            estimator=GumbelSoftmax(config.temperature) if drawn else None,
            commitment_weight=0.0 if drawn else 1.0,
            channel_dim=1,
        )
        if drawn:
            # Of length one, about. Nearly equal codes would be drawn evenly, and nothing tell the encoder otherwise.
            nn.init.normal_(self.quantizer.codebook, std=config.code_dim**-0.5)
        elif config.codebook_update == "learned":
            bound = 1 / config.codebook_size
            nn.init.uniform_(self.quantizer.codebook, -bound, bound)
        self.from_codes = nn.Conv3d(config.code_dim, config.latent_channels, 1)
        self.decoder = VolumeDecoder(
            config.latent_channels, config.in_channels, up_stages=config.down_stages, **shape
        )

    def set_checkpointing(self, on: bool) -> None:
        """Whether activations of the blocks are computed again in the backward pass: less memory, more time."""
        self.encoder.checkpointing = self.decoder.checkpointing = on

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, by whose gradients the adversarial loss is weighed."""
        return self.decoder.conv_out.weight

    def latents(self, heatmaps: Tensor) -> Tensor:
        """What is quantized: (B, C, T, H, W) -> (B, code_dim, T', H', W') float32 (float64 for float64)."""
        latents = self.to_codes(self.encoder(heatmaps))
        return latents if latents.dtype == torch.float64 else latents.float()

    def heatmaps(self, quantized: Tensor) -> Tensor:
        """The inverse of :meth:`latents`: (B, code_dim, T', H', W') -> (B, C, T, H, W)."""
        return self.decoder(self.from_codes(quantized))

    def forward(self, heatmaps: Tensor | np.ndarray) -> HeatmapReconstruction:
        """Encodes and decodes.

        Args:
            heatmaps: (B, C, T, H, W).

        Raises:
            UserError: another shape, sizes that the downsampling does not divide, or values that are not finite.
        """
        quantized, indices, loss = self.quantizer(self.latents(self._checked(heatmaps)))
        return HeatmapReconstruction(self.heatmaps(quantized), indices, loss)

    @torch.no_grad()
    def encode(self, heatmaps: Tensor | np.ndarray) -> Tensor:
        """Heatmaps (B, C, T, H, W) -> tokens (B, T', H', W') int64.

        Raises:
            UserError: as :meth:`forward`.
        """
        return self.quantizer.encode(self.latents(self._checked(heatmaps)))

    @torch.no_grad()
    def decode(self, tokens: Tensor | np.ndarray) -> Tensor:
        """Tokens (B, T', H', W') -> heatmaps (B, C, T, H, W), not clipped.

        Raises:
            UserError: another shape or type, or codes that the model does not have.
        """
        codes = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens))
        if codes.ndim != 4 or 0 in codes.shape or codes.is_floating_point() or codes.dtype == torch.bool:
            raise UserError(
                f"tokens must be integers (B, T', H', W') and not be empty, got {codes.dtype} {tuple(codes.shape)}"
            )
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.config.codebook_size:
            raise UserError(f"tokens must lie in 0 to {self.config.codebook_size - 1}, got {low} to {high}")
        weight = self.from_codes.weight
        return self.heatmaps(self.quantizer.decode(codes.long().to(weight.device)).to(weight.dtype))

    def _checked(self, heatmaps: Tensor | np.ndarray) -> Tensor:
        if not isinstance(heatmaps, (Tensor, np.ndarray)):
            raise UserError(f"heatmaps must be a tensor or a NumPy array, got {type(heatmaps).__name__}")
        values = heatmaps if isinstance(heatmaps, Tensor) else torch.from_numpy(np.ascontiguousarray(heatmaps))
        channels = self.config.in_channels
        if values.ndim != 5 or values.shape[1] != channels or 0 in values.shape:
            raise UserError(
                f"heatmaps must have the shape (B, {channels}, T, H, W) and not be empty, got {tuple(values.shape)}"
            )
        for name, length in zip(("frames", "rows", "columns"), values.shape[2:], strict=True):
            check_divisible(name, length, self.config.downsample)
        weight = self.to_codes.weight
        values = values.to(weight.device, weight.dtype)
        asked = values.device.type != "meta" and not torch.compiler.is_compiling()
        if asked and not bool(values.isfinite().all()):
            raise UserError("heatmaps must be finite, got NaN or infinity: render them again, or cut such frames out")
        return values

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: HeatmapVQGANConfig | None = None,
        key_map: pretrained.KeyMap | None = None,
        **hub: Any,
    ) -> Self:
        """Loads a folder, or a repository of the Hugging Face Hub, and sets the model to evaluation.

        Args:
            name_or_path: a folder with ``config.json`` and ``model.safetensors``, such as :meth:`save_pretrained` or
                training wrote, or a hub name.
            config: replaces the folder's ``config.json``.
            key_map: from the file's names to ours, as for
                :meth:`fastvq.models.tokenizers.tokenizer.MotionTokenizer.from_pretrained`.
            hub: of the hub's client, as for :func:`fastvq.models.tokenizers.pretrained.locate`.

        Raises:
            UserError: a file or tensor that is missing, damaged, or does not fit, naming it.
        """
        path = pretrained.locate(name_or_path, files=(pretrained.CONFIG,), **hub)
        if config is None:
            config = HeatmapVQGANConfig.from_dict(pretrained.read_config(path), str(path / pretrained.CONFIG))
        state, source = pretrained.read_weights(path)
        model = cls(config)
        model.load_weights(state, source, key_map)
        return model.eval()

    def load_weights(
        self, state: Mapping[str, Tensor], source: Path, key_map: pretrained.KeyMap | None = None
    ) -> None:
        """Loads weights and codes by name.

        Raises:
            UserError: names or shapes that do not fit.
        """
        state = pretrained.rename(state, key_map)
        pretrained.check_state(state, self.state_dict(), source)
        self.load_state_dict(state)

    def save_pretrained(self, save_directory: str | Path, *, extra_config: Mapping[str, Any] | None = None) -> None:
        """Writes ``config.json`` and ``model.safetensors``, each whole or not at all.

        Args:
            save_directory: made if need be; other files in it stay.
            extra_config: further keys for ``config.json``.

        Raises:
            UserError: the folder cannot be written, for instance because the disk is full.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot save a model to {folder}: it is a file; give a folder")
        with storage.replacing_files(folder) as staged:
            storage.write_tensors(staged / pretrained.SAFETENSORS, self.state_dict(), {"format": "pt"})
            values = {**self.config.to_dict(), **(extra_config or {})}
            (staged / pretrained.CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _rules(config: HeatmapVQGANConfig) -> CodebookRules:
    if config.codebook_update == "ema":
        return CodebookRules(update=EMA(), init=KMeansInit(), dead=RelativeUsage())
    weight = config.codebook_weight if config.quantizer == "vq" else 0.0
    return CodebookRules(update=Learned(weight), init=None, dead=None)


def check_divisible(name: str, length: int, downsample: int) -> None:
    """Raises a UserError unless ``length`` is a multiple of ``downsample``, above 0."""
    if length % downsample or not length:
        nearest = max(1, round(length / downsample)) * downsample
        raise UserError(
            f"{name} must be a multiple of the {downsample} that a token covers, got {length}: use {nearest}"
        )
