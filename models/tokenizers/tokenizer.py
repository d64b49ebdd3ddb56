"""What all motion tokenizers share: features in, tokens out, and back; saved and loaded as a folder."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn
from typing_extensions import Self

from fastvq import Quantized
from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.nn.autoencoder import Decoder, Encoder
from fastvq.models.tokenizers import checks, pretrained
from fastvq.models.tokenizers.config import TokenizerConfig, check_integer
from fastvq.models.tokenizers.quantizer import Quantizer

Motion = Tensor | np.ndarray
STATISTICS = ("mean", "std")


class MotionTokenizer(nn.Module, ModelHubMixin):
    """Motion to tokens and back: a 1-D convolutional auto-encoder around a quantizer, which subclasses bring.

    Motions are (T, C) or (B, T, C), NumPy arrays or tensors, not normalised, C features (``config.input_dim``) at
    ``config.fps`` frames a second. A motion whose length is no multiple of ``config.downsample`` is continued with
    its last frame. Tokens are int64 tensors (S, B, ceil(T / downsample)), S = ``config.streams``; -1 marks padding.

    Args:
        config: sizes; those of the published model if absent.
        mean, std: (C,) statistics of the features; 0 and 1 if absent.

    Buffers:
        mean, std: (C,), what the features are normalised with.
        those of the quantizer's codebooks, under ``quantizer.codebooks.``.

    Raises:
        UserError: statistics of another shape.
    """

    config_class: ClassVar[type[TokenizerConfig]]

    config: TokenizerConfig
    encoder: Encoder | None
    quantizer: Quantizer | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: TokenizerConfig | None = None,
        *,
        mean: np.ndarray | Tensor | None = None,
        std: np.ndarray | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config = self.config_class() if config is None else config
        shape: dict[str, Any] = {
            "width": config.width,
            "depth": config.depth,
            "dilation_growth": config.dilation_growth,
            "activation": config.activation,
        }
        self.encoder = None
        if config.streams > config.parsed:
            self.encoder = Encoder(config.input_dim, config.output_dim, down_stages=config.down_stages, **shape)
        self.quantizer = self.make_quantizer()
        self.decoder = Decoder(config.output_dim, config.input_dim, up_stages=config.down_stages, **shape)
        self.register_buffer("mean", self._statistic("mean", mean, 0.0))
        self.register_buffer("std", self._statistic("std", std, 1.0))

    @abstractmethod
    def make_quantizer(self) -> Quantizer | None:
        """The quantizer that ``config`` describes, of all learned tokens of a latent; None where there are none."""

    def read_codes(self, features: Tensor) -> Tensor | None:
        """Codes that are read off the motion itself; None of tokenizers that learn all of theirs.

        Args:
            features: (B, T, C), not normalised, T a multiple of ``downsample``.

        Returns:
            (B, T', config.parsed) int64, on the device of the features.
        """
        return None

    def quantize(self, latents: Tensor | None, mask: Tensor | None = None, codes: Tensor | None = None) -> Quantized:
        """What the decoder gets in training and in :meth:`forward`.

        Args:
            latents: (B, T', D) of the encoder; None where there is none.
            mask: (B, T'), True where a latent is real; None where all are.
            codes: (B, T', config.parsed), as :meth:`read_codes` gives them.

        Returns:
            quantized (B, T', D), indices (B, T', streams), and the quantizer's weighted loss.
        """
        assert latents is not None
        assert self.quantizer is not None
        return self.quantizer(latents, mask)

    def _statistic(self, name: str, values: np.ndarray | Tensor | None, default: float) -> Tensor:
        width = self.config.input_dim
        if values is None:
            return torch.full((width,), default)
        statistic = torch.as_tensor(values, dtype=torch.float32).clone()
        if statistic.shape != (width,):
            raise UserError(f"{name} must have the shape ({width},), got {tuple(statistic.shape)}")
        return statistic

    def normalise(self, motion: Tensor) -> Tensor:
        """(motion - mean) / std over the last axis; a feature whose std is 0 is only centred."""
        return (motion - self.mean) / torch.where(self.std > 0, self.std, 1.0)

    def denormalise(self, motion: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`; a feature whose std is 0 becomes its mean."""
        return motion * self.std + self.mean

    @torch.no_grad()
    def encode(self, motion: Motion) -> Tensor:
        """Motion to tokens.

        Args:
            motion: (T, C) or (B, T, C), T >= 4.

        Returns:
            (S, B, ceil(T / downsample)) int64.

        Raises:
            UserError: another shape, fewer than 4 frames, or values that are not finite.
        """
        return self._tokens(self._padded(self._checked(motion)), None)

    @torch.no_grad()
    def decode(self, tokens: Tensor | np.ndarray) -> Tensor:
        """Tokens to motion.

        Args:
            tokens: (S, B, T') or (S, T') integers; -1 is a hole.

        Returns:
            (B, T' * downsample, C), denormalised; zeros where a sequence has ended.

        Raises:
            UserError: another shape, or codes that this model does not have.
        """
        tokens = self._checked_tokens(tokens)
        mask = self._token_mask(tokens)
        motion = self.denormalise(self._features(tokens, mask))
        if mask is None:
            return motion
        return motion.masked_fill(~mask.repeat_interleave(self.config.downsample, dim=1).unsqueeze(-1), 0.0)

    def forward(self, motion: Motion) -> tuple[Tensor, Tensor]:
        """Encodes and decodes; in training mode the codebooks learn from it.

        Gradients are recorded in training mode, and in evaluation mode where ``motion`` asks for them.

        Args:
            motion: (T, C) or (B, T, C), T >= 4.

        Returns:
            The reconstruction (B, T, C), denormalised, and tokens (S, B, ceil(T / downsample)).

        Raises:
            UserError: as :meth:`encode`.
        """
        wanted = self.training or (isinstance(motion, Tensor) and motion.requires_grad)
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            features = self._checked(motion)
            padded = self._padded(features)
            latents = None if self.encoder is None else self.encoder(self.normalise(padded))
            quantized, indices, _ = self.quantize(latents, None, self.read_codes(padded))
            decoded = self.denormalise(self.decoder(quantized))
            return decoded[:, : features.shape[1]], indices.permute(2, 0, 1)

    @torch.no_grad()
    def encode_batch(self, motions: Sequence[Motion], *, batch_size: int = 16) -> Tensor:
        """Motions of different lengths to tokens; each gets the tokens that it gets alone.

        Args:
            motions: (T_i, C) each, T_i >= 4.
            batch_size: how many are encoded at once.

        Returns:
            (S, B, longest T') int64; -1 beyond the end of a motion.

        Raises:
            UserError: no motions, or one that :meth:`encode` refuses, saying which.
        """
        if not len(motions):
            raise UserError("motions must hold at least one motion, got none")
        check_integer("batch_size", batch_size, 1)
        checked = [self._checked(motion, f"motions[{index}]", axes=(2,))[0] for index, motion in enumerate(motions)]
        lengths = [-(-len(motion) // self.config.downsample) for motion in checked]
        tokens = torch.full((self.config.streams, len(checked), max(lengths)), -1, device=self.mean.device)
        order = sorted(range(len(checked)), key=lambda index: lengths[index])
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            features, mask = self.collate([checked[index] for index in chosen])
            found = self._tokens(features, mask)
            tokens[:, torch.tensor(chosen, device=tokens.device), : found.shape[2]] = found
        return tokens

    @torch.no_grad()
    def decode_batch(
        self, tokens: Tensor | np.ndarray, lengths: Sequence[int] | None = None, *, batch_size: int = 16
    ) -> list[Tensor]:
        """The inverse of :meth:`encode_batch`.

        Args:
            tokens: (S, B, T') integers; -1 beyond the end of a motion.
            lengths: frames of each motion; without them a motion has ``downsample`` frames for each of its tokens.
            batch_size: how many are decoded at once.

        Returns:
            (T_i, C) each, denormalised.

        Raises:
            UserError: as :meth:`decode`, or lengths that the tokens do not cover.
        """
        check_integer("batch_size", batch_size, 1)
        tokens = self._checked_tokens(tokens)
        counts = checks.token_lengths(tokens).tolist()
        frames = [count * self.config.downsample for count in counts]
        if lengths is not None:
            if len(lengths) != len(frames):
                raise UserError(f"lengths must hold {len(frames)} numbers, one for each motion, got {len(lengths)}")
            for index, (wanted, held) in enumerate(zip(lengths, frames, strict=True)):
                if not 0 <= wanted <= held:
                    raise UserError(f"lengths[{index}] must lie in 0 to {held}, which its tokens cover, got {wanted}")
            frames = [int(length) for length in lengths]
        order = sorted(range(len(frames)), key=lambda index: counts[index])
        motions: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            part = tokens[:, torch.tensor(chosen, device=tokens.device), : max(counts[chosen[-1]], 1)]
            for index, motion in zip(chosen, self.decode(part), strict=True):
                motions[index] = motion[: frames[index]].clone()
        return [motions[index] for index in range(len(frames))]

    @abstractmethod
    def get_codebook_embeddings(self) -> Tensor:
        """The learned codes, (learned streams, codebook_size, code_dim); a copy."""

    def collate(self, motions: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Pads motions to one batch.

        Args:
            motions: (T_i, C) tensors.

        Returns:
            (B, T, C), each continued with its last frame to a multiple of ``downsample``, then with zeros; and
            the mask (B, T), True up to there, or None where all are equally long.
        """
        padded = [self._padded(motion.unsqueeze(0))[0] for motion in motions]
        lengths = torch.tensor([len(motion) for motion in padded], device=padded[0].device)
        batch = nn.utils.rnn.pad_sequence(padded, batch_first=True)
        mask = torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]
        return batch, None if bool((lengths == batch.shape[1]).all()) else mask

    def _tokens(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C) features, T a multiple of downsample -> (S, B, T') tokens."""
        latents = None if self.encoder is None else self.encoder(self.normalise(features), mask)
        mask = None if mask is None else mask[:, :: self.config.downsample]
        return self._search(latents, mask, self.read_codes(features)).permute(2, 0, 1).contiguous()

    def _search(self, latents: Tensor | None, mask: Tensor | None, codes: Tensor | None) -> Tensor:
        """As :meth:`quantize` -> (B, T', S) tokens; -1 where masked."""
        assert latents is not None
        assert self.quantizer is not None
        return self.quantizer.encode(latents, mask)

    def _features(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(S, B, T') tokens -> (B, T, C) normalised features."""
        latents = self._lookup(tokens.permute(1, 2, 0).contiguous())
        return self.decoder(latents.to(self.decoder.conv_in.weight.dtype), mask)

    def _lookup(self, tokens: Tensor) -> Tensor:
        """(B, T', S) tokens -> (B, T', D) latents."""
        assert self.quantizer is not None
        return self.quantizer.decode(tokens)

    def _padded(self, features: Tensor) -> Tensor:
        """(B, T, C) continued with the last frame to a multiple of ``downsample`` frames."""
        missing = -features.shape[1] % self.config.downsample
        return torch.cat([features, features[:, -1:].expand(-1, missing, -1)], dim=1) if missing else features

    def _token_mask(self, tokens: Tensor) -> Tensor | None:
        """(B, T'), True before the end of each sequence; None where all are equally long."""
        lengths = checks.token_lengths(tokens)
        if bool((lengths == tokens.shape[2]).all()):
            return None
        return torch.arange(tokens.shape[2], device=tokens.device) < lengths[:, None]

    def _checked(self, motion: Motion, name: str = "motion", axes: tuple[int, ...] = (2, 3)) -> Tensor:
        weight = self.decoder.conv_in.weight
        return checks.motion(motion, self.config.input_dim, name, axes, weight.dtype).to(weight.device)

    def _checked_tokens(self, tokens: Tensor | np.ndarray) -> Tensor:
        return checks.tokens(tokens, self.config.sizes).to(self.mean.device)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's catch-all keywords are spelt out
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        key_map: pretrained.KeyMap | None = None,
        config: TokenizerConfig | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Loads a folder, or a repository of the Hugging Face Hub, and sets the model to evaluation.

        The folder holds ``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, ``mean.npy``, ``std.npy``.
        Weights without codebook statistics (``embed_sum``, ``cluster_size``) start them afresh from the codebook.

        Args:
            pretrained_model_name_or_path: a folder (also a run folder of the trainer), or a hub name.
            key_map: where the file's names differ from ours: a dict from theirs to ours, or a function that gives
                ours, or None to leave a tensor out. A tensor for each group is welcome as
                ``quantizer.codebooks.codebook.<group>``.
            config: replaces the folder's ``config.json``.
            revision, cache_dir, token, local_files_only, force_download: of the hub's client.

        Raises:
            UserError: a file or tensor that is missing, damaged, unsafe, or does not fit, naming it.
        """
        folder = pretrained.locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if config is None:
            config = cls.config_class.from_dict(pretrained.read_config(folder), str(folder / pretrained.CONFIG))
        mean, std = pretrained.read_statistics(folder, config.input_dim)
        state, source = pretrained.read_weights(folder)
        model = cls(config, mean=mean, std=std)
        model.load_weights(state, source, key_map)
        return model.eval()

    def load_weights(
        self, state: Mapping[str, Tensor], source: Path, key_map: pretrained.KeyMap | None = None
    ) -> None:
        """Loads weights and codebooks by name; mean and std stay as they are.

        Raises:
            UserError: names or shapes that do not fit.
        """
        books = "quantizer.codebooks"
        state = pretrained.stack_groups(pretrained.rename(state, key_map), books, self.config.token_shape[0])
        codes = state.get(f"{books}.codebook")
        if codes is not None:
            state.setdefault(f"{books}.embed_sum", codes)
            state.setdefault(f"{books}.cluster_size", torch.ones(codes.shape[:-1]))
            state.setdefault(f"{books}.initted", torch.tensor(True))
        own = self.state_dict()
        for name in STATISTICS:
            state[name] = own[name]
        pretrained.check_state(state, own, source)
        self.load_state_dict(state)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        extra_config: Mapping[str, Any] | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config: Any = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes ``config.json``, ``model.safetensors``, ``mean.npy`` and ``std.npy``, each whole or not at all.

        Args:
            save_directory: made if need be; other files in it stay.
            extra_config: further keys for ``config.json``.
            repo_id, push_to_hub, push_to_hub_kwargs: of ``huggingface_hub.ModelHubMixin.push_to_hub``.
            config, model_card_kwargs: accepted for that mixin's sake and not used.

        Returns:
            The address of the commit on the hub, if pushed.

        Raises:
            UserError: the folder cannot be written, for instance because the disk is full.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot save a model to {folder}: it is a file; give a folder")
        with storage.replacing_files(folder) as staged:
            state = {name: tensor for name, tensor in self.state_dict().items() if name not in STATISTICS}
            storage.write_tensors(staged / pretrained.SAFETENSORS, state, {"format": "pt"})
            values = {**self.config.to_dict(), **(extra_config or {})}
            (staged / pretrained.CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            np.save(staged / pretrained.MEAN, self.mean.float().cpu().numpy())
            np.save(staged / pretrained.STD, self.std.float().cpu().numpy())
        if push_to_hub:
            return self.push_to_hub(repo_id=repo_id or folder.name, **push_to_hub_kwargs)
        return None
