"""Clips through a tokenizer, one way or both, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from fastvq.models.commands.common import progress_bar
from fastvq.models.evaluation.metrics import joint_errors
from fastvq.models.tokenizers.token_file import ClipTokens
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip

BATCH = 16
# Clips among which those to show are chosen; more would only take longer.
CANDIDATES = 60


@dataclass(frozen=True)
class Reconstruction:
    """A clip beside what comes back from its tokens."""

    clip: FeatureClip
    joints: np.ndarray
    mpjpe_mm: float


def encode_clips(
    model: MotionTokenizer, clips: Sequence[FeatureClip], console: Console, *, batch_size: int = BATCH
) -> list[torch.Tensor]:
    """(streams, T') tokens of every clip, on the CPU."""
    tokens: list[torch.Tensor] = []
    downsample = model.config.downsample
    with progress_bar(console, "encoding") as bar:
        task = bar.add_task("encoding", total=len(clips), name="")
        for start in range(0, len(clips), batch_size):
            part = clips[start : start + batch_size]
            found = model.encode_batch([torch.from_numpy(clip.features) for clip in part]).cpu()
            lengths = [-(-len(clip.features) // downsample) for clip in part]
            tokens += [found[:, row, :length].contiguous() for row, length in enumerate(lengths)]
            bar.update(task, completed=len(tokens))
    return tokens


def decode_clips(model: MotionTokenizer, clips: Sequence[ClipTokens]) -> list[np.ndarray]:
    """(frames, C) features of every clip."""
    features: list[np.ndarray] = []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        longest = max(clip.tokens.shape[1] for clip in part)
        padded = [F.pad(clip.tokens, (0, longest - clip.tokens.shape[1]), value=-1) for clip in part]
        motions = model.decode_batch(torch.stack(padded, dim=1), [clip.frames for clip in part])
        features += [motion.cpu().numpy() for motion in motions]
    return features


def reconstruct(
    model: MotionTokenizer, clips: Sequence[FeatureClip], *, limit: int = CANDIDATES
) -> list[Reconstruction]:
    """Clips and their reconstructions; an even sample of ``limit`` where there are more."""
    chosen = [clips[index] for index in spread(len(clips), limit)]
    found = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        motions = [torch.from_numpy(clip.features) for clip in part]
        decoded = model.decode_batch(model.encode_batch(motions), [len(motion) for motion in motions])
        for clip, motion in zip(part, decoded, strict=True):
            joints = model.config.features.to_smpl(motion.cpu().numpy())
            error = float(joint_errors(joints, clip.joints).mean())
            found.append(Reconstruction(clip, joints, error))
    return found


def spread(total: int, count: int) -> list[int]:
    """``count`` different indices below ``total``, evenly spaced from the first to the last."""
    if total <= count:
        return list(range(total))
    if count == 1:
        return [0]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]
