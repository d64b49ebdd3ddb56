"""Codes as bits: ceil(log2(K + 1)) of them a code, least significant first; K stands for a hole.

Where the codes along the last axis are of codebooks of several sizes, each takes the bits of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import validation as check


def code_bits(codebook_size: int) -> int:
    """Bits of a code of a codebook of K: enough for K codes and the hole."""
    check.positive("codebook_size", codebook_size)
    if codebook_size >= 2**32:
        raise ValueError(f"codebook_size must be below 2**32, got {codebook_size}")
    return codebook_size.bit_length()


def pack_codes(indices: Tensor, codebook_size: int | Sequence[int]) -> Tensor:
    """Packs indices into bytes, in memory order of the shape, without gaps; the last byte is filled with zeros.

    Args:
        indices: any shape, int64 in [-1, K); -1 is a hole.
        codebook_size: K, or one for each place of the last axis.

    Returns:
        uint8, 1-D, on the CPU.

    Raises:
        ValueError: an index outside the range, or sizes that are not as many as the last axis is long.
    """
    check.integer("indices", indices)
    sizes, taken = _bit_table(codebook_size, indices.shape)
    rows = indices.reshape(-1, len(sizes)).cpu().numpy()
    wrong = ((rows < -1) | (rows >= sizes)).any(axis=0)
    if wrong.any():
        place = int(wrong.argmax())
        found = rows[:, place]
        raise ValueError(f"indices must lie in [-1, {sizes[place]}), got {found.min()} to {found.max()}")
    values = np.ascontiguousarray(np.where(rows < 0, sizes, rows).astype("<u4"))
    unpacked = np.unpackbits(values.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return torch.from_numpy(np.packbits(unpacked.reshape(-1, *taken.shape)[:, taken], bitorder="little"))


def unpack_codes(packed: Tensor, codebook_size: int | Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_codes`.

    Args:
        packed: uint8, 1-D.
        codebook_size: K, or one for each place of the last axis.
        shape: of the indices.

    Returns:
        int64 of that shape, on the CPU; holes are -1.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a value above K.
    """
    sizes, taken = _bit_table(codebook_size, shape)
    number, bits = math.prod(shape) // len(sizes), int(taken.sum())
    expected = (number * bits + 7) // 8
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise ValueError(
            f"packed must be {expected} uint8 values for {number} times {bits} bits, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    flat = np.unpackbits(packed.cpu().numpy(), count=number * bits, bitorder="little").reshape(number, bits)
    weights = np.broadcast_to(1 << np.arange(32, dtype=np.int64), taken.shape)[taken]
    starts = np.append(0, taken.sum(axis=1).cumsum()[:-1])
    values = np.add.reduceat(flat * weights, starts, axis=1)
    if (values > sizes).any():
        row, column = np.argwhere(values > sizes)[0]
        raise ValueError(
            f"packed holds code {values[row, column]}, above the hole {sizes[column]}: the data is damaged"
        )
    return torch.from_numpy(np.where(values == sizes, -1, values).reshape(tuple(shape)))


def _bit_table(codebook_size: int | Sequence[int], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(S,) sizes and (S, 32) which of 32 bits, the lowest first, a code takes; S = 1 where all codes are alike."""
    sizes = list(codebook_size) if isinstance(codebook_size, Sequence) else [codebook_size]
    bits = [code_bits(size) for size in sizes]
    if isinstance(codebook_size, Sequence) and tuple(shape[-1:]) != (len(sizes),):
        raise ValueError(
            f"codebook_size must hold one size for each place of the last axis, got {len(sizes)} for the shape "
            f"{tuple(shape)}"
        )
    return np.array(sizes, dtype=np.int64), np.arange(32) < np.array(bits)[:, None]
