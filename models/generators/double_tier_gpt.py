"""The generator of T2M-HiFiGPT (2023, arXiv 2312.10628): one GPT over time, a smaller one over residual stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.generators.generator import GeneratorConfig, GeneratorLosses, MotionGenerator, TokenBatch
from fastvq.models.generators.sampling import Sampling, draw, guide, uniforms
from fastvq.models.generators.text import TextFeatures
from fastvq.models.generators.transformer import INIT_STD, Cache, Transformer, init_weights
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

Corruption = Literal["time", "code", "none"]


@dataclass(frozen=True)
class DoubleTierGPTConfig(GeneratorConfig):
    """Sizes of a :class:`DoubleTierGPT`.

    The paper gives the structure and few numbers; those that it leaves open are near those of T2M-GPT and MoMask.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    dim: int = 512
    """Channels of both transformers."""
    layers: int = 9
    """Blocks of the one over time."""
    depth_layers: int = 3
    """Blocks of the one over depth."""
    heads: int = 8
    """Heads of the attention."""
    dropout: float = 0.1
    """In both transformers."""
    corruption: Corruption = "time"
    """What is replaced by random codes in the inputs of training: all codes of a moment, single codes, or none."""
    corruption_rate: float = 0.5
    """Probability of that, for each moment or code."""
    text_dropout: float = 0.1
    """Probability with which training shows a motion without its text, for guidance."""
    text_tokens: bool = False
    """Show every token of the text, not only the one vector that stands for all of it."""

    kind = "hifigpt"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "layers", "depth_layers", "heads"):
            check_integer(name, getattr(self, name), 1)
        if self.dim % self.heads:
            raise UserError(f"heads must divide dim, got dim={self.dim} and heads={self.heads}")
        for name in ("dropout", "corruption_rate", "text_dropout"):
            check_number(name, getattr(self, name), 0, 1)
        if self.corruption not in get_args(Corruption):
            raise UserError(f"corruption must be one of {', '.join(get_args(Corruption))}, got {self.corruption!r}")
        if len(set(self.sizes)) > 1:
            raise UserError(f"sizes must all be equal, got {self.sizes}")

    @property
    def reads_tokens(self) -> bool:
        return self.text_tokens

    def check_fits(self, tokenizer: MotionTokenizer) -> None:
        config = tokenizer.config
        if config.stream != "stage" or config.parsed or config.token_shape[0] > 1:
            raise UserError(
                f"a {self.kind} drives residual stages, and a {config.kind} has "
                f"{'pose codes' if config.parsed else 'groups'}: train it with an rvqvae"
            )


