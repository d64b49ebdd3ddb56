"""Quantizers to load: the libraries' own modules with random codes, and states by what their layouts are known to be.

A source tells what its state is, how it encodes, and by which codes a float64 search tells clear rows from ties.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

DIM, SIZE, CODE_DIM, STAGES = 12, 16, 4, 3


@dataclass
class Source:
    """state: whole file. quantizer: its part that belongs to the quantizer, by the published names.
    encode: x -> indices (N, Q) and quantized (N, C), as the source's own module does it, or float64 arithmetic.
    clear: x -> rows (N,) whose float64 gap exceeds rounding. x is (B, C, T), rows go over B and T.
    """

    state: dict[str, Any]
    quantizer: dict[str, Tensor]
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    clear: Callable[[Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def rows_of(x: Tensor) -> Tensor:
    """(B, C, T) -> (B T, C)."""
    return x.transpose(1, 2).flatten(0, 1)


def gap_is_clear(rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code of float64 rows, and whether the next one is farther by more than float32 rounding."""
    nearest = torch.cdist(rows, codes, compute_mode="donot_use_mm_for_euclid_dist").square().topk(2, largest=False)
    bound = 1e-5 * (rows.square().sum(-1) + codes.square().sum(-1).max())
    return nearest.indices[:, 0], nearest.values[:, 1] - nearest.values[:, 0] > bound


def residual_search(rows: Tensor, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """indices (N, Q), sums of codes (N, D) and clear rows (N,) of a stack, in float64."""
    rest, clear, indices = rows.double(), torch.ones(len(rows), dtype=torch.bool), []
    for codes in stages:
        found, sure = gap_is_clear(rest, codes.double())
        rest, clear = rest - codes.double()[found], clear & sure
        indices.append(found)
    return torch.stack(indices, -1), rows.double() - rest, clear


def random_codebook(module: nn.Module, sums: str, sizes: str) -> None:
    """Fills the buffers of one codebook of transformers; untouched they are zero."""
    for name, buffer in module.named_buffers():
        if name == sizes:
            buffer.copy_(torch.rand_like(buffer) * 10 + 0.1)
        elif name in (sums, "embed"):
            buffer.normal_()


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the modules of transformers are compared with")


def hf_encodec() -> Source:
    config = transformers().EncodecConfig(
        sampling_rate=800,
        num_filters=4,
        hidden_size=DIM,
        codebook_size=SIZE,
        upsampling_ratios=[2, 2],
        target_bandwidths=[2.4],
    )
    model = transformers().EncodecModel(config)
    assert len(model.quantizer.layers) == STAGES
    for layer in model.quantizer.layers:
        random_codebook(layer.codebook, "embed_avg", "cluster_size")
    stages = [layer.codebook.embed for layer in model.quantizer.layers]

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = model.quantizer.encode(x)
        return codes.permute(1, 2, 0).flatten(0, 1), rows_of(model.quantizer.decode(codes))

    state = model.state_dict()
    return Source(state, part(state), encode, lambda x: residual_search(rows_of(x), stages)[2])


def part(state: dict[str, Tensor], prefix: str = "quantizer.") -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith(prefix)}


def renamed(source: Source, *pairs: tuple[str, str], wrapper: str | None = None) -> Source:
    """The same weights under another layout's names."""

    def rename(name: str) -> str:
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    quantizer = {rename(name): tensor for name, tensor in source.quantizer.items()}
    state = {"encoder.model.0.weight": torch.ones(3), **quantizer}
    return Source(
        {wrapper: state, "note": "text"} if wrapper else state, quantizer, source.encode, source.clear, source.options
    )


def encodec() -> Source:
    return renamed(hf_encodec(), ("quantizer.layers", "quantizer.vq.layers"), (".codebook.", "._codebook."))


def audiocraft() -> Source:
    return renamed(
        hf_encodec(),
        ("quantizer.layers", "quantizer.vq.layers"),
        (".codebook.", "._codebook."),
        wrapper="best_state",
    )


def hf_mimi(code_dim: int = CODE_DIM) -> Source:
    config = transformers().MimiConfig(
        hidden_size=DIM,
        num_filters=4,
        codebook_size=SIZE,
        codebook_dim=code_dim,
        vector_quantization_hidden_dimension=code_dim,
        num_quantizers=STAGES + 1,
        num_semantic_quantizers=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=8,
        head_dim=4,
        upsample_groups=1,
    )
    quantizer = transformers().MimiModel(config).quantizer
    halves = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
    for half in halves:
        for layer in half.layers:
            random_codebook(layer.codebook, "embed_sum", "cluster_usage")
    halves[1].layers[0].codebook.cluster_usage[3] = 0  # below the floor of 1e-5
    halves[1].layers[0].codebook.embed_sum[3] = 1e-6

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = quantizer.encode(x)
        quantized = quantizer.decode(codes.transpose(0, 1))
        return codes.permute(1, 2, 0).flatten(0, 1), rows_of(quantized)

    def clear(x: Tensor) -> Tensor:
        sure = torch.ones(x.shape[0] * x.shape[2], dtype=torch.bool)
        for half in halves:
            rows = rows_of(x).double()
            if half.input_proj is not None:
                rows = rows @ half.input_proj.weight[..., 0].detach().double().T
            sure = sure & residual_search(rows, [layer.codebook.embed for layer in half.layers])[2]
        return sure

    state = {f"quantizer.{name}": tensor.clone() for name, tensor in quantizer.state_dict().items()}
    return Source({"encoder.weight": torch.ones(2), **state}, state, encode, clear)


