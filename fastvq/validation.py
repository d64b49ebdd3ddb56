"""Every check of users' arguments, and every message: what, expected, got, remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

METRICS = ("l2", "cosine", "dot")
PRECISIONS = ("exact", "fast")
SMOOTHINGS = ("laplace", "none")


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def positive(name: str, value: object) -> None:
    """Raises TypeError or ValueError unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def unit_interval(name: str, value: float, *, closed: bool = True) -> None:
    """Raises ValueError unless 0 <= value <= 1 (< 1 where not ``closed``)."""
    if not (0 <= value <= 1) or (not closed and value == 1):
        raise ValueError(f"{name} must lie in [0, 1{']' if closed else ')'}, got {value}")


def not_negative(name: str, value: object) -> None:
    """Raises TypeError or ValueError unless ``value`` is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def above_zero(name: str, value: object) -> None:
    """Raises TypeError or ValueError unless ``value`` is a finite number above 0."""
    not_negative(name, value)
    if value == 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def floating(name: str, tensor: object) -> None:
    """Raises TypeError unless ``tensor`` is a float16, bfloat16, float32 or float64 tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; convert it first")


def integer(name: str, tensor: object) -> None:
    """Raises TypeError unless ``tensor`` is an int64 tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tensor.dtype}; convert with .long()")


def same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {listed}; move them with .to(device)")


def codebook_shape(codebook: Tensor, name: str = "codebook") -> None:
    """Raises ValueError unless the codebook is (K, D) or (G, K, D) with at least one code and one dimension."""
    if codebook.dim() not in (2, 3):
        raise ValueError(f"{name} must be (K, D) or (G, K, D), got shape {tuple(codebook.shape)}")
    if 0 in codebook.shape:
        raise ValueError(f"{name} must have at least one code of one dimension, got shape {tuple(codebook.shape)}")


def codebooks_shape(codebooks: Tensor, name: str = "codebooks") -> None:
    """Raises ValueError unless the stack is (Q, K, D) or (G, Q, K, D), without an empty axis."""
    if codebooks.dim() not in (3, 4) or 0 in codebooks.shape:
        raise ValueError(f"{name} must be (Q, K, D) or (G, Q, K, D), got shape {tuple(codebooks.shape)}")


def rows_shape(x: Tensor, codebook: Tensor, *, stack: bool = False) -> None:
    """Raises ValueError unless x is (*R, D), or (G, *R, D) for a grouped codebook, with one or two row axes.

    With ``stack`` the codebook is one of stages: (Q, K, D) or (G, Q, K, D).
    """
    grouped, name = codebook.dim() == (4 if stack else 3), "codebooks" if stack else "a codebook"
    expected = "(G, N, D) or (G, N1, N2, D)" if grouped else "(N, D) or (N1, N2, D)"
    if x.dim() - grouped not in (2, 3):
        raise ValueError(
            f"x must be {expected} beside {name} of shape {tuple(codebook.shape)}, got shape {tuple(x.shape)}; "
            "flatten further row axes"
        )
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            f"x must have the codebook's dimension {codebook.shape[-1]} last, got shape {tuple(x.shape)}"
        )
    if grouped and x.shape[0] != codebook.shape[0]:
        raise ValueError(f"x must have the codebook's {codebook.shape[0]} groups first, got shape {tuple(x.shape)}")


def double_agrees(x: Tensor, codebook: Tensor, name: str = "codebook") -> None:
    """Raises TypeError where one of the two is float64 and the other is not."""
    if (x.dtype == torch.float64) != (codebook.dtype == torch.float64):
        raise TypeError(
            f"x and {name} must both be float64 or neither, got {x.dtype} and {codebook.dtype}; convert one of them"
        )


def mask_shape(mask: Tensor | None, rows: Sequence[int], name: str = "mask") -> None:
    """Raises TypeError or ValueError unless mask is None or bool and broadcasts to the rows' shape."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor, True where a row is valid, got {got}")
    broadcasts(name, mask, rows)


def stages_shape(stages: Tensor | None, rows: Sequence[int]) -> None:
    """Raises TypeError or ValueError unless stages is None or int64 and broadcasts to the rows' shape."""
    if stages is None:
        return
    integer("stages", stages)
    broadcasts("stages", stages, rows)


def broadcasts(name: str, tensor: Tensor, rows: Sequence[int]) -> None:
    """Raises ValueError unless the tensor broadcasts to the rows' shape."""
    fits = tensor.dim() <= len(rows) and all(
        m == 1 or m == r for m, r in zip(reversed(tensor.shape), reversed(list(rows)), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to the rows {tuple(rows)}, got shape {tuple(tensor.shape)}")


def stage_sizes(sizes: Sequence[int] | None, depth: int, num_codes: int) -> None:
    """Raises TypeError or ValueError unless sizes is None or names for each stage how many of its codes count."""
    if sizes is None:
        return
    if isinstance(sizes, Tensor) or not isinstance(sizes, Sequence):
        raise TypeError(f"sizes must be a sequence of ints, one for each stage, got {type(sizes).__name__}")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"sizes must hold ints, got {type(size).__name__}")
    if len(sizes) != depth or not all(1 <= size <= num_codes for size in sizes):
        raise ValueError(
            f"sizes must hold {depth} ints in [1, {num_codes}], the codes of each stage that count, got {list(sizes)}"
        )


def equal_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Raises ValueError unless the tensor has exactly this shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(tensor.shape)}")
