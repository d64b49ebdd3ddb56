"""One codebook among a file's names, and among a native module's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ..residual_codebook import ResidualCodebook
from ..rules import Learned
from ..state import CodebookState
from .keys import Tensors, join


class Book(NamedTuple):
    """One codebook: codes and sums (H, K, D), sizes (H, K), H its heads or 1; and whether it began from data."""

    codes: Tensor
    sums: Tensor
    sizes: Tensor
    initted: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, sums and sizes."""
        return self.codes, self.sums, self.sizes

    def map(self, change: Callable[[Tensor], Tensor]) -> Book:
        """The same with all three tensors changed."""
        return Book(change(self.codes), change(self.sums), change(self.sizes), self.initted)

    def heads(self) -> list[Book]:
        """Each head's, with an axis of one head."""
        return [self.map(itemgetter(slice(head, head + 1))) for head in range(len(self.codes))]


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """Names of a codebook's tensors, relative to it.

    Args:
        codes: the codes; "" where the codebook is itself a tensor; None where codes are sums over sizes.
        sums, sizes: the moving averages; None where the layout does not keep them: sums are then the codes, sizes 1.
        flag: whether the codes began from data; None: they did.
        flag_shape, flag_dtype: of that flag.
        heads: whether a leading axis counts heads; files without it are read too.
        floor: least size by which sums are divided.
        older: other names that the layout had.
    """

    codes: str | None
    sums: str | None = None
    sizes: str | None = None
    flag: str | None = None
    flag_shape: tuple[int, ...] = (1,)
    flag_dtype: torch.dtype = torch.float32
    heads: bool = False
    floor: float = 1e-5
    older: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def read(self, tensors: Tensors, stem: str, size: int | None = None, dim: int | None = None) -> Book:
        """The codebook at ``stem``, of so many codes and dimensions where they are known."""

        def found(name: str) -> str:
            known = (join(stem, other) for other in (name, *self.older.get(name, ())))
            return next((other for other in known if other in tensors), join(stem, name))

        main = self.sums if self.codes is None else self.codes
        assert main is not None
        headed = self.heads and found(main) in tensors and tensors.state[found(main)].dim() == 3
        lead = (None,) if headed else ()
        table = tensors.take(found(main), *lead, size, dim)
        shape = table.shape
        sums = table if self.sums in (None, main) else tensors.take(found(str(self.sums)), *shape)
        if self.sizes is None:
            sizes = torch.ones(shape[:-1], dtype=table.dtype)
        else:
            sizes = tensors.take(found(self.sizes), *shape[:-1])
        codes = table if self.codes is not None else over(sums, sizes, self.floor)
        if not bool(codes.isfinite().all()):
            raise ValueError(f"{join(tensors.root, stem)} has codes that are not finite, its sums over its sizes")
        if not headed:
            codes, sums, sizes = codes.unsqueeze(0), sums.unsqueeze(0), sizes.unsqueeze(0)
        return Book(codes, sums, sizes, self.flag is None or tensors.flag(found(self.flag)))

    def write(self, book: Book, stem: str) -> dict[str, Tensor]:
        """The tensors of the codebook by name.

        Where the layout has no codes of their own, and the sums over the sizes are not exactly these codes, the
        sizes are rounded to powers of two and the sums made from them, so that the codes do not change.
        """
        if not self.heads:
            book = book.map(itemgetter(0))
        codes, sums, sizes, initted = book
        if self.codes is None:
            kept = (over(sums, sizes, self.floor) == codes).all(-1)
            round_sizes = sizes.clamp_min(2 * self.floor).log2().round().exp2()
            sizes = torch.where(kept, sizes, round_sizes)
            sums = torch.where(kept.unsqueeze(-1), sums, codes * sizes.unsqueeze(-1))
        parts = {self.flag: torch.full(self.flag_shape, float(initted)).to(self.flag_dtype), self.sizes: sizes}
        parts |= {self.codes: codes, self.sums: sums}
        return {join(stem, name): tensor for name, tensor in parts.items() if name is not None}


def over(sums: Tensor, sizes: Tensor, floor: float) -> Tensor:
    """Codes as sums over sizes, in at least float32."""
    wide = torch.promote_types(sums.dtype, torch.float32)
    return sums.to(wide) / sizes.to(wide).clamp(min=floor).unsqueeze(-1)


def sizes_of(stacks: list[list[Book]]) -> int | tuple[int, ...]:
    """K, or where stages differ one for each."""
    sizes = tuple(book.codes.shape[1] for book in stacks[0])
    return sizes[0] if len(set(sizes)) == 1 else sizes


def same(one: Book, other: Book) -> bool:
    """Whether two codebooks are equal, with all that belongs to them."""
    return one.initted == other.initted and all(
        torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True)
    )


def state_of(stacks: list[list[Book]], *, shared: bool = False, flat: bool = False) -> dict[str, Tensor]:
    """Groups of stages as the state of a Codebook (``flat``: one stage) or of a ResidualCodebook.

    Raises:
        ValueError: some stages have begun from data and some have not.
    """
    begun = [book.initted for books in stacks for book in books]
    if len(set(begun)) > 1:
        raise ValueError(
            f"stage {begun.index(False)} has not begun from data, but others have; train until all stages are in use"
        )
    if shared:
        stacks = [books[:1] for books in stacks]
    largest = max(book.codes.shape[1] for book in stacks[0])

    def stacked(part: int) -> Tensor:
        rows = []
        for books in stacks:
            tensors = [book.tensors[part][0] for book in books]
            padded = [
                torch.cat([tensor, tensor.new_zeros(largest - len(tensor), *tensor.shape[1:])]) for tensor in tensors
            ]
            rows.append(padded[0] if flat else torch.stack(padded))
        return torch.stack(rows)

    return {
        "codebooks.codebook": stacked(0),
        "codebooks.embed_sum": stacked(1),
        "codebooks.cluster_size": stacked(2),
        "codebooks.initted": torch.tensor(all(begun)),
    }


def books_of(state: CodebookState) -> list[list[Book]]:
    """The groups of stages of a native codebook. Learned codes have no sums of their own; codes by sizes stand in."""
    codes, sums, sizes = state.codebook.detach(), state.embed_sum, state.cluster_size
    if isinstance(state.rules.update, Learned):
        sums = codes * sizes.unsqueeze(-1)
    if not isinstance(state, ResidualCodebook):
        codes, sums, sizes = codes.unsqueeze(1), sums.unsqueeze(1), sizes.unsqueeze(1)
        limits: tuple[int, ...] = (state.codebook_size,)
    else:
        lead = (state.groups, state.num_quantizers)
        codes, sums = codes.expand(*lead, -1, -1), sums.expand(*lead, -1, -1)
        sizes = sizes.expand(*lead, -1)
        limits = state.sizes or (state.codebook_size,) * state.num_quantizers
    begun = bool(state.initted)

    whole = Book(codes, sums, sizes, begun)
    return [
        [whole.map(itemgetter((slice(group, group + 1), stage, slice(size)))) for stage, size in enumerate(limits)]
        for group in range(len(codes))
    ]
