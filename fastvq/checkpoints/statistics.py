"""Codebooks with their moving averages, one or in stacks: EnCodec, Mimi, MoMask, T2M-GPT, vector-quantize-pytorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..channels import ChannelGroups
from ..grouped import GroupedVQ
from ..residual import GroupedResidualVQ
from ..split import SplitResidualVQ
from .books import Book, Leaves, books_of, same, sizes_of, state_of
from .keys import Tensors, join
from .trees import Tree, fill, linear, plain, prefixed, refuse_unless


@dataclass(frozen=True, kw_only=True)
class Codebooks(Tree):
    """What the trees below have in common.

    Args:
        stem: where a codebook is, {q} its stage and {g} its group.
        leaves: its tensors.
        projections: whether there may be linear layers ``project_in`` and ``project_out`` before and after.
        mixed: whether stages may have different numbers of codes.
        shareable: whether stages that are equal are one codebook that all use.
        metrics: by which codes may be compared; the file does not say.
    """

    stem: str
    leaves: Leaves
    projections: bool = False
    mixed: bool = False
    shareable: bool = False
    metrics: tuple[str, ...] = ("l2",)

    def stack(self, tensors: Tensors, stem: str, dim: int | None = None) -> list[Book]:
        """The stages of a stem with {q}, of one dimension."""
        books: list[Book] = []
        for stage in range(tensors.count(stem)):
            size = None if self.mixed or not books else books[0].codes.shape[1]
            if books:
                dim = books[0].codes.shape[2]
            books.append(self.leaves.read(tensors, stem.format(q=stage), size, dim))
            if books[-1].codes.shape[0] > 1:
                raise ValueError(
                    f"{join(tensors.root, stem.format(q=stage))} has {books[-1].codes.shape[0]} heads, "
                    "but stages have one"
                )
        return books

    def projected(self, tensors: Tensors, books: list[Book]) -> dict[str, Tensor]:
        """The linear layers before and after, if there are any, by native names."""
        if not self.projections or "project_in.weight" not in tensors:
            return {}
        before = linear(tensors, "project_in", None, None)
        inner, dim = before["weight"].shape
        if inner % books[0].codes.shape[2]:
            raise ValueError(
                f"{join(tensors.root, 'project_in.weight')} must have a multiple of {books[0].codes.shape[2]} rows, "
                f"the dimension of the codes, got {inner}"
            )
        after = linear(tensors, "project_out", dim, inner)
        return prefixed("project_in", before) | prefixed("project_out", after)

    def is_shared(self, stacks: list[list[Book]], options: dict[str, Any]) -> bool:
        """Whether all stages use one codebook: as the user says, or where they are equal and have begun from data."""
        equal = all(same(book, books[0]) for books in stacks for book in books)
        given = options.pop("shared", None)
        if given and not equal:
            raise ValueError("shared=True needs stages that are all equal, but they differ; leave it out")
        if given is not None:
            return bool(given)
        # Stages that nothing has filled yet are equal too, all zero.
        begun = all(books[0].initted and bool(books[0].codes.any()) for books in stacks)
        return self.shareable and len(stacks[0]) > 1 and equal and begun

    def checked(self, module: GroupedVQ | GroupedResidualVQ) -> None:
        """Raises ValueError where the module has what the tree has no names for."""
        metric = module.codebooks.metric
        refuse_unless(
            metric in self.metrics,
            f"this layout compares codes by {' or '.join(self.metrics)}, but the module's metric is {metric!r}",
        )
        refuse_unless(
            self.projections or isinstance(module.project_in, nn.Identity),
            f"this layout has no place for projections: give a module whose codebook_dim is its dim, got "
            f"{module.codebook_dim} and {module.dim}",
        )

    def projections_of(self, module: ChannelGroups) -> dict[str, Tensor]:
        """The linear layers of a module by name."""
        return {name: tensor for name, tensor in module.state_dict().items() if name.startswith("project_")}


@dataclass(frozen=True, kw_only=True)
class Single(Codebooks):
    """One codebook: a VectorQuantize, or with a codebook for each head a GroupedVQ."""

    def writes(self, kind: type) -> bool:
        return kind is self.native or (self.leaves.heads and kind is GroupedVQ)

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        book = self.leaves.read(tensors, self.stem)
        lead, size, dim = book.codes.shape
        projections = self.projected(tensors, [book])
        outer = projections["project_in.weight"].shape[1] if projections else None
        inner = projections["project_in.weight"].shape[0] if projections else None
        if "metric" in options and options["metric"] not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}, got {options['metric']!r}")
        if lead > 1:
            grouped = replace(self, native=GroupedVQ)
            if inner not in (None, lead * dim):
                raise ValueError(f"project_in.weight must have {lead * dim} rows, {lead} heads of {dim}, got {inner}")
            module = grouped.make(options, dim=outer or lead * dim, codebook_size=size, groups=lead, codebook_dim=dim)
        else:
            heads = options.pop("heads", None)
            if inner is not None:
                if heads not in (None, inner // dim):
                    raise ValueError(f"heads must be {inner // dim} by the file's projections, got {heads}")
                heads = inner // dim
            heads = 1 if heads is None else heads
            module = self.make(options, dim=outer or heads * dim, codebook_size=size, heads=heads, codebook_dim=dim)
        fill(module, projections | state_of([[head] for head in book.heads()], flat=True))
        return module

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, GroupedVQ)
        self.checked(module)
        books = [stack[0] for stack in books_of(module.codebooks)]
        refuse_unless(
            self.leaves.heads or (len(books) == 1 and module.heads == 1),
            f"this layout has one codebook and no heads, got {len(books)} groups and {module.heads} heads",
        )
        codes, sums, sizes = (torch.cat(parts) for parts in zip(*(book.tensors for book in books), strict=True))
        joined = Book(codes, sums, sizes, books[0].initted)
        return plain(self.projections_of(module) | self.leaves.write(joined, self.stem))


@dataclass(frozen=True, kw_only=True)
class Stack(Codebooks):
    """A stack of stages: a ResidualVQ."""

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        books = self.stack(tensors, self.stem)
        projections = self.projected(tensors, books)
        dim = books[0].codes.shape[2]
        if projections and projections["project_in.weight"].shape[0] != dim:
            raise ValueError(
                f"{join(tensors.root, 'project_in.weight')} must have {dim} rows, the dimension of the codes, got "
                f"{projections['project_in.weight'].shape[0]}"
            )
        outer = projections["project_in.weight"].shape[1] if projections else dim
        shared = self.is_shared([books], options)
        module = self.make(
            options,
            dim=outer,
            codebook_size=sizes_of([books]),
            num_quantizers=len(books),
            codebook_dim=dim,
            shared=shared,
        )
        fill(module, projections | state_of([books], shared=shared))
        return module

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, GroupedResidualVQ)
        self.checked(module)
        (books,) = books_of(module.codebooks)
        refuse_unless(
            self.mixed or len({book.codes.shape for book in books}) == 1,
            "this layout has equally many codes in all stages, got "
            f"{', '.join(str(book.codes.shape[1]) for book in books)}",
        )
        state = self.projections_of(module)
        for stage, book in enumerate(books):
            state |= self.leaves.write(book, self.stem.format(q=stage))
        return plain(state)


@dataclass(frozen=True, kw_only=True)
class Groups(Codebooks):
    """Groups of stacks: a GroupedResidualVQ."""

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        group = self.stem.partition("{g}")
        number = tensors.count(group[0] + "{q}.")
        if any(f"{group[0]}{index}.project_in.weight" in tensors for index in range(number)):
            raise ValueError(
                f"the groups at {tensors.root or 'the top'} have projections of their own, which GroupedResidualVQ "
                f"does not; load each as a ResidualVQ, with prefix={join(tensors.root, group[0] + '0')!r} and so on"
            )
        stacks: list[list[Book]] = []
        for index in range(number):
            dim = stacks[0][0].codes.shape[2] if stacks else None
            stacks.append(self.stack(tensors, self.stem.replace("{g}", str(index)), dim))
        shapes = {tuple(book.codes.shape[1] for book in books) for books in stacks}
        if len(shapes) > 1:
            raise ValueError(
                f"all groups must have the same stages, got codes {', '.join(map(str, sorted(shapes)))}; "
                "load each as a ResidualVQ by its prefix"
            )
        shared = self.is_shared(stacks, options)
        module = self.make(
            options,
            dim=number * stacks[0][0].codes.shape[2],
            codebook_size=sizes_of(stacks),
            groups=number,
            num_quantizers=len(stacks[0]),
            shared=shared,
        )
        fill(module, state_of(stacks, shared=shared))
        return module

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, GroupedResidualVQ)
        self.checked(module)
        state: dict[str, Tensor] = {}
        for index, books in enumerate(books_of(module.codebooks)):
            for stage, book in enumerate(books):
                state |= self.leaves.write(book, self.stem.format(g=index, q=stage))
        return plain(state)


@dataclass(frozen=True, kw_only=True)
class Split(Codebooks):
    """Two stacks on one input, with projections without bias that are convolutions of width 1: a SplitResidualVQ.

    Args:
        parts: names of the stacks.
    """

    parts: tuple[str, ...]

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        stacks: list[list[Book]] = []
        state: dict[str, Tensor] = {}
        outer = None
        project = any(f"{part}.input_proj.weight" in tensors for part in self.parts)
        for index, part in enumerate(self.parts):
            first = stacks[0][0].codes.shape[1:] if stacks else (None, None)
            stacks.append(self.stack(tensors, f"{part}.{self.stem}", first[1]))
            size, dim = stacks[-1][0].codes.shape[1:]
            if first[0] not in (None, size):
                raise ValueError(f"all parts must have equally many codes, got {first[0]} and {size} in {part}")
            if project:
                before = tensors.take(f"{part}.input_proj.weight", dim, outer, 1)
                outer = before.shape[1]
                after = tensors.take(f"{part}.output_proj.weight", outer, dim, 1)
                state |= {f"project_in.{index}.weight": before[..., 0], f"project_out.{index}.weight": after[..., 0]}
            state |= prefixed(f"parts.{index}", state_of([stacks[-1]]))
        module = self.make(
            options,
            dim=dim if outer is None else outer,
            codebook_size=stacks[0][0].codes.shape[1],
            num_quantizers=tuple(len(books) for books in stacks),
            codebook_dim=dim,
            project=project,
        )
        fill(module, state)
        return module

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, SplitResidualVQ)
        refuse_unless(
            len(module.parts) == len(self.parts),
            f"this layout has the parts {' and '.join(self.parts)}, got {len(module.parts)}",
        )
        state: dict[str, Tensor] = {}
        for index, part in enumerate(self.parts):
            before, after = module.project_in[index], module.project_out[index]
            if isinstance(before, nn.Linear) and isinstance(after, nn.Linear):
                state[f"{part}.input_proj.weight"] = before.weight.unsqueeze(-1)
                state[f"{part}.output_proj.weight"] = after.weight.unsqueeze(-1)
            stack = module.parts[index]
            assert isinstance(stack, GroupedResidualVQ)
            for stage, book in enumerate(books_of(stack.codebooks)[0]):
                state |= self.leaves.write(book, f"{part}.{self.stem.format(q=stage)}")
        return plain(state)
