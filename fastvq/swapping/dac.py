"""DAC and SNAC: stages that search a few projected dimensions by angle, in their own packages and in transformers.

A stage i sees latents W_i r_i + b_i with r_i = z - sum over j < i of (O_j c_j + o_j), c_j being the chosen codes.
Outside training a stack therefore never forms r_i in its many channels: one product gives all W_i z, and with
M_ij = W_i O_j, a matrix of a few dimensions,

    latents_i = W_i z + (b_i - sum_j W_i o_j) - sum_j M_ij c_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .fusing import Fused, Memory, matching, wide


class DacStage(Fused):
    """One stage of DAC or SNAC"""

    names = ("VectorQuantize", "DacVectorQuantize")
    attributes = ("decode_latents", "in_proj", "out_proj", "codebook", "codebook_dim")
    codebook: nn.Embedding

    def decode_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, T) -> the codes (B, D, T), at their own length, and indices (B, T)."""
        codes = wide(self.codebook.weight)
        rows = matching(latents, codes).mT
        indices = F.nearest(rows.unsqueeze(0), codes.unsqueeze(0), metric="cosine").indices[0]
        indices = indices.clamp_min(0)  # a row that is not finite gets the first code, as it does there
        return self.codebook(indices).mT, indices


class Plan(NamedTuple):
    """What does not depend on the input: W (Q D, C), b_i - sum_j W_i o_j (Q, D), for every stage the M_ij one above
    the other (i D, D), O (C, Q D), and the sums of the first o_j (Q, C)."""

    inward: Tensor
    offsets: Tensor
    mixes: list[Tensor]
    outward: Tensor
    biases: Tensor


class DacStack(Fused):
    """All stages of DAC at once, outside training"""

    names = ("ResidualVectorQuantize", "DacResidualVectorQuantizer")
    attributes = ("quantizers", "n_codebooks", "quantizer_dropout", "from_codes")
    quantizers: nn.ModuleList
    training: bool

    def forward(self, *given: Any, **named: Any) -> tuple[Tensor, ...]:
        """(B, C, T) -> quantized (B, C, T), codes (B, Q, T), latents (B, Q D, T), commitment and codebook loss.

        The first argument is called z or hidden_state, the second n_quantizers.
        """
        module: Any = self
        stages: list[Any] = list(self.quantizers)
        z: Any = given[0] if given else named.get("z", named.get("hidden_state"))
        n_quantizers: Any = given[1] if len(given) > 1 else named.get("n_quantizers")
        graph = torch.is_grad_enabled() and (z.requires_grad or any(p.requires_grad for p in module.parameters()))
        if self.training or graph or not _alike(stages):
            return super().forward(*given, **named)  # type: ignore[misc]
        weights = [w for s in stages for p in (s.in_proj, s.out_proj) for w in p.parameters()]
        plan: Plan = self.__dict__.setdefault("_memory", Memory())(weights, lambda: _plan(stages))
        number = len(stages) if n_quantizers is None else max(1, min(int(n_quantizers), len(stages)))
        dim = plan.offsets.shape[1]
        inner = (plan.inward[: number * dim] @ z).mT  # (B, T, Q D)
        latents: list[Tensor] = []
        codes: list[Tensor] = []
        found: list[Tensor] = []
        loss = z.new_zeros(())
        for i, stage in enumerate(stages[:number]):
            rows = inner[..., i * dim : (i + 1) * dim] + plan.offsets[i]
            if codes:
                rows = rows - torch.cat(codes, dim=-1) @ plan.mixes[i]
            quantized, indices = DacStage.decode_latents(stage, rows.mT)
            latents.append(rows.mT)
            codes.append(quantized.mT)
            found.append(indices)
            loss = loss + (codes[-1] - rows).square().mean()
        joined = torch.cat(codes, dim=-1).mT
        out = plan.outward[:, : number * dim] @ joined + plan.biases[number - 1].unsqueeze(-1)
        if self.original.__name__ == "DacResidualVectorQuantizer":
            loss = loss.expand(len(z))  # there it is one for each sequence
        return out, torch.stack(found, dim=1), torch.cat(latents, dim=1), loss, loss.clone()

    def _forget(self) -> None:
        self.__dict__.pop("_memory", None)


def _alike(stages: Sequence[Any]) -> bool:
    """Whether all stages project by plain products, to the same number of dimensions, at the same rate."""
    first = stages[0]
    return all(
        p.kernel_size == (1,) and p.stride == (1,) and p.bias is not None
        for s in stages
        for p in (s.in_proj, s.out_proj)
    ) and all(
        s.codebook.weight.shape[1] == first.codebook.weight.shape[1] and getattr(s, "stride", 1) == 1 for s in stages
    )


def _weight(projection: Any) -> Tensor:
    """The (out, in) weight of a convolution of width 1, also where it is kept as a length and a direction."""
    if hasattr(projection, "weight_g"):
        v, g = projection.weight_v.double(), projection.weight_g.double()
        return (v * (g / v.norm(dim=(1, 2), keepdim=True))).squeeze(-1)
    return projection.weight.double().squeeze(-1)


@torch.no_grad()
def _plan(stages: Sequence[Any]) -> Plan:
    dtype = stages[0].codebook.weight.dtype
    inward = [_weight(s.in_proj) for s in stages]
    outward = [_weight(s.out_proj) for s in stages]
    biases = torch.stack([s.out_proj.bias.double() for s in stages])
    offsets, mixes = [], []
    for i, (weight, stage) in enumerate(zip(inward, stages, strict=True)):
        offsets.append(stage.in_proj.bias.double() - weight @ biases[:i].sum(0))
        mixes.append(torch.cat([(weight @ o).mT for o in outward[:i]]).to(dtype) if i else weight.new_zeros(0))
    return Plan(
        torch.cat(inward).to(dtype),
        torch.stack(offsets).to(dtype),
        mixes,
        torch.cat(outward, dim=1).to(dtype),
        biases.cumsum(0).to(dtype),
    )


def handlers() -> tuple[type[Fused], ...]:
    """What is tried on a module, in this order."""
    return DacStack, DacStage
