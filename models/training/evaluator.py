"""Trains a motion-text evaluator on captioned clips: movements first, by auto-encoding, then the match with texts.

A training that was stopped goes on from the file in which it is kept, and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.distributed import world_size
from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import LEAKY, UNIT, EvaluatorConfig, MotionTextEvaluator
from fastvq.models.evaluation.frechet import matching
from fastvq.models.files import check_readable
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.training.data import FeatureClip, feature_statistics, fingerprint
from fastvq.models.training.loop import stop_signal

KEPT_FORMAT = "fastvq-evaluator-training/1"
KEEP_EVERY = 1000  # steps
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
    kept_in: Path | None = None,
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
        kept_in: a file that gets the training every ``KEEP_EVERY`` steps and when it is interrupted. What it holds
            already is gone on from, to the same weights as without a break; it stays when the training is done.

    Returns:
        The evaluator on the CPU, in evaluation mode, and facts of its training: steps, seconds, losses, and
        ``matching`` of the test split's motions with their descriptions, if it has 32.

    Raises:
        UserError: several processes, fewer than two different descriptions, training that breaks down, a file
            ``kept_in`` that is damaged, or of other settings or clips, or that cannot be written.
        KeyboardInterrupt: it was stopped.
    """
    if world_size() > 1:
        raise UserError(
            f"an evaluator is trained in one process, got {world_size()}: call it before torch.distributed is started"
        )
    training = EvaluatorTraining() if training is None else training
    device = torch.device("cpu") if device is None else device
    captioned = [clip for clip in clips if clip.text.strip() and len(clip.features) >= UNIT]
    known = [clip for clip in captioned if clip.split == "train"]
    if len({clip.text for clip in known}) < 2:
        raise UserError(
            "an evaluator learns from descriptions, and the training clips have fewer than two different ones: give "
            "motions with descriptions"
        )
    with torch.random.fork_rng():
        run = _Run(config, known, data, training, device, kept_in)
        run.go(progress)
    losses = {"movement_loss": run.mean_loss("movement"), "match_loss": run.mean_loss("match")}
    if not np.isfinite(list(losses.values())).all():
        raise UserError(f"the evaluator's training broke down ({losses}): lower its learning rate")
    model = run.model.cpu().requires_grad_(True).eval()
    facts = {
        "data": data,
        "clips": len(known),
        "descriptions": len({clip.text for clip in known}),
        **dataclasses.asdict(training),
        **losses,
        "seconds": round(run.seconds, 1),
        "test": _matching(model, [clip for clip in captioned if clip.split == "test"]),
    }
    return model, facts


