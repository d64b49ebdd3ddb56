"""Codes as bits: ceil(log2(K + 1)) of them a code, least significant first; K stands for a hole."""

from __future__ import annotations

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


def pack_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Packs indices into bytes, in memory order of the shape, without gaps; the last byte is filled with zeros.

    Args:
        indices: any shape, int64 in [-1, K); -1 is a hole.
        codebook_size: K.

    Returns:
        uint8, 1-D, on the CPU.

    Raises:
        ValueError: an index outside the range.
    """
    check.integer("indices", indices)
    bits = code_bits(codebook_size)
    flat = indices.reshape(-1).cpu().numpy()
    if flat.size and (flat.min() < -1 or flat.max() >= codebook_size):
        raise ValueError(f"indices must lie in [-1, {codebook_size}), got {int(flat.min())} to {int(flat.max())}")
    values = np.where(flat < 0, codebook_size, flat).astype("<u4")
    unpacked = np.unpackbits(values.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(unpacked.reshape(-1), bitorder="little"))


def unpack_codes(packed: Tensor, codebook_size: int, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_codes`.

    Args:
        packed: uint8, 1-D.
        codebook_size: K.
        shape: of the indices.

    Returns:
        int64 of that shape, on the CPU; holes are -1.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a value above K.
    """
    bits = code_bits(codebook_size)
    number = int(np.prod(shape, dtype=np.int64))
    expected = (number * bits + 7) // 8
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise ValueError(
            f"packed must be {expected} uint8 values for {number} codes of {bits} bits, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    flat = np.unpackbits(packed.cpu().numpy(), count=number * bits, bitorder="little").reshape(number, bits)
    values = flat.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))
    if number and values.max() > codebook_size:
        raise ValueError(
            f"packed holds code {int(values.max())}, above the hole {codebook_size}: the data is damaged"
        )
    return torch.from_numpy(np.where(values == codebook_size, -1, values).reshape(tuple(shape)))
