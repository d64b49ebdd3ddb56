"""PGR2M's Refine Transformer (2512.22464): the residual codes of a motion whose pose codes are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from fastvq.models.errors import UserError
from fastvq.models.generators import pose_vectors
from fastvq.models.generators.base_transformer import (
    GREEDY,
    PREFIX,
    BaseTransformer,
    check_has_pose_codes,
    positions,
)
from fastvq.models.generators.generator import GeneratorConfig, GeneratorLosses, MotionGenerator, TokenBatch
from fastvq.models.generators.pose_vectors import WIDTH
from fastvq.models.generators.sampling import Sampling, draw, uniforms
from fastvq.models.generators.text import TextEncoder, TextFeatures
from fastvq.models.generators.text_prefix import Keywords, TextPrefix, check_keywords
from fastvq.models.generators.transformer import INIT_STD, Transformer, init_weights
from fastvq.models.motion.pose_codes import NUM_CATEGORIES
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.pose_codes import POSE_SIZES
from fastvq.models.tokenizers.token_file import model_sha256
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

BASE = "base"  # the folder in a run folder that holds the Base Transformer
_MASK_AND_PAD = 2


@dataclass(frozen=True)
class RefineTransformerConfig(GeneratorConfig):
    """Sizes of a :class:`RefineTransformer`; the defaults are the published ones.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    sizes: tuple[int, ...] = (*POSE_SIZES, *[512] * 6)
    """Codes of each stream of the tokenizer."""
    dim: int = 1024
    """Channels, those of the Base Transformer, whose pose embedding is taken over."""
    layers: int = 6
    """Blocks."""
    heads: int = 8
    """Heads of the attention."""
    dropout: float = 0.2
    """In the blocks."""
    keywords: Keywords = "none"
    """What the eleven keyword slots get: nothing, or the first words of the text."""
    base_sha256: str = ""
    """The Base Transformer, its weights included."""

    kind = "pgr2m-refine"
    FITTED = (*GeneratorConfig.FITTED, "text_encoder", "dim", "longest", "base_sha256")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "layers", "heads"):
            check_integer(name, getattr(self, name), 1)
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"dim must be even and a multiple of heads, got dim={self.dim} and heads={self.heads}")
        check_number("dropout", self.dropout, 0, 1)
        check_keywords(self.keywords)
        stages = self.sizes[NUM_CATEGORIES:]
        if self.sizes[:NUM_CATEGORIES] != POSE_SIZES or not stages or len(set(stages)) > 1:
            raise UserError(
                f"sizes must be those of the {NUM_CATEGORIES} categories of pose codes, then that of each residual "
                f"stage, all equal, got {self.sizes[NUM_CATEGORIES:]} behind the first {NUM_CATEGORIES}"
            )

    @property
    def reads_tokens(self) -> bool:
        return self.keywords == "words"

    def check_fits(self, tokenizer: MotionTokenizer) -> None:
        check_has_pose_codes(tokenizer, self.kind)
        if len(tokenizer.config.sizes) == NUM_CATEGORIES:
            raise UserError(f"a {self.kind} drives residual stages, and this {tokenizer.config.kind} has stages=0")

    def on(self, base: BaseTransformer) -> Self:
        """The same sizes for a Base Transformer: with its channels, longest motion, text encoder and tokenizer."""
        taken = {name: getattr(base.config, name) for name in self.FITTED if name != "base_sha256"}
        return dataclasses.replace(self, **taken, base_sha256=generator_sha256(base))


def generator_sha256(model: MotionGenerator) -> str:
    """A SHA-256 of a generator's settings and weights."""
    return model_sha256(model)


