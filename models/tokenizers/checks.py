"""What tokenizers take from users: motions and tokens, checked with one clear sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import FEATURE_FORMATS

MIN_FRAMES = 4

Motion = Tensor | np.ndarray


def motion(
    values: Motion,
    width: int,
    name: str = "motion",
    axes: tuple[int, ...] = (2, 3),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A valid motion as (B, T, width).

    Args:
        values: (T, width) or (B, T, width).
        width: features of a frame.
        name: how messages call it.
        axes: how many axes it may have.
        dtype: of the result, in which it has to be finite; a compiled graph, which the question would break, does not
            ask, and decodes a row with such a value to others that are not finite.

    Raises:
        UserError: another type or shape, fewer than 4 frames, or values that are not finite.
    """
    if not isinstance(values, (Tensor, np.ndarray)):
        raise UserError(f"{name} must be a NumPy array or a tensor, got {type(values).__name__}")
    if values.ndim not in axes or values.shape[-1] != width:
        forms = " or ".join({2: f"(T, {width})", 3: f"(B, T, {width})"}[count] for count in axes)
        raise UserError(f"{name} must have the shape {forms}, got {tuple(values.shape)}{_remedy(values, width)}")
    if values.shape[-2] < MIN_FRAMES or values.shape[0] < 1:
        raise UserError(f"{name} must have at least {MIN_FRAMES} frames, got the shape {tuple(values.shape)}")
    checked = _tensor(values, name)
    if checked.is_complex():
        raise UserError(f"{name} must hold real numbers, got {checked.dtype}")
    checked = checked.to(dtype)
    finite = checked.isfinite().all(dim=-1)
    if not torch.compiler.is_compiling() and not bool(finite.all()):
        where, form = (~finite).nonzero()[0].tolist(), str(dtype).removeprefix("torch.")
        raise UserError(
            f"{name} must be finite in {form}, but frame {where[-1]} is not ({int((~finite).sum())} such frames); "
            "cut them out or interpolate them"
        )
    return checked if checked.ndim == 3 else checked.unsqueeze(0)


def tokens(values: Tensor | np.ndarray, sizes: Sequence[int]) -> Tensor:
    """Valid tokens as (streams, B, T') int64.

    Args:
        values: (streams, B, T') or (streams, T') integers, each in [-1, size of its stream).
        sizes: codes of each stream of the model.

    Raises:
        UserError: another type or shape, or codes that the model does not have.
    """
    if not isinstance(values, (Tensor, np.ndarray)):
        raise UserError(f"tokens must be a tensor or a NumPy array, got {type(values).__name__}")
    checked = _tensor(values, "tokens")
    if checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool:
        raise UserError(f"tokens must be integers, got {checked.dtype}")
    checked = checked.long()
    if checked.ndim == 2:
        checked = checked.unsqueeze(1)
    if checked.ndim != 3 or checked.shape[0] != len(sizes) or 0 in checked.shape:
        raise UserError(
            f"tokens must have the shape ({len(sizes)}, B, T') and not be empty, got {tuple(values.shape)}"
        )
    low, high = checked.amin(dim=(1, 2)), checked.amax(dim=(1, 2))
    wrong = (low < -1) | (high >= torch.tensor(sizes, device=checked.device))
    if bool(wrong.any()):
        stream = int(wrong.int().argmax())
        where = f" of stream {stream}" if len(set(sizes)) > 1 else ""
        raise UserError(
            f"tokens{where} must lie in 0 to {sizes[stream] - 1}, or be -1 for a hole; got {int(low[stream])} to "
            f"{int(high[stream])}"
        )
    return checked


def _remedy(values: Motion, width: int) -> str:
    """What to do with features of another format, as the end of a message; nothing where it is none."""
    given, wanted = (FEATURE_FORMATS.get(one) for one in (values.shape[-1] if values.ndim else 0, width))
    if given is None or wanted is None or given is wanted:
        return ""
    return (
        f": these are {given.name} features, which a model that was trained on such takes; for this one make "
        f"{wanted.name} features of their joints"
    )


def _tensor(values: Motion, name: str) -> Tensor:
    """The values as a tensor; torch by itself takes no negative strides, no other byte order, and no long doubles,
    and warns of arrays that are read-only."""
    if isinstance(values, Tensor):
        return values
    if values.dtype.kind not in "fiubc":
        raise UserError(f"{name} must hold numbers, got {values.dtype}")
    wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if wide else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(values, dtype, ["C", "W"]))


def token_lengths(tokens: Tensor) -> Tensor:
    """(B,) how many positions of (streams, B, T') tokens come before the end: up to the last one that has a code."""
    present = (tokens >= 0).any(dim=0)
    position = torch.arange(1, tokens.shape[2] + 1, device=tokens.device)
    return (present * position).amax(dim=1)
