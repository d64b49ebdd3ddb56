"""PGR2M's Base Transformer (2512.22464, after CoMo): pose codes from a text, one latent after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.generators import pose_vectors
from fastvq.models.generators.generator import GeneratorConfig, GeneratorLosses, MotionGenerator, TokenBatch
from fastvq.models.generators.pose_vectors import END, WIDTH
from fastvq.models.generators.sampling import Sampling, draw, guide, uniforms
from fastvq.models.generators.text import TextFeatures
from fastvq.models.generators.text_prefix import SLOTS, Keywords, TextPrefix, check_keywords
from fastvq.models.generators.transformer import Cache, Transformer, init_weights
from fastvq.models.motion.pose_codes import NUM_CATEGORIES
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.pose_codes import POSE_SIZES
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

PREFIX = 1 + SLOTS
GREEDY = Sampling(guidance=1.0, temperature=0.0)


@dataclass(frozen=True)
class BaseTransformerConfig(GeneratorConfig):
    """Sizes of a :class:`BaseTransformer`; the defaults are the published ones.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    sizes: tuple[int, ...] = (*POSE_SIZES, *[512] * 6)
    """Codes of each stream of the tokenizer."""
    dim: int = 1024
    """Channels."""
    layers: int = 18
    """Blocks; the paper calls the first half base and the second head."""
    heads: int = 16
    """Heads of the attention."""
    dropout: float = 0.1
    """In the blocks."""
    keywords: Keywords = "none"
    """What the eleven keyword slots get: nothing, or the first words of the text."""
    keep: float = 0.5
    """Probability with which a corrupted training step leaves a number of its inputs as it is."""
    clean_decay: float = 0.99
    """Factor, at every training step, of the probability that the step's inputs are not corrupted."""
    least_clean: float = 0.1
    """What that probability falls to; 1 never corrupts."""
    end_weight: float = 1.0
    """What END counts in the loss beside each of the other 393 numbers; short trainings learn it too late with 1."""
    text_dropout: float = 0.0
    """Probability with which training shows a motion without its text, for guidance; not in the paper."""

    kind = "pgr2m-base"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "layers", "heads"):
            check_integer(name, getattr(self, name), 1)
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"dim must be even and a multiple of heads, got dim={self.dim} and heads={self.heads}")
        for name in ("dropout", "keep", "clean_decay", "least_clean", "text_dropout"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("end_weight", self.end_weight, 0, above=True)
        check_keywords(self.keywords)
        if self.sizes[:NUM_CATEGORIES] != POSE_SIZES:
            raise UserError(f"sizes must begin with those of the {NUM_CATEGORIES} categories of pose codes")

    @property
    def reads_tokens(self) -> bool:
        return self.keywords == "words"

    def check_fits(self, tokenizer: MotionTokenizer) -> None:
        check_has_pose_codes(tokenizer, self.kind)


def check_has_pose_codes(tokenizer: MotionTokenizer, kind: str) -> None:
    """Raises a UserError unless a tokenizer has pose codes."""
    config = tokenizer.config
    if config.parsed != NUM_CATEGORIES:
        raise UserError(f"a {kind} drives pose codes, and a {config.kind} has none: train it with a pgr2m")


def positions(length: int, dim: int) -> Tensor:
    """(length, dim) sines and cosines of each position (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


class BaseTransformer(MotionGenerator):
    """A causal transformer that reads pose codes as K-hot vectors and predicts each of their 394 numbers by itself.

    A latent's codes are the best of every category; the motion ends before the first latent whose END is more likely
    than not. Its tokens have pose codes only, -1 in the residual stages, which a
    :class:`~fastvq.models.generators.refine_transformer.RefineTransformer` fills.

    Source: PGR2M (arXiv 2512.22464).

    Args:
        config: sizes; those of the published model if absent.

    Buffers:
        position: (12 + longest, dim), sines and cosines; not saved.
        seen: (), training steps so far, which decide how likely the next one's inputs are corrupted.
    """

    config_class = BaseTransformerConfig
    usual_sampling = GREEDY
    config: BaseTransformerConfig
    position: Tensor
    seen: Tensor

    def __init__(self, config: BaseTransformerConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        self.text = TextPrefix(config.text_dim, config.dim, config.keywords)
        self.pose = nn.Linear(WIDTH, config.dim)
        self.transformer = Transformer(config.dim, config.layers, config.heads, dropout=config.dropout)
        self.head = nn.Linear(config.dim, WIDTH, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for module in (self.pose, self.head):
            module.apply(init_weights)
        self.register_buffer("position", positions(PREFIX + config.longest, config.dim), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def losses(self, batch: TokenBatch) -> GeneratorLosses:
        """Binary cross-entropy, mean over the 394 numbers and the latents of a motion with its END, then over all.

        A motion whose end is not in the batch is not asked for END.
        """
        bins = batch.tokens[..., :NUM_CATEGORIES]
        vectors = pose_vectors.sequences(bins, batch.lengths)
        dropped = torch.rand(len(bins), device=bins.device) < self.config.text_dropout
        scores = self.scores(batch.text, self._corrupted(vectors[:, :-1]), dropped).float()
        weight = torch.ones(WIDTH, device=scores.device)
        weight[END] = self.config.end_weight
        errors = F.binary_cross_entropy_with_logits(scores, vectors, reduction="none") @ (weight / weight.sum())
        asked = torch.arange(errors.shape[1], device=bins.device) < (batch.lengths + batch.ends)[:, None]
        each = (errors * asked).sum(dim=1) / asked.sum(dim=1)
        with torch.no_grad():
            right = (pose_vectors.best_bins(scores[:, :-1]) == bins).float().mean(dim=-1)
            latents = torch.arange(bins.shape[1], device=bins.device) < batch.lengths[:, None]
        return GeneratorLosses(each.mean(), {"accuracy": right[latents].mean()})

    def _corrupted(self, vectors: Tensor) -> Tensor:
        """The vectors, all of them corrupted or none."""
        if not self.training:
            return vectors
        config = self.config
        clean = pose_vectors.clean_probability(int(self.seen), decay=config.clean_decay, least=config.least_clean)
        self.seen += 1
        if float(torch.rand(())) < clean:
            return vectors
        return pose_vectors.corrupted(vectors, config.keep)

    def scores(self, text: TextFeatures, vectors: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Logits of the next vector at every place, teacher-forced.

        Args:
            text: of B texts.
            vectors: (B, T, 394), the motion so far.
            dropped: (B,), True where the text is left out.

        Returns:
            (B, T + 1, 394); place t is predicted from the text and the vectors before t.
        """
        inputs = torch.cat([self.text(text, dropped), self.pose(vectors)], dim=1)
        hidden = self.transformer(self.dropout(inputs + self.position[: inputs.shape[1]].to(inputs)))
        found: Tensor = self.head(hidden[:, PREFIX - 1 :])
        return found

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
        """See the base class; the residual stages are -1."""
        most = self.config.longest if lengths is None else max(lengths)
        stops = None if lengths is None else torch.tensor(list(lengths))
        free = torch.full((len(places), most, NUM_CATEGORIES), -1)
        found = self.write(text, free, stops, sampling, seed, places, cached=cached)
        stages = len(self.config.sizes) - NUM_CATEGORIES
        return [F.pad(bins.t(), (0, 0, 0, stages), value=-1) for bins in found]

    @torch.no_grad()
    def write(
        self,
        text: TextFeatures,
        given: Tensor,
        lengths: Tensor | None,
        sampling: Sampling,
        seed: int,
        places: Sequence[int],
        *,
        cached: bool = True,
    ) -> list[Tensor]:
        """Pose codes latent after latent, some of which may be given.

        Codes that are given count as any others for what is written after them; what stands before them was written
        without knowing of them.

        Args:
            text: of B texts, in the model's precision and on its device.
            given: (B, T, 70) bins; -1 where the model writes.
            lengths: (B,) latents of each motion, at most T; None lets the model end, at T at the latest.
            sampling: how codes are drawn, each category by itself.
            seed, places: what :func:`fastvq.models.generators.sampling.uniforms` takes.
            cached: keep keys and values.

        Returns:
            (T_i, 70) each, on the CPU.

        Raises:
            UserError: guidance other than 1 of a model that never saw a motion without its text.
        """
        count, most, device = len(places), given.shape[1], self.head.weight.device
        guided = sampling.guidance != 1.0
        if guided and not self.config.text_dropout:
            raise UserError(
                f"guidance must be 1 of a {self.config.kind} that was trained with text_dropout 0, got "
                f"{sampling.guidance:g}: train it with a text_dropout such as 0.1"
            )
        copies = 2 if guided else 1  # the second half goes without the text
        text = TextFeatures(*(torch.cat([one] * copies) for one in text))
        prefix = self.text(text, torch.arange(copies * count, device=device) >= count)
        numbers = uniforms(seed, places, most, len(self.config.sizes))[..., :NUM_CATEGORIES].to(device)
        cache = Cache(len(prefix), PREFIX + most, self.transformer) if cached else None
        stops = torch.full((count,), most) if lengths is None else lengths.cpu()
        given, bins = given.to(device), torch.zeros(count, 0, NUM_CATEGORIES, dtype=torch.int64, device=device)
        inputs, start = prefix, 0
        for time in range(most):
            state = self.transformer(inputs + self.position[start : start + inputs.shape[1]], cache=cache)[:, -1]
            scores = self.head(state)
            if guided:
                told, untold = scores.chunk(2)
                scores = guide(told, untold, sampling.guidance)
            if lengths is None and time > 0:
                stops = torch.where(pose_vectors.ends(scores).cpu(), stops.clamp_max(time), stops)
                if bool((stops <= time).all()):
                    break
            drawn = draw(pose_vectors.by_category(scores), numbers[:, time], sampling)
            bins = torch.cat([bins, torch.where(given[:, time] < 0, drawn, given[:, time]).unsqueeze(1)], dim=1)
            if bool((stops <= time + 1).all()):
                break
            shown = self.pose(pose_vectors.k_hot(bins if cache is None else bins[:, -1:]).to(prefix))
            shown = torch.cat([shown] * copies)
            inputs, start = (torch.cat([prefix, shown], dim=1), 0) if cache is None else (shown, PREFIX + time)
        return [one[:stop] for one, stop in zip(bins.cpu(), stops.tolist(), strict=True)]

    def rewrite(
        self, text: str, tokens: Tensor, free: Tensor, *, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Tensor:
        """A motion with some of its pose codes written anew, in float64, and all others as they are.

        Args:
            text: what the motion shall show.
            tokens: (S, T) of a motion of the tokenizer, with all its pose codes.
            free: (70, T) bool, True where a pose code may change.
            sampling: how codes are drawn; by default each is the likeliest.
            seed: of the draw.

        Returns:
            (S, T); residual codes are those of before.

        Raises:
            UserError: a text that is empty or too long, another text encoder, a motion that is too long.
        """
        check_integer("latents of the motion", tokens.shape[1], 1, self.config.longest)
        model = self._exact_twin().eval()
        features = model.on_model(self.text_encoder.encode([text]))
        given = tokens[:NUM_CATEGORIES].masked_fill(free, -1).t().unsqueeze(0)
        (bins,) = model.write(features, given, torch.tensor([tokens.shape[1]]), sampling, seed, [0])
        written = tokens.clone()
        written[:NUM_CATEGORIES] = bins.t()
        return written