class _Run:
    """A training between two steps: the movements' steps, then those of the match."""

    def __init__(
        self,
        config: EvaluatorConfig,
        clips: Sequence[FeatureClip],
        data: str,
        training: EvaluatorTraining,
        device: torch.device,
        kept_in: Path | None,
    ) -> None:
        self.training, self.kept_in = training, kept_in
        settings = [dataclasses.asdict(config), dataclasses.asdict(training), fingerprint(clips)]
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        torch.manual_seed(training.seed)
        mean, std = feature_statistics(clips)
        label = f"fastvq evaluator, trained on {data}"
        self.model = MotionTextEvaluator(config, mean=mean, std=std, label=label).to(device).train()
        self.parts = _Parts(clips, config.longest, training.batch_size, training.seed)
        self.decoder = _MovementDecoder(config).to(device)
        movement = [*self.model.movement_encoder.parameters(), *self.decoder.parameters()]
        first = {id(weight) for weight in movement}
        match = [weight for weight in self.model.parameters() if id(weight) not in first]
        self.weights = {"movement": movement, "match": match}
        self.optimizers = {name: torch.optim.Adam(held, lr=training.lr) for name, held in self.weights.items()}
        self.losses: dict[str, list[Tensor]] = {"movement": [], "match": []}
        self.step, self.seconds = 0, 0.0
        if kept_in is not None and kept_in.exists():
            self._load(kept_in)

    def go(self, progress: Callable[[int, int], None] | None) -> None:
        """The steps that remain."""
        movement_steps = self.training.movement_steps
        steps = movement_steps + self.training.match_steps
        start, before = time.perf_counter(), self.seconds
        with stop_signal() as stop:
            while self.step < steps and not stop.is_set():
                name = "movement" if self.step < movement_steps else "match"
                if name == "match":
                    self.model.movement_encoder.requires_grad_(False).eval()
                loss = self._movement_loss() if name == "movement" else self._match_loss()
                _descend(self.optimizers[name], loss, self.weights[name], self.training.grad_clip)
                self.losses[name].append(loss.detach())
                self.step += 1
                self.seconds = before + time.perf_counter() - start
                if progress is not None:
                    progress(self.step, steps)
                if self.step % KEEP_EVERY == 0 or stop.is_set():
                    self._keep()
        if self.step < steps:
            raise KeyboardInterrupt

    def mean_loss(self, name: str) -> float:
        """Of the last tenth of a part's steps."""
        losses = self.losses[name]
        return float(torch.stack(losses[-(len(losses) // 10 or 1) :]).mean())

    def _movement_loss(self) -> Tensor:
        model = self.model
        motion = self.parts.batch()[0].to(model.mean.device)
        target = ((motion - model.mean) / torch.where(model.std > 0, model.std, 1.0))[..., : model.config.columns]
        return F.smooth_l1_loss(self.decoder(model.movements(motion)), target)

    def _match_loss(self) -> Tensor:
        model = self.model
        motion, texts = self.parts.batch()
        movements = model.movements(motion.to(model.mean.device)).detach()
        lengths = torch.full((len(texts),), movements.shape[1])
        shift = int(self.parts.draw.integers(1, len(texts)))
        motions = model.motion_encoder(movements, lengths)
        return contrastive_loss(motions, model.text_embeddings(texts), texts, shift, self.training.margin)

    def _keep(self) -> None:
        if self.kept_in is None:
            return
        values = {
            "format": KEPT_FORMAT,
            "key": self.key,
            "step": self.step,
            "seconds": self.seconds,
            "losses": {name: torch.tensor([float(loss) for loss in held]) for name, held in self.losses.items()},
            "draw": _as_lists(self.parts.draw.bit_generator.state),
            "rng": torch.get_rng_state(),
            **{name: holder.state_dict() for name, holder in self._holders().items()},
        }
        with storage.replacing_files(self.kept_in.parent) as partial:
            torch.save(values, partial / self.kept_in.name)

    def _load(self, file: Path) -> None:
        check_readable(file)
        try:
            values = torch.load(file, map_location="cpu", weights_only=True)
            if values["format"] != KEPT_FORMAT:
                raise ValueError(f"format {values['format']!r}")
            if values["key"] == self.key:
                for name, holder in self._holders().items():
                    holder.load_state_dict(values[name])
                self.losses = {name: list(values["losses"][name]) for name in self.losses}
                self.parts.draw.bit_generator.state = _as_arrays(values["draw"])
                torch.set_rng_state(values["rng"])
                self.step, self.seconds = values["step"], values["seconds"]
        except Exception as error:  # damage makes the unpickler raise nearly anything
            raise UserError(f"{file} is damaged ({error}): remove it, and train from the start") from error
        if values["key"] != self.key:
            raise UserError(
                f"{file} keeps a training with other settings or clips: give those that it was started with, or "
                "start a new one"
            )

    def _holders(self) -> Mapping[str, Any]:
        return {"model": self.model, "decoder": self.decoder, **self.optimizers}


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


def _as_lists(state: Any) -> Any:
    """A generator's state without arrays."""
    if isinstance(state, Mapping):
        return {name: _as_lists(value) for name, value in state.items()}
    return [int(value) for value in state] if isinstance(state, np.ndarray) else state


def _as_arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _as_arrays(value) for name, value in state.items()}
    return np.array(state, dtype=np.uint64) if isinstance(state, list) else state


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
