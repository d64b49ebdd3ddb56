"""How well a tokenizer keeps motions: reconstruction error, joint error, use of the codes, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.evaluation.embedding import check_takes, embedding_metrics
from fastvq.models.evaluation.evaluator import MotionTextEvaluator
from fastvq.models.evaluation.metrics import (
    acceleration_errors,
    bone_errors,
    centroid_orthogonality,
    joint_errors,
    procrustes_errors,
    skating,
)
from fastvq.models.motion.pose_codes import CATEGORY_SLICES, NUM_CODES
from fastvq.models.motion.skeleton import FEET
from fastvq.models.tokenizers.code_use import code_use, count_codes
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip

FORMAT = "fastvq-evaluation/1"


@torch.no_grad()
def evaluate(
    model: MotionTokenizer,
    clips: Sequence[FeatureClip],
    *,
    batch_size: int = 16,
    seed: int = 0,
    streams: int | None = None,
    evaluator: MotionTextEvaluator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Encodes and decodes whole clips and compares them with themselves.

    Every clip counts with all its frames, padding with none. Joint errors are those of the joints that the features
    hold, before and after, with the pelvises moved together. Two baselines show what the tokens are worth: the same
    model's motion from the same tokens in shuffled places (each stream's tokens permuted over all clips), and the
    mean of every feature.

    Args:
        model: a trained tokenizer; runs in evaluation mode and is left in the mode that it was in.
        clips: the motions, of any split, at least 4 frames each.
        batch_size: how many are encoded at once.
        seed: of the shuffling.
        streams: decode only the first so many tokens of each latent, where the model can do without the others (the
            last stages of a residual stack); all if absent.
        evaluator: adds an FID and its kin; see :func:`fastvq.models.evaluation.embedding.embedding_metrics`.
        progress: called with the number of clips done and the number of clips.

    Returns:
        recon_smooth_l1: smooth L1 of the normalised features, mean over all.
        recon_per_slice: the same for each kind of features.
        mpjpe_mm, pa_mpjpe_mm: joint error, and that after the similarity transform that fits each frame best.
        accel_error_mm: error of the joints' second difference (per frame^2).
        bone_drift_mm: how far bones are from their mean lengths in the original.
        foot_skate, foot_skate_original: share of frames in which a foot slides over the floor.
        mpjpe_shuffled_tokens_mm, mpjpe_mean_features_mm: joint errors of the baselines.
        perplexity, utilisation: of the learned codes of all clips, means over the codebooks; one that residual stages
            share is counted over all of them. Of the streams that are decoded; absent where none of those is learned.
        perplexity_per_group, utilisation_per_group: of each group; for residual stages ``_per_stage``.
        pose_codes_shown: of a model with pose codes, the share of them that the decoded motion shows.
        centroid_cosine, centroid_gram_error, centroid_centred_cosine: of the codebook of a model with pose codes,
            orthogonality of its 70 categories' centroids.
        clips, frames, tokens, latents: how many; a latent has one token for each group or stage.
        tokens_per_second, encode_seconds: speed of encoding.

    Raises:
        UserError: no clips, more streams than the model has, or an evaluator of other features.
    """
    if not clips:
        raise UserError("there is no clip to evaluate: choose another split or give more data")
    check_integer("batch_size", batch_size, 1)
    if streams is None:
        streams = model.config.streams
    check_integer("streams", streams, 1)
    if streams > model.config.streams:
        raise UserError(f"streams must be at most the {model.config.streams} of the model, got {streams}")
    if evaluator is not None:
        check_takes(evaluator, model.config.input_dim)
    was_training = model.training
    model.eval()
    try:
        return _Evaluation(model, clips, batch_size, seed, streams, evaluator, progress).run()
    finally:
        model.train(was_training)


