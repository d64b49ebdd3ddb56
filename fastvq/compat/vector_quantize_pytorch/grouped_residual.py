"""GroupedResidualVQ with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import validation as check
from . import layout
from .residual import ResidualVQ
from .residual_stack import quantize_stacks


class GroupedResidualVQ(nn.Module):
    """Splits channels into groups with a :class:`ResidualVQ` each; a drop-in for the class of this name.

    Where :class:`ResidualVQ` finds all codes in one search, so do all groups together.

    Args:
        dim: channels of the input.
        groups: G; divides dim.
        accept_image_fmap: (B, C, H, W).
        kwargs: of :class:`ResidualVQ`.

    Buffers:
        those of :class:`ResidualVQ` under ``rvqs.g.``.

    Raises:
        TypeError, ValueError: options that exclude one another, shapes that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Yang et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import GroupedResidualVQ
    >>> residual_vq = GroupedResidualVQ(dim=256, num_quantizers=8, groups=2, codebook_size=1024)
    >>> quantized, indices, loss = residual_vq(torch.randn(1, 1024, 256))
    >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
    ((1, 1024, 256), (2, 1, 1024, 8), (2, 8))
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__()
        check.positive("groups", groups)
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got dim={dim} and groups={groups}")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(
            ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs) for _ in range(groups)
        )

    def stacks(self) -> list[ResidualVQ]:
        """The residual quantizers of the groups."""
        return list(self.rvqs)  # type: ignore[arg-type]

    @property
    def codebooks(self) -> Tensor | tuple[tuple[Tensor, ...], ...]:
        """The codes, (G, Q, K, D); tuples of tuples of (K, D) where sizes differ."""
        books = tuple(rvq.codebooks for rvq in self.stacks())
        if all(isinstance(book, Tensor) for book in books):
            return torch.stack(books)  # type: ignore[arg-type]
        return books  # type: ignore[return-value]

    @property
    def split_dim(self) -> int:
        """The axis of the channels."""
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, q) -> each stage's codes (G, Q, B, *R, D), before ``project_out``; -1 gives 0."""
        return torch.stack(
            [rvq.get_codes_from_indices(part) for rvq, part in zip(self.stacks(), indices, strict=True)]
        )

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, q) -> what they quantize to, channels where the input has them."""
        parts = [rvq.get_output_from_indices(part) for rvq, part in zip(self.stacks(), indices, strict=True)]
        out = torch.cat(parts, -1)
        return out.movedim(-1, 1) if self.accept_image_fmap else out

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: (B, N, C), (B, C), or (B, C, H, W). mask: (B, N) bool, True where valid.
            indices, return_all_codes, sample_codebook_temp, freeze_codebook: as for :class:`ResidualVQ`.

        Returns:
            quantized as x; indices (G, *R, Q); losses (G, Q); codes (G, Q, *R, D), a tuple of G, on request.
            With ``indices`` quantized and the sum of the cross-entropies.
        """
        if x.shape[self.split_dim] != self.dim:
            raise ValueError(f"x must have {self.dim} channels on axis {self.split_dim}, got shape {tuple(x.shape)}")
        stacks = self.stacks()
        first = stacks[0]
        chunks = x.chunk(self.groups, self.split_dim)
        given = () if indices is None else tuple(indices)
        if given and len(given) != self.groups:
            raise ValueError(f"indices must be ({self.groups}, *R, Q), got {len(given)} groups")
        together = not given and all(rvq.fits(sample_codebook_temp) for rvq in stacks) and first.beam(None) == 1
        depth = first.depth(x.device, None, traced=together)
        if together:
            return self._together(x, mask, depth, freeze_codebook, return_all_codes)
        each = [
            rvq(
                chunk,
                mask=mask,
                indices=given[group] if given else None,
                return_all_codes=return_all_codes,
                sample_codebook_temp=sample_codebook_temp,
                freeze_codebook=freeze_codebook,
                stages_taken=depth,
            )
            for group, (rvq, chunk) in enumerate(zip(stacks, chunks, strict=True))
        ]
        if given:
            return torch.cat([part[0] for part in each], self.split_dim), sum(part[1] for part in each)
        parts: list[Any] = list(zip(*each, strict=True))
        return (torch.cat(parts[0], self.split_dim), torch.stack(parts[1]), torch.stack(parts[2]), *parts[3:])

    def _together(
        self, x: Tensor, mask: Tensor | None, depth: int | Tensor | None, freeze: bool | None, return_all_codes: bool
    ) -> tuple[Any, ...]:
        """``forward`` with all groups and stages in one search."""
        stacks = self.stacks()
        first = stacks[0]
        flat, where = layout.tokens(x, first=False, image=self.accept_image_fmap, volume=False)
        rows = layout.split_heads(flat, self.groups, True)
        if first.has_projections:
            rows = torch.stack([rvq.project_in(part) for rvq, part in zip(stacks, rows, strict=True)]).to(flat.dtype)
        valid = layout.valid_tokens(mask, None, where, flat.shape[1])
        stages = [rvq.stages() for rvq in stacks]
        total, codes, losses = quantize_stacks(stages, rows, valid, first.options(freeze), depth=depth)
        total = first.reparametrised(rows, total)
        parts = [rvq.project_out(part) for rvq, part in zip(stacks, total, strict=True)]
        quantized = torch.cat(parts, -1)
        if valid is not None:
            rest = 0 if first.return_zeros_for_masked_padding else flat
            quantized = torch.where(valid.unsqueeze(-1), quantized, rest)
        codes = codes.reshape(self.groups, *where.shape, codes.shape[-1])
        out = where.restore(quantized), codes, losses
        return (*out, tuple(self.get_codes_from_indices(codes))) if return_all_codes else out
