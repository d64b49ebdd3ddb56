"""Trains a motion-text evaluator on captioned clips: movements first, by auto-encoding, then the match with texts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import LEAKY, UNIT, EvaluatorConfig, MotionTextEvaluator
from fastvq.models.evaluation.frechet import matching
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.training.data import FeatureClip, feature_statistics

# Frames; shorter parts say little of what a person does.
SHORTEST = 24


@dataclass(frozen=True)
class EvaluatorTraining:
    """How an evaluator is trained; rate, batch, margin and clipping are those of Guo et al. 2022, who take 300 passes
    over HumanML3D.

    Raises:
        UserError: a value that no training can have.
    """

    movement_steps: int = 5000
    """Steps in which the convolutions learn to keep movements; after that they stay as they are."""
    match_steps: int = 50_000
    """Steps in which motions and descriptions learn to meet."""
    batch_size: int = 32
    """Motions of a step."""
    lr: float = 1e-4
    """Learning rate of Adam."""
    margin: float = 10.0
    """Distance beyond which a motion and another's description need not go apart further."""
    grad_clip: float = 0.5
    """Largest norm of the gradient."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        for name in ("movement_steps", "match_steps"):
            check_integer(name, getattr(self, name), 1)
        check_integer("batch_size", self.batch_size, 2)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "margin", "grad_clip"):
            check_number(name, getattr(self, name), 0, above=True)


# For the sizes ``fastvq.models.evaluation.evaluator.SMALL``: about a minute on one thread.
SHORT = EvaluatorTraining(movement_steps=300, match_steps=700, lr=5e-4)


class _MovementDecoder(nn.Module):
    """(B, T / 4, movement_dim) -> (B, T, columns), the mirror image of the movement encoder."""

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose1d(config.movement_dim, config.movement_hidden, 4, 2, 1),
            nn.LeakyReLU(LEAKY),
            nn.ConvTranspose1d(config.movement_hidden, config.columns, 4, 2, 1),
            nn.LeakyReLU(LEAKY),
        )
        self.out_net = nn.Linear(config.columns, config.columns)

    def forward(self, movements: Tensor) -> Tensor:
        return self.out_net(self.main(movements.transpose(1, 2)).transpose(1, 2))


class _Parts:
    """Batches of parts of clips, all of one length, so that none is padded; lengths occur as the clips have them."""

    def __init__(self, clips: Sequence[FeatureClip], longest: int, batch_size: int, seed: int) -> None:
        self.clips, self.longest, self.batch_size = clips, longest, batch_size
        self.lengths = np.array([len(clip.features) for clip in clips])
        self.draw = np.random.Generator(np.random.Philox(seed))

    def batch(self) -> tuple[Tensor, list[str]]:
        """(B, T, C) features and their descriptions."""
        held = int(self.lengths[self.draw.integers(len(self.clips))])
        low, high = min(SHORTEST, held) // UNIT, min(self.longest, held) // UNIT
        frames = UNIT * int(self.draw.integers(low, high + 1))
        chosen = self.draw.choice(np.flatnonzero(self.lengths >= frames), size=self.batch_size)
        parts = []
        for index in chosen:
            start = int(self.draw.integers(self.lengths[index] - frames + 1))
            parts.append(self.clips[index].features[start : start + frames])
        return torch.from_numpy(np.stack(parts)), [self.clips[index].text for index in chosen]


def train_evaluator(
    config: EvaluatorConfig,
    clips: Sequence[FeatureClip],
    *,
    data: str,
    training: EvaluatorTraining | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MotionTextEvaluator, dict[str, Any]]:
    """An evaluator from the captioned clips of the train split.

    The movement encoder is trained as an auto-encoder and frozen; then the distance of a motion's and its own
    description's embedding is lowered, and that to another's raised up to the margin: d^2 + relu(margin - d)^2. The
    other is that of the batch moved round by a number of places, and does not count where it says the same.

    Args:
        config: sizes.
        clips: features of ``config.input_dim`` columns; those without a description are left out.
        data: what to call the data set in the evaluator's label.
        training: how; the published recipe if absent.
        device: where; the CPU if absent.
        progress: called with the number of steps done and the number of steps.

    Returns:
        The evaluator on the CPU, in evaluation mode, and facts of its training: steps, seconds, losses, and
        ``matching`` of the test split's motions with their descriptions, if it has 32.

    Raises:
        UserError: fewer than two different descriptions, or training that breaks down.
    """
    training = EvaluatorTraining() if training is None else training
    device = torch.device("cpu") if device is None else device
    captioned = [clip for clip in clips if clip.text.strip() and len(clip.features) >= UNIT]
    known = [clip for clip in captioned if clip.split == "train"]
    if len({clip.text for clip in known}) < 2:
        raise UserError(
            "an evaluator learns from descriptions, and the training clips have fewer than two different ones: give "
            "motions with descriptions"
        )
    start, steps = time.perf_counter(), training.movement_steps + training.match_steps
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        mean, std = feature_statistics(known)
        model = MotionTextEvaluator(config, mean=mean, std=std, label=f"fastvq evaluator, trained on {data}")
        model.to(device).train()
        parts = _Parts(known, config.longest, training.batch_size, training.seed)

        def tell(done: int) -> None:
            if progress is not None:
                progress(done, steps)

        movement_loss = _learn_movements(model, parts, training, tell)
        match_loss = _learn_matches(model, parts, training, lambda done: tell(training.movement_steps + done))
    if not np.isfinite([movement_loss, match_loss]).all():
        raise UserError(f"the evaluator's training broke down (loss {match_loss}): lower its learning rate")
    model.cpu().eval()
    facts = {
        "data": data,
        "clips": len(known),
        "descriptions": len({clip.text for clip in known}),
        **dataclasses.asdict(training),
        "movement_loss": movement_loss,
        "match_loss": match_loss,
        "seconds": round(time.perf_counter() - start, 1),
        "test": _matching(model, [clip for clip in captioned if clip.split == "test"]),
    }
    return model, facts


def _learn_movements(
    model: MotionTextEvaluator, parts: _Parts, training: EvaluatorTraining, tell: Callable[[int], None]
) -> float:
    """Returns the mean loss of the last tenth of the steps."""
    decoder = _MovementDecoder(model.config).to(model.mean.device)
    weights = [*model.movement_encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(weights, lr=training.lr)
    losses = []
    for step in range(training.movement_steps):
        motion = parts.batch()[0].to(model.mean.device)
        target = ((motion - model.mean) / torch.where(model.std > 0, model.std, 1.0))[..., : model.config.columns]
        loss = F.smooth_l1_loss(decoder(model.movements(motion)), target)
        _descend(optimizer, loss, weights, training.grad_clip)
        losses.append(loss.detach())
        tell(step + 1)
    return float(torch.stack(losses[-(len(losses) // 10 or 1) :]).mean())


def _learn_matches(
    model: MotionTextEvaluator, parts: _Parts, training: EvaluatorTraining, tell: Callable[[int], None]
) -> float:
    """Returns the mean loss of the last tenth of the steps."""
    model.movement_encoder.requires_grad_(False).eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=training.lr)
    losses = []
    for step in range(training.match_steps):
        motion, texts = parts.batch()
        movements = model.movements(motion.to(model.mean.device)).detach()
        lengths = torch.full((len(texts),), movements.shape[1])
        shift = int(parts.draw.integers(1, len(texts)))
        loss = contrastive_loss(
            model.motion_encoder(movements, lengths), model.text_embeddings(texts), texts, shift, training.margin
        )
        _descend(optimizer, loss, weights, training.grad_clip)
        losses.append(loss.detach())
        tell(step + 1)
    model.movement_encoder.requires_grad_(True)
    return float(torch.stack(losses[-(len(losses) // 10 or 1) :]).mean())


def contrastive_loss(motions: Tensor, texts: Tensor, captions: Sequence[str], shift: int, margin: float) -> Tensor:
    """mean d(own)^2 + mean relu(margin - d(other))^2, the other being ``shift`` places further round the batch.

    Args:
        motions, texts: (B, D) embeddings.
        captions: (B); an other that says the same is no other.
        shift: 1 to B - 1.
        margin: see above.
    """
    own = F.pairwise_distance(motions, texts).square().mean()
    other = F.relu(margin - F.pairwise_distance(motions, texts.roll(-shift, 0))).square()
    differs = [text != captions[(index + shift) % len(captions)] for index, text in enumerate(captions)]
    counted = torch.tensor(differs, device=other.device)
    return own + (other * counted).sum() / counted.sum().clamp_min(1)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, weights: Sequence[Tensor], largest: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(weights, largest)
    optimizer.step()


def _matching(model: MotionTextEvaluator, clips: Sequence[FeatureClip]) -> dict[str, float]:
    """How well whole clips and descriptions find each other, and how well chance would (``chance_top1``, ...)."""
    motions = [clip.features[: min(len(clip.features), model.config.longest) // UNIT * UNIT] for clip in clips]
    if not motions:
        return {}
    captions = [clip.text for clip in clips]
    found, texts = model.embed_motions(motions), model.embed_texts(captions)
    other = np.random.default_rng(0).permutation(len(captions))
    chance = matching(found, texts[other], [captions[index] for index in other])
    return {**matching(found, texts, captions), **{f"chance_{name}": share for name, share in chance.items()}}