class RefineTransformer(MotionGenerator):
    """A transformer over whole motions that predicts the codes of one residual stage from those of the stages before.

    It sees the text, the stage, and for each latent its pose codes, embedded as the Base Transformer does, with the
    sum of the embeddings of its residual codes so far. The embeddings of a stage's codes are also the projection by
    which they are predicted. Generating, it asks its Base Transformer for pose codes and fills stage after stage.

    Source: PGR2M (arXiv 2512.22464).

    Args:
        config: sizes; those of the published model if absent.

    Parameters:
        codes: (stages, K + 2, dim); the last two rows are the published mask and pad, which are not used.
        pose: the Base Transformer's, which training leaves as it is.

    Buffers:
        position: (longest, dim), sines and cosines; not saved.
    """

    config_class = RefineTransformerConfig
    usual_sampling = GREEDY
    config: RefineTransformerConfig
    position: Tensor

    def __init__(self, config: RefineTransformerConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        stages = config.sizes[NUM_CATEGORIES:]
        self.stages, self.codebook_size = len(stages), stages[0]
        self.text = TextPrefix(config.text_dim, config.dim, config.keywords)
        self.stage = nn.Linear(self.stages, config.dim)
        self.pose = nn.Linear(WIDTH, config.dim)
        self.codes = nn.Parameter(INIT_STD * torch.randn(self.stages, self.codebook_size + _MASK_AND_PAD, config.dim))
        self.transformer = Transformer(config.dim, config.layers, config.heads, dropout=config.dropout, causal=False)
        for module in (self.stage, self.pose):
            module.apply(init_weights)
        self.pose.requires_grad_(False)
        self.register_buffer("position", positions(config.longest, config.dim), persistent=False)
        self._base: tuple[BaseTransformer, ...] = ()  # in a tuple, so that its weights are not this model's

    @property
    def base(self) -> BaseTransformer:
        """The Base Transformer.

        Raises:
            UserError: there is none yet.
        """
        if not self._base:
            raise UserError(
                "this pgr2m-refine has no pgr2m-base to take pose codes from: load it from its run folder, which "
                "holds one, or give it one with use_base"
            )
        return self._base[0]

    def use_base(self, base: BaseTransformer) -> None:
        """Takes pose codes from a Base Transformer.

        Raises:
            UserError: it is not the one that this model was trained with.
        """
        self._check_base(base)
        self._base = (base,)
        if self._encoder is not None:
            base.use_text_encoder(self._encoder)

    def use_text_encoder(self, encoder: TextEncoder) -> None:
        """See the base class; the Base Transformer reads with it too."""
        super().use_text_encoder(encoder)
        for base in self._base:
            base.use_text_encoder(encoder)

    def start_from(self, base: BaseTransformer) -> None:
        """Takes over a Base Transformer's pose embedding.

        Raises:
            UserError: the sizes are not for this one (:meth:`RefineTransformerConfig.on`).
        """
        self._check_base(base)
        self.pose.load_state_dict(base.pose.state_dict())

    def _check_base(self, base: BaseTransformer) -> None:
        found, wanted = generator_sha256(base), self.config.base_sha256
        if found != wanted:
            raise UserError(
                f"the {self.config.kind} goes with the {base.config.kind} of sha256 {wanted[:12] or 'unknown'}, and "
                f"this one has {found[:12]}: its pose codes are embedded otherwise; use the one in the run folder"
            )

    def losses(self, batch: TokenBatch) -> GeneratorLosses:
        """Cross-entropy of the codes of a stage drawn for each motion, mean over all latents of the batch."""
        tokens = batch.tokens
        stage = pose_vectors.drawn_stage(torch.rand(len(tokens), device=tokens.device), self.stages)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        real = place < batch.lengths[:, None]
        logits = self.scores(batch.text, tokens.clamp_min(0), stage, real).float()
        rows = torch.arange(len(tokens), device=tokens.device)
        targets = tokens[rows, :, NUM_CATEGORIES + stage].masked_fill(~real, -1)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        with torch.no_grad():
            right = (logits.argmax(dim=-1) == targets)[targets >= 0]
        return GeneratorLosses(loss, {"accuracy": right.float().mean()}, batch.lengths.sum())

    def scores(self, text: TextFeatures, tokens: Tensor, stage: Tensor, real: Tensor | None = None) -> Tensor:
        """Logits of a residual stage.

        Args:
            text: of B texts.
            tokens: (B, T, 70 + stages), of which the pose codes and the stages before ``stage`` are looked at.
            stage: (B,) from 0 up.
            real: (B, T), True where a latent is part of the motion; None where all are.

        Returns:
            (B, T, K + 2).
        """
        bins, codes = tokens[..., :NUM_CATEGORIES], tokens[..., NUM_CATEGORIES:]
        known = self.pose(pose_vectors.k_hot(bins).to(self.codes))
        for earlier in range(int(stage.max())):
            added = F.embedding(codes[..., earlier], self.codes[earlier])
            known = known + added * (stage > earlier)[:, None, None]
        known = known + self.position[: known.shape[1]].to(known)
        told = self.stage(F.one_hot(stage, self.stages).to(self.codes)).unsqueeze(1)
        inputs = torch.cat([self.text(text), told.to(known), known], dim=1)
        mask = None if real is None else F.pad(real, (PREFIX + 1, 0), value=True)
        hidden = self.transformer(inputs, mask)[:, PREFIX + 1 :]
        return torch.einsum("btd,bkd->btk", hidden, self.codes[stage].to(hidden))

    def sample(
        self,
        text: TextFeatures,
        lengths: Sequence[int] | None,
        sampling: Sampling,
        seed: int,
        places: Sequence[int],
        *,
        cached: bool,
    ) -> list[Tensor]:
        """See the base class; pose codes are drawn as ``sampling`` says, residual codes are the likeliest ones."""
        tokens = self.base.eval().sample(text, lengths, sampling, seed, places, cached=cached)
        return self.refine(text, tokens, seed=seed, places=places)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to`` and the like call: the Base Transformer goes along."""
        for base in self._base:
            base._apply(fn, recurse)
        applied: Self = super()._apply(fn, recurse)
        return applied

    def save_pretrained(self, save_directory: str | Path, *, extra_config: Mapping[str, Any] | None = None) -> None:
        """See the base class; the Base Transformer, if there is one, goes into the folder ``base`` there."""
        super().save_pretrained(save_directory, extra_config=extra_config)
        for base in self._base:
            base.save_pretrained(Path(save_directory) / BASE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """See the base class; the Base Transformer comes from the folder ``base`` there, or that of a checkpoint's
        run."""
        model = super().from_pretrained(folder)
        folder = Path(folder).resolve()
        for place in (folder / BASE, folder.parent.parent / BASE):
            if (place / pretrained.CONFIG).is_file():
                model.use_base(BaseTransformer.from_pretrained(place))
                break
        return model

    @torch.no_grad()
    def refine(
        self,
        text: TextFeatures,
        tokens: Sequence[Tensor],
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        places: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Motions with all residual codes that they lack, in evaluation mode.

        Args:
            text: of B texts, in the model's precision and on its device.
            tokens: B motions (70 + stages, T_i); residual codes that are -1 are filled in, the others stay.
            sampling: how codes are drawn; by default each is the likeliest.
            seed, places: what :func:`fastvq.models.generators.sampling.uniforms` takes; places from 0 up if absent.

        Returns:
            (70 + stages, T_i) each.
        """
        device = self.codes.device
        lengths = torch.tensor([one.shape[1] for one in tokens])
        held = nn.utils.rnn.pad_sequence([one.t() for one in tokens], batch_first=True).to(device)
        real = (torch.arange(held.shape[1]) < lengths[:, None]).to(device)
        places = range(len(tokens)) if places is None else places
        numbers = uniforms(seed, places, held.shape[1], len(self.config.sizes)).to(device)
        for q in range(self.stages):
            stream = NUM_CATEGORIES + q
            logits = self.scores(text, held.clamp_min(0), torch.full((len(held),), q, device=device), real)
            drawn = draw(logits[..., : self.codebook_size], numbers[..., stream], sampling)
            held[..., stream] = torch.where(held[..., stream] < 0, drawn, held[..., stream])
        return [one[:length].t().contiguous() for one, length in zip(held.cpu(), lengths.tolist(), strict=True)]

    def rewrite(
        self, text: str, tokens: Tensor, free: Tensor, *, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Tensor:
        """As :meth:`BaseTransformer.rewrite`, and the residual codes of every latent that changed are predicted anew.

        Where no pose code became another, residual codes stay.
        """
        written = self.base.rewrite(text, tokens, free, sampling=sampling, seed=seed)
        changed = (written != tokens).any(dim=0)
        if not bool(changed.any()):
            return written
        written[NUM_CATEGORIES:, changed] = -1
        model = self._exact_twin().eval()
        (refined,) = model.refine(model.on_model(self.text_encoder.encode([text])), [written])
        return refined