class _Evaluation:
    def __init__(
        self,
        model: MotionTokenizer,
        clips: Sequence[FeatureClip],
        batch_size: int,
        seed: int,
        streams: int,
        evaluator: MotionTextEvaluator | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.batch_size, self.seed, self.progress = model, batch_size, seed, progress
        self.streams, self.evaluator = streams, evaluator
        self.clips = sorted(clips, key=lambda clip: len(clip.features))
        self.device = model.mean.device
        self.mean = model.mean.cpu().numpy()
        self.features = model.config.features

    def run(self) -> dict[str, Any]:
        tokens, seconds = self._encode()
        latents = [-(-len(clip.features) // self.model.config.downsample) for clip in self.clips]
        counts = count_codes(torch.cat([row.t() for row in tokens]), self.model.config)
        counts = counts[: max(self.streams - self.model.config.parsed, 0)]
        frames = sum(len(clip.features) for clip in self.clips)
        smooth_l1 = torch.zeros(self.model.config.input_dim, dtype=torch.float64)
        joint, aligned, acceleration, bones = _Mean(), _Mean(), _Mean(), _Mean()
        skate, original_skate = _Mean(), _Mean()
        mean_pose, shuffled_pose, shown = _Mean(), _Mean(), _Mean()
        shuffled = self._shuffled(tokens)
        motions: list[np.ndarray] = []
        for start in range(0, len(self.clips), self.batch_size):
            part = slice(start, start + self.batch_size)
            clips = self.clips[part]
            decoded = self._decode(tokens[part], clips)
            from_shuffled = self._decode(shuffled[part], clips)
            if self.evaluator is not None:
                motions += [motion.cpu().numpy() for motion in decoded]
            for clip, motion, other, codes in zip(clips, decoded, from_shuffled, tokens[part], strict=True):
                smooth_l1 += self._smooth_l1(motion, clip)
                target = self.features.to_joints(clip.features)
                joints = self.features.to_joints(motion.cpu().numpy())
                joint.add(joint_errors(joints, target))
                aligned.add(procrustes_errors(joints, target))
                acceleration.add(acceleration_errors(joints, target))
                bones.add(bone_errors(joints, target, self.features.parents))
                shown.add(self._shown(motion, codes))
                floor = float(clip.joints[:, [ball for _, ball in FEET], 1].min())
                posed = self.features.to_smpl(motion.cpu().numpy())
                skate.add(skating(posed, self.model.config.fps, floor=floor))
                original_skate.add(skating(clip.joints, self.model.config.fps, floor=floor))
                shuffled_pose.add(joint_errors(self.features.to_joints(other.cpu().numpy()), target))
                flat = np.broadcast_to(self.mean, clip.features.shape)
                mean_pose.add(joint_errors(self.features.to_joints(flat), target))
            if self.progress is not None:
                self.progress(start + len(clips), len(self.clips))
        smooth_l1 /= frames
        return {
            "format": FORMAT,
            "recon_smooth_l1": float(smooth_l1.mean()),
            "recon_per_slice": {name: float(smooth_l1[block].mean()) for name, block in self.features.slices.items()},
            "mpjpe_mm": joint.value(),
            "pa_mpjpe_mm": aligned.value(),
            "accel_error_mm": acceleration.value(),
            "bone_drift_mm": bones.value(),
            "foot_skate": skate.value(),
            "foot_skate_original": original_skate.value(),
            "mpjpe_shuffled_tokens_mm": shuffled_pose.value(),
            "mpjpe_mean_features_mm": mean_pose.value(),
            **code_use(counts, self.model.config),
            **({"pose_codes_shown": shown.value()} if shown.count else {}),
            **self._orthogonality(),
            **self._embedding(motions),
            "clips": len(self.clips),
            "frames": frames,
            "latents": sum(latents),
            "tokens": sum(latents) * self.streams,
            "tokens_per_second": sum(latents) * self.model.config.streams / seconds,
            "encode_seconds": seconds,
        }

    def _embedding(self, motions: list[np.ndarray]) -> dict[str, Any]:
        """Of the decoded motions, in the order of the clips."""
        if self.evaluator is None:
            return {}
        texts = [clip.text for clip in self.clips]
        return embedding_metrics(self.evaluator, [clip.features for clip in self.clips], motions, texts)

    def _shown(self, motion: Tensor, tokens: Tensor) -> np.ndarray:
        """(T', parsed) whether decoded features (T, C) show the codes that were read off the motion."""
        try:
            found = self.model.read_codes(motion[None])
        except UserError:  # what a model decoded that has learnt nothing need be no body, and then shows no code
            return np.zeros((tokens.shape[1], self.model.config.parsed), dtype=bool)
        if found is None:
            return np.empty(0)
        shown: np.ndarray = (found[0].cpu() == tokens[: self.model.config.parsed].t()).numpy()
        return shown

    def _orthogonality(self) -> dict[str, float]:
        """Of the pose codes' codebook, where the model has one."""
        table = getattr(self.model, "pose_codebook", None)
        if not isinstance(table, Tensor) or table.shape[0] != NUM_CODES:
            return {}
        found = centroid_orthogonality(table.detach().float().cpu().numpy(), CATEGORY_SLICES)
        return {
            "centroid_cosine": found.mean_cosine,
            "centroid_gram_error": found.gram_error,
            "centroid_centred_cosine": found.centred_cosine,
        }

    def _encode(self) -> tuple[list[Tensor], float]:
        """(streams, T') tokens of every clip, on the CPU, and the seconds that it took, tokens in hand."""
        tokens = []
        features = [torch.from_numpy(clip.features) for clip in self.clips]
        self.model.encode_batch(features[:1])  # the first call builds and warms what later ones use
        start = time.perf_counter()
        for index in range(0, len(features), self.batch_size):
            part = features[index : index + self.batch_size]
            found = self.model.encode_batch(part, batch_size=self.batch_size).cpu()
            found[self.streams :] = -1
            lengths = [-(-len(motion) // self.model.config.downsample) for motion in part]
            tokens += [found[:, row, :length] for row, length in enumerate(lengths)]
        return tokens, time.perf_counter() - start

    def _decode(self, tokens: Sequence[Tensor], clips: Sequence[FeatureClip]) -> list[Tensor]:
        longest = max(row.shape[1] for row in tokens)
        batch = torch.stack([F.pad(row, (0, longest - row.shape[1]), value=-1) for row in tokens], dim=1)
        lengths = [len(clip.features) for clip in clips]
        return self.model.decode_batch(batch, lengths, batch_size=self.batch_size)

    def _smooth_l1(self, motion: Tensor, clip: FeatureClip) -> Tensor:
        """Summed over the frames, (C,)."""
        target = self.model.normalise(torch.from_numpy(clip.features).to(self.device))
        errors = F.smooth_l1_loss(self.model.normalise(motion), target, reduction="none")
        return errors.cpu().sum(dim=0, dtype=torch.float64)

    def _shuffled(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The same tokens, each stream's in another order over all clips."""
        joined = torch.cat(list(tokens), dim=1)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(joined.shape, generator=generator).argsort(dim=1)
        return list(joined.gather(1, order).split([row.shape[1] for row in tokens], dim=1))


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        self.total += float(values.sum())
        self.count += values.size

    def value(self) -> float:
        return self.total / max(self.count, 1)