class DoubleTierGPT(MotionGenerator):
    """A transformer over time makes a context of the text and the moments so far, one over depth the next codes.

    A moment is the sum of its codes' embeddings; the text is one vector before them, or one more for each of its
    tokens. Over depth the context comes first, then the sums of the codes so far. END is a code of the first stage.

    Args:
        config: sizes; those of the published model if absent.
    """

    config_class = DoubleTierGPTConfig
    # Of a small model on made-up motions this shows the asked action 19 times of 20; a scale of 4 without top_p, as
    # MoMask has it, 15 times.
    usual_sampling = Sampling(guidance=2.0, top_p=0.8)
    config: DoubleTierGPTConfig

    def __init__(self, config: DoubleTierGPTConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        self.stages, self.end = len(config.sizes), config.sizes[0]
        self.text = nn.Linear(config.text_dim, config.dim)
        self.no_text = nn.Parameter(INIT_STD * torch.randn(config.dim))
        self.begin = nn.Parameter(INIT_STD * torch.randn(config.dim)) if config.text_tokens else None
        self.codes = nn.Embedding(self.stages * self.end, config.dim)
        self.time = nn.Embedding(config.longest + 1, config.dim)
        self.temporal = Transformer(config.dim, config.layers, config.heads, dropout=config.dropout)
        self.depth = nn.Embedding(self.stages, config.dim)
        self.residual = Transformer(config.dim, config.depth_layers, config.heads, dropout=config.dropout)
        self.head = nn.Linear(config.dim, self.end + 1, bias=False)
        for module in (self.text, self.codes, self.time, self.depth, self.head):
            module.apply(init_weights)

    def losses(self, batch: TokenBatch) -> GeneratorLosses:
        """Cross-entropy, summed over the stages, mean over the moments and the ends.

        Only what the transformer over time sees is corrupted; what is asked of it is not.
        """
        tokens, lengths = batch.tokens, batch.lengths
        dropped = torch.rand(len(tokens), device=tokens.device) < self.config.text_dropout
        prefix, mask = self._prefix(batch.text, dropped)
        seen = self._moments(self._corrupted(tokens.clamp_min(0)), first=0)
        if mask is not None:
            mask = F.pad(mask, (0, seen.shape[1]), value=True)
        context = self.temporal(torch.cat([prefix, seen], dim=1), mask)[:, prefix.shape[1] - 1 :]
        targets = F.pad(tokens, (0, 0, 0, 1), value=-1)
        rows = torch.arange(len(tokens), device=tokens.device)
        targets[rows, lengths, 0] = torch.where(batch.ends, self.end, -1)
        asked = targets[..., 0] >= 0
        targets = targets[asked]
        logits = self._stages(context[asked], targets.clamp_min(0))
        errors = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="none")
        counts = (targets >= 0).sum(dim=0)
        each = errors.view_as(targets).sum(dim=0) / counts.clamp_min(1)
        number = len(targets)
        return GeneratorLosses(errors.sum() / number, {"cross_entropy_per_stage": each.detach()}, number)

    def _corrupted(self, tokens: Tensor) -> Tensor:
        """(B, T, S) with some codes replaced by random ones."""
        if self.config.corruption == "none":
            return tokens
        shape = tokens.shape if self.config.corruption == "code" else (*tokens.shape[:2], 1)
        replaced = torch.rand(shape, device=tokens.device) < self.config.corruption_rate
        return torch.where(replaced, torch.randint_like(tokens, self.end), tokens)

    def _prefix(self, text: TextFeatures, dropped: Tensor) -> tuple[Tensor, Tensor | None]:
        """What stands before the motion: (B, P, d), and which of it is real (B, P), or None where all is.

        Args:
            text: of B motions.
            dropped: (B,), True where the text is left out.
        """
        whole = torch.where(dropped[:, None], self.no_text.to(text.pooled), self.text(text.pooled)).unsqueeze(1)
        first = self.time.weight[0]
        if self.begin is None:
            return whole + first, None
        last = (self.begin + first).expand(len(whole), 1, -1)
        prefix = torch.cat([whole, self.text(text.tokens).to(whole), last.to(whole)], dim=1)
        return prefix, F.pad(text.mask & ~dropped[:, None], (1, 1), value=True)

    def _moments(self, tokens: Tensor, first: int) -> Tensor:
        """(B, T, S) codes of the moments from ``first`` on -> (B, T, d)."""
        place = torch.arange(first + 1, first + 1 + tokens.shape[1], device=tokens.device)
        return self._embedded(tokens).sum(dim=2) + self.time(place)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """(..., n) codes of the first n stages -> (..., n, d)."""
        return self.codes(tokens + self.end * torch.arange(tokens.shape[-1], device=tokens.device))

    def _stages(self, context: Tensor, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the stages.

        Args:
            context: (N, d).
            tokens: (N, S') codes of the moment; the last is not looked at.
            cache: of the stages before the last, which are then left out of the result.

        Returns:
            (N, S', K + 1), or (N, 1, K + 1) with a cache.
        """
        inputs = context.unsqueeze(1)
        if tokens.shape[1] > 1:
            sums = self._embedded(tokens[:, :-1]).cumsum(dim=1)
            inputs = torch.cat([inputs, sums.to(inputs)], dim=1)
        inputs = inputs + self.depth.weight[: inputs.shape[1]]
        if cache is not None:
            inputs = inputs[:, cache.length :]
        return self.head(self.residual(inputs, cache=cache))

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
        """See the base class."""
        count, device = len(places), text.pooled.device
        guided = sampling.guidance != 1.0
        if guided:  # the second half goes without the text
            text = TextFeatures(*(torch.cat([one, one]) for one in text))
        dropped = torch.arange(len(text.pooled), device=device) >= count
        prefix, mask = self._prefix(text, dropped)
        most = self.config.longest if lengths is None else max(lengths)
        stops = torch.full((count,), most) if lengths is None else torch.tensor(list(lengths))
        numbers = uniforms(seed, places, most, self.stages).to(device)
        cache = Cache(len(prefix), prefix.shape[1] + most, self.temporal) if cached else None
        tokens = torch.zeros(count, 0, self.stages, dtype=torch.int64, device=device)
        inputs = prefix
        for time in range(most):
            state = self._state(inputs, mask if time == 0 or not cached else None, cache)
            may_end = lengths is None and time > 0
            codes = self._moment(state, numbers[:, time], sampling, guided=guided, may_end=may_end, cached=cached)
            ended = codes[:, 0].cpu() == self.end
            stops = torch.where(ended, stops.clamp_max(time), stops)
            tokens = torch.cat([tokens, codes.clamp_max(self.end - 1).unsqueeze(1)], dim=1)
            if bool((stops <= time + 1).all()):
                break
            shown = tokens.repeat(2 if guided else 1, 1, 1)
            inputs = self._moments(shown[:, -1:], first=time)
            if not cached:
                inputs = torch.cat([prefix, self._moments(shown, first=0)], dim=1)
        return [one[:stop].t().contiguous() for one, stop in zip(tokens, stops.tolist(), strict=True)]

    def _state(self, inputs: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """(B, d) context of the next moment."""
        if mask is not None:
            mask = F.pad(mask, (0, inputs.shape[1] - mask.shape[1]), value=True)
        return self.temporal(inputs, mask, cache=cache)[:, -1]

    def _moment(
        self, state: Tensor, numbers: Tensor, sampling: Sampling, *, guided: bool, may_end: bool, cached: bool
    ) -> Tensor:
        """(B, S) codes of a moment, the first of which may be END.

        Args:
            state: (B or 2 B, d) context.
            numbers: (B, S) in [0, 1).
            sampling: how codes are drawn.
            guided: whether the second half of the context is without the text.
            may_end: whether the motion may end here.
            cached: keep keys and values.
        """
        cache = Cache(len(state), self.stages, self.residual) if cached else None
        codes = torch.zeros(len(numbers), 0, dtype=torch.int64, device=state.device)
        for stage in range(self.stages):
            known = F.pad(codes, (0, 1)).clamp_max(self.end - 1)
            logits = self._stages(state, known.repeat(2 if guided else 1, 1), cache)[:, -1]
            if guided:
                told, untold = logits.chunk(2)
                logits = guide(told, untold, sampling.guidance)
            if stage or not may_end:
                logits[:, self.end] = -math.inf
            codes = torch.cat([codes, draw(logits, numbers[:, stage], sampling).unsqueeze(1)], dim=1)
        return codes
