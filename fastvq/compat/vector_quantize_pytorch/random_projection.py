"""RandomProjectionQuantizer under vector-quantize-pytorch's name (Chiu et al. 2022, BEST-RQ)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import validation as check
from . import layout
from .candidates import find
from .vector_quantize import VectorQuantize


class RandomProjectionQuantizer(nn.Module):
    """Labels every row by its nearest codes after fixed random projections; nothing is learned.

    The arguments and what comes back are vector-quantize-pytorch 1.32's. As there, ``vq`` searches behind a further
    linear layer where there are several codebooks, from codebook_dim * num_codebooks channels to num_codebooks times
    as many. Other than there, labels are made without recording gradients and without the codes and their
    projection back, and ``vq`` is in eval mode from the start and not from the first call.

    Args:
        dim: channels of the input.
        codebook_size: K.
        codebook_dim: channels of each projection.
        num_codebooks: labels for each row.
        norm: rows are brought to mean 0 and deviation 1 first.
        kwargs: of :class:`VectorQuantize`, but for the metric and the heads.

    Buffers:
        rand_projs (num_codebooks, dim, codebook_dim); those of ``vq``.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Chiu et al. 2022.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import RandomProjectionQuantizer
    >>> quantizer = RandomProjectionQuantizer(dim=64, num_codebooks=4, codebook_dim=16, codebook_size=128)
    >>> indices = quantizer(torch.randn(1, 100, 64))
    >>> indices.shape
    torch.Size([1, 100, 4])
    """

    rand_projs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("codebook_dim", codebook_dim), ("num_codebooks", num_codebooks)):
            check.positive(name, value)
        for name in ("heads", "use_cosine_sim", "separate_codebook_per_head"):
            if name in kwargs:
                raise ValueError(f"{name} is set by RandomProjectionQuantizer; leave it out, and give num_codebooks")
        self.dim, self.num_codebooks = dim, num_codebooks
        projections = torch.empty(num_codebooks, dim, codebook_dim)
        self.register_buffer("rand_projs", nn.init.xavier_normal_(projections))
        self.norm: nn.Module = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            codebook_size=codebook_size,
            heads=num_codebooks,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **kwargs,
        )
        self.vq.eval()

    def train(self, mode: bool = True) -> RandomProjectionQuantizer:
        """Sets the mode of all but ``vq``, which stays in eval mode."""
        super().train(mode)
        self.vq.eval()
        return self

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Labels rows.

        Args:
            x: (B, N, dim).
            indices: (B, N[, num_codebooks]), labels: return the cross-entropy of the codes' scores with them.

        Returns:
            int64 (B, N[, num_codebooks]), or with ``indices`` the cross-entropy, ().
        """
        check.floating("x", x)
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (B, N, {self.dim}), got shape {tuple(x.shape)}")
        with torch.set_grad_enabled(indices is not None and torch.is_grad_enabled()):
            rows = self.norm(x).unsqueeze(1) @ self.rand_projs.to(x.dtype)  # (B, H, N, E)
            rows = rows.transpose(1, 2).flatten(2)
            return self._labels(rows) if indices is None else self.vq(rows, indices=indices)[1]

    def _labels(self, rows: Tensor) -> Tensor:
        """What ``vq`` gives as indices, without the codes and the projection of them that nobody reads."""
        vq, book = self.vq, self.vq._codebook
        flat, where = vq._tokens(rows)
        wide = book.cast(vq._rows(flat))
        book.observe_(wide, None)
        indices = find(book.candidates(), wide, None).indices
        return where.restore_indices(layout.merge_indices(indices, vq.heads, vq.separate_codebook_per_head))
