"""Stages with projections of their own (DAC, SNAC), and codes that are a linear map of frozen ones (SimVQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..projected import ProjectedResidualVQ
from ..rules import Learned
from ..sim_vq import ResidualSimVQ
from ..vector_quantize import VectorQuantize
from .keys import Tensors, join
from .trees import Tree, fill, plain, refuse_unless

# A projection's weight: whole, or as length and direction by the older and the newer form of weight norm.
WHOLE = ("weight",)
LENGTHS = ("weight_g", "weight_v")
PARAMETRIZED = ("parametrizations.weight.original0", "parametrizations.weight.original1")
SPELLINGS = (LENGTHS, PARAMETRIZED, WHOLE)
SIDES = (("in_proj", "project_in"), ("out_proj", "project_out"))


@dataclass(frozen=True, kw_only=True)
class Projected(Tree):
    """Stages of a codebook of raw codes and two convolutions of width 1: a ProjectedResidualVQ.

    Weight norm is kept where the file has it, so that training goes on as the source's would.

    Args:
        spelling: names by which a projection's weight is written; all three are read.
        strided: whether stages have strides, which the weights do not tell.
    """

    own = ("weight_norm",)

    spelling: tuple[str, ...]
    strided: bool = False

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        number = tensors.count("quantizers.{q}.")
        if self.strided and options.get("strides") is None:
            raise ValueError(
                f"the {tensors.layout} layout does not tell its strides: give strides=, one for each of {number} "
                "stages, or keep the config.json beside the weights; if they are DAC's, layout='dac-parametrized'"
            )
        state: dict[str, Tensor] = {}
        size = inner = outer = None
        keep, normed = options.pop("weight_norm", True), []
        for stage in range(number):
            codes = tensors.take(f"quantizers.{stage}.codebook.weight", size, inner)
            size, inner = codes.shape
            native = f"stages.{stage}."
            for theirs, ours in SIDES:
                shape = (inner, outer) if theirs == "in_proj" else (outer, inner)
                name = f"quantizers.{stage}.{theirs}"
                parts = self._weight(tensors, name, shape)
                if len(parts) == 2 and not keep:
                    lengths, directions = parts
                    parts = [directions * (lengths / directions.norm(dim=1, keepdim=True))]
                if len(parts) == 2:
                    normed.append(native + ours)
                outer = parts[-1].shape[1 if theirs == "in_proj" else 0]
                names = PARAMETRIZED if len(parts) == 2 else WHOLE
                state |= {f"{native}{ours}.{leaf}": part for leaf, part in zip(names, parts, strict=True)}
                state[f"{native}{ours}.bias"] = tensors.take(f"{name}.bias", parts[-1].shape[0])
            state |= {
                f"{native}codebooks.codebook": codes.unsqueeze(0),
                f"{native}codebooks.embed_sum": codes.unsqueeze(0),
                f"{native}codebooks.cluster_size": codes.new_ones(1, size),
                f"{native}codebooks.initted": torch.tensor(True),
            }
        if inner == outer:
            raise ValueError(
                f"codes of {inner} dimensions for {outer} channels: ProjectedResidualVQ has no projections then"
            )
        module = self.make(
            options,
            dim=outer,
            codebook_size=size,
            num_quantizers=number,
            codebook_dim=inner,
        )
        for name in normed:
            parametrizations.weight_norm(module.get_submodule(name))
        fill(module, state)
        return module

    def configured(self, options: dict[str, Any], config: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if not self.strided or options.get("strides") is not None:
            return options
        strides = config().get("vq_strides")
        return options if strides is None else {**options, "strides": strides}

    def _weight(self, tensors: Tensors, name: str, shape: tuple[int | None, int | None]) -> list[Tensor]:
        """The weight (outputs, inputs), after its lengths (outputs, 1) where it is kept as lengths and directions."""
        spelling = next((leaves for leaves in SPELLINGS if f"{name}.{leaves[0]}" in tensors), self.spelling)
        weight = tensors.take(f"{name}.{spelling[-1]}", *shape, 1)[..., 0]
        if len(spelling) == 1:
            return [weight]
        if not bool((weight != 0).any(-1).all()):
            raise ValueError(f"{join(tensors.root, name)}.{spelling[-1]} has a row of zeros, which has no direction")
        return [tensors.take(f"{name}.{spelling[0]}", len(weight), 1, 1)[..., 0], weight]

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, ProjectedResidualVQ)
        refuse_unless(
            self.strided or set(module.strides) == {1},
            f"this layout has no strides, got {module.strides}: use layout='snac'",
        )
        state: dict[str, Tensor] = {}
        sizes = [stage.codebook_size for stage in module.stages]
        refuse_unless(len(set(sizes)) == 1, f"this layout has equally many codes in all stages, got {sizes}")
        for number, stage in enumerate(module.stages):
            assert isinstance(stage, VectorQuantize)
            books = stage.codebooks
            refuse_unless(
                books.metric == "cosine" and isinstance(books.rules.update, Learned),
                "this layout has learned codes that are compared by angle, got metric "
                f"{books.metric!r} and {books.rules.update}",
            )
            for theirs, ours in SIDES:
                projection = getattr(stage, ours)
                refuse_unless(
                    isinstance(projection, nn.Linear),
                    "this layout has projections in every stage: give a module whose codebook_dim is not its dim",
                )
                name = f"quantizers.{number}.{theirs}"
                parts = split(projection) if len(self.spelling) == 2 else [projection.weight]
                state |= {
                    f"{name}.{leaf}": part.unsqueeze(-1) for leaf, part in zip(self.spelling, parts, strict=True)
                }
                state[f"{name}.bias"] = projection.bias
            state[f"quantizers.{number}.codebook.weight"] = books.codebook[0]
        return plain(state)


def split(projection: nn.Linear) -> list[Tensor]:
    """Lengths (outputs, 1) and directions (outputs, inputs) of a weight; those that it has, where it has them."""
    if parametrize.is_parametrized(projection, "weight"):
        kept = dict(projection.named_parameters())
        return [kept[name] for name in PARAMETRIZED]
    weight = projection.weight
    lengths = weight.norm(dim=1, keepdim=True)
    # Directions of zero length would make the weight NaN where it is zero.
    return [lengths, torch.where(lengths == 0, 1.0, weight)]


@dataclass(frozen=True, kw_only=True)
class FrozenMap(Tree):
    """Frozen codes and a linear map of them: a SimVQ, or for a stem with {q} a ResidualSimVQ."""

    stem: str = ""

    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        stages = tensors.count(self.stem) if self.stem else 1
        frozen: list[Tensor] = []
        state: dict[str, Tensor] = {}
        inner = size = outer = None
        for stage in range(stages):
            stem = self.stem.format(q=stage)
            frozen.append(tensors.take(join(stem, "frozen_codebook"), size, inner))
            size, inner = frozen[-1].shape
            weight = tensors.take(join(stem, "code_transform.weight"), outer, inner)
            outer, state[f"transforms.{stage}.weight"] = len(weight), weight
        sizes = {"num_quantizers": stages} if self.stem else {}
        module = self.make(options, dim=outer, codebook_size=size, frozen_dim=inner, **sizes)
        fill(module, state | {"frozen": torch.stack(frozen)})
        return module

    def write(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, ResidualSimVQ)
        state: dict[str, Tensor] = {}
        for stage, (frozen, transform) in enumerate(zip(module.frozen, module.transforms, strict=True)):
            if not isinstance(transform, nn.Linear) or transform.bias is not None:
                raise ValueError(
                    f"this layout maps codes by a linear layer without bias, got {type(transform).__name__}"
                )
            stem = self.stem.format(q=stage)
            state |= {join(stem, "frozen_codebook"): frozen, join(stem, "code_transform.weight"): transform.weight}
        return plain(state)
