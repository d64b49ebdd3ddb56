"""What users reach for on a quantizer besides calling it: its codes, look-up by index, updates by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import functional as F
from . import layout
from .codebook import Codebook
from .layout import Layout


class CodebookAccess(nn.Module):
    """A codebook behind projections, heads and a layout of the input; :class:`VectorQuantize` makes its parts."""

    _codebook: Codebook
    project_in: nn.Module
    project_out: nn.Module
    dim: int
    heads: int
    codebook_size: int
    separate_codebook_per_head: bool
    use_cosine_sim: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool
    return_zeros_for_masked_padding: bool

    @property
    def ema_update(self) -> bool:
        """Whether codes follow the moving averages of their rows."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes: (K, D), with separate codebooks (H, K, D). Assign a tensor of that shape to set them."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        with torch.no_grad():
            self._codebook.embed.copy_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R), with heads (B, *R, H) -> codes, heads side by side, before ``project_out``, channels where
        the input has them; -1 gives zeros.

        A codebook that heads share gives (B, *R, H, D), as the original does.
        """
        several = self.separate_codebook_per_head
        flat = indices.flatten(0, -2).T.unsqueeze(1) if several else indices.reshape(1, 1, -1)
        codes = F.lookup(flat.unsqueeze(-1), self._codebook.embed.unsqueeze(1))
        if several:
            codes = codes[:, 0].transpose(0, 1).reshape(*indices.shape[:-1], -1)
        else:
            codes = codes.view(*indices.shape, -1)
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        return codes.movedim(-1, 1) if first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices as ``forward`` returns them -> what it quantized to, channels where the input has them."""
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        codes = self.get_codes_from_indices(indices)
        if first:
            codes = codes.movedim(1, -1)
        if self.heads > 1 and not self.separate_codebook_per_head:
            codes = codes.flatten(-2)
        out: Tensor = self.project_out(codes)
        return out.movedim(-1, 1) if first else out

    def maybe_split_heads_from_input(self, x: Tensor) -> Tensor:
        """(B, N, H * D) -> (H, B, N, D) or (1, B * H, N, D); x itself for one head."""
        if self.heads == 1:
            return x
        batch, number, width = x.shape
        split = x.view(batch, number, self.heads, width // self.heads)
        if self.separate_codebook_per_head:
            return split.permute(2, 0, 1, 3)
        return split.transpose(1, 2).flatten(0, 1).unsqueeze(0)

    def expire_codes_(self, x: Tensor) -> None:
        """Replaces dead codes by rows of x (B, N, heads * D), as after ``project_in``."""
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        rows = layout.split_heads(x, self.heads, self.separate_codebook_per_head)
        self._codebook.expire_codes_(self._codebook.transform_input(rows))

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """One update of the codebook as if inputs x had taken these indices.

        Args:
            x, mask: as for ``forward``. indices: as it returns them.
        """
        flat, where = self._tokens(x)
        rows = self._rows(flat)
        indices = indices.reshape(*flat.shape[:2], *((self.heads,) if self.heads > 1 else ()))
        indices = layout.split_indices(indices, self.heads, self.separate_codebook_per_head)
        valid = layout.valid_tokens(mask, None, where, flat.shape[1])
        valid = layout.head_mask(valid, self.heads, self.separate_codebook_per_head)
        self._codebook.update_indices(rows.detach(), indices, valid)

    update_ema_indices = update_indices

    def _tokens(self, x: Tensor) -> tuple[Tensor, Layout]:
        """x as (B, N, C), and its layout."""
        return self._tokens_of(x, self.dim)

    def _tokens_of(self, x: Tensor, dim: int) -> tuple[Tensor, Layout]:
        """The same for inputs of another number of channels."""
        flat, where = layout.tokens(
            x, first=not self.channel_last, image=self.accept_image_fmap, volume=self.accept_3d_fmap
        )
        if flat.shape[-1] != dim:
            raise ValueError(
                f"x must have {dim} channels {'after the batch' if where.first else 'last'}, "
                f"got shape {tuple(x.shape)}"
            )
        return flat, where

    def _rows(self, x: Tensor) -> Tensor:
        """x (B, N, C) projected, split into heads, and for cosine codebooks normalised: (H, R1, R2, D)."""
        rows = layout.split_heads(self.project_in(x), self.heads, self.separate_codebook_per_head)
        if not self.use_cosine_sim:
            return rows.to(x.dtype)
        wide = rows if rows.dtype == torch.float64 else rows.float()
        return self._codebook.transform_input(wide).to(x.dtype)

    def _output(self, quantized: Tensor, x: Tensor, where: Layout, mask: Tensor | None) -> Tensor:
        """Rows (H, R1, R2, D) or (1, B, N, k, D) as the input was laid out, projected out and masked."""
        merged = layout.merge_heads(quantized, self.heads, self.separate_codebook_per_head)
        out = self.project_out(merged)
        if mask is not None:
            mask = mask.view(*mask.shape, *(1 for _ in range(out.dim() - mask.dim())))
            rest = x if out.dim() == 3 else x.unsqueeze(-2)
            out = torch.where(mask, out, 0 if self.return_zeros_for_masked_padding else rest)
        return where.restore(out)