MIMI_NAMES = (
    ("semantic_residual_vector_quantizer.layers", "rvq_first.vq.layers"),
    ("acoustic_residual_vector_quantizer.layers", "rvq_rest.vq.layers"),
    ("semantic_residual_vector_quantizer", "rvq_first"),
    ("acoustic_residual_vector_quantizer", "rvq_rest"),
    (".codebook.", "._codebook."),
)


def mimi() -> Source:
    return renamed(hf_mimi(), *MIMI_NAMES, ("embed_sum", "embedding_sum"), (".initialized", "._initialized"))


def older_mimi() -> Source:
    """As the first files spelled it; written back it gets the newer names."""
    new = mimi()
    names = (("cluster_usage", "cluster_size"), ("embedding_sum", "embed_avg"), ("_initialized", "inited"))
    old = renamed(new, *names)
    return Source(old.state, new.quantizer, old.encode, old.clear)


def hf_dac(*, norm: bool = False, strides: tuple[int, ...] = (1,) * STAGES) -> Source:
    config = transformers().DacConfig(
        encoder_hidden_size=DIM // 4,
        downsampling_ratios=[2, 2],
        decoder_hidden_size=8,
        upsampling_ratios=[2, 2],
        n_codebooks=STAGES,
        codebook_size=SIZE,
        codebook_dim=CODE_DIM,
    )
    model = transformers().DacModel(config).eval()
    for quantizer in model.quantizer.quantizers:
        for layer in (quantizer.in_proj, quantizer.out_proj):
            nn.init.normal_(layer.weight, std=0.4)
            nn.init.normal_(layer.bias, std=0.4)
        nn.init.normal_(quantizer.codebook.weight)
    if norm:
        model.apply_weight_norm()
        for quantizer in model.quantizer.quantizers:
            quantizer.in_proj.parametrizations.weight.original0.data.mul_(1.3)  # lengths are not those of directions

    @torch.no_grad()
    def run(x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """indices of each stage, quantized, and clear rows: those whose every stage is."""
        rest, total, indices = x, torch.zeros_like(x), []
        clear = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool)
        for quantizer, stride in zip(model.quantizer.quantizers, strides, strict=True):
            pooled = nn.functional.avg_pool1d(rest, stride, stride)
            unit = nn.functional.normalize(rows_of(quantizer.in_proj(pooled)).double())
            sure = gap_is_clear(unit, nn.functional.normalize(quantizer.codebook.weight.double()))[1]
            clear &= sure.view(len(x), -1).repeat_interleave(stride, -1)
            quantized, _, _, found, _ = quantizer(pooled)
            quantized = quantized.repeat_interleave(stride, -1)
            rest, total = rest - quantized, total + quantized
            indices.append(found)
        # A row of a later, finer stage depends on all that were pooled with it.
        whole = clear.view(len(x), -1, max(strides)).all(-1).repeat_interleave(max(strides), -1)
        return indices, total, whole.flatten()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        indices, total, _ = run(x)
        repeated = [found.repeat_interleave(s, -1) for found, s in zip(indices, strides, strict=True)]
        if set(strides) == {1}:  # the loop above is the model's own
            codes = model.quantizer(x)[1]
            assert torch.equal(torch.stack(indices, 1), codes)
        return torch.stack(repeated, -1).flatten(0, 1), rows_of(total)

    state = model.state_dict()
    return Source(state, part(state), encode, lambda x: run(x)[2])


def dac() -> Source:
    return renamed(
        hf_dac(norm=True),
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
        wrapper="state_dict",
    )


def snac() -> Source:
    source = hf_dac(norm=True, strides=(4, 2, 1))
    source.options = {"strides": (4, 2, 1)}
    return source


def bare(names: list[str], wrapper: str) -> Source:
    codes = {name: torch.randn(SIZE, DIM) for name in names}
    tables = list(codes.values())

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        indices, quantized, _ = residual_search(rows_of(x), tables)
        return indices if len(tables) > 1 else indices[:, 0], quantized.float()

    state = {wrapper: {"encoder.model.0.weight": torch.ones(2), **codes}, "ep": 3}
    return Source(state, codes, encode, lambda x: residual_search(rows_of(x), tables)[2])


def momask(wrapper: str = "vq_model") -> Source:
    return bare([f"quantizer.layers.{stage}.codebook" for stage in range(STAGES)], wrapper)


def t2m_gpt() -> Source:
    return bare(["vqvae.quantizer.codebook"], "net")


SOURCES = {
    "encodec": encodec,
    "hf-encodec": hf_encodec,
    "mimi": mimi,
    "hf-mimi": hf_mimi,
    "dac": dac,
    "dac-parametrized": lambda: hf_dac(norm=True),
    "hf-dac": hf_dac,
    "snac": snac,
    "momask": momask,
    "t2m-gpt": t2m_gpt,
}


@pytest.fixture
def sources() -> dict[str, Callable[[], Source]]:
    """Makers of sources by layout, and by further forms of it."""
    torch.manual_seed(0)
    return {**SOURCES, "audiocraft": audiocraft, "older mimi": older_mimi, "mimi alone": lambda: hf_mimi(DIM)}


@pytest.fixture
def clear_rows() -> Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor, Tensor]]:
    """The float64 search of a stack: indices (N, Q), quantized (N, D) and clear rows (N,)."""
    return residual_search
