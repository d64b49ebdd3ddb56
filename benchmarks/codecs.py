"""Audio codecs of Hugging Face's transformers before and after ``fastvq.swap``: the quantizer, and all of encode.

Run ``python -m benchmarks.codecs`` on a quiet machine; it takes about two minutes on two cores and appends its rows
to ``benchmarks/results/cpu/codecs.csv``. Models have their published sizes and random weights. An encoder that was
never trained gives nearly the same latents at all times, so the quantizer alone is timed on normal rows, with
normal codes that shrink with what the stages before them leave; at least half the codes of each stage are in use, and
codes are compared before and after the swap. All of encode is timed on audio.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastvq
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import Shape
from fastvq.benchmarks.timing import interleave, wall_ms

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "codecs.csv"
SECONDS = 20  # of latents for the quantizer alone
HEARD = 5  # of audio for all of encode
GATED = 4096


def sound(seconds: float, rate: int, seed: int) -> Tensor:
    """Tones that glide and swell, and noise, (1, 1, samples)."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    total = 0.05 * torch.randn(time.shape, generator=random)
    for _ in range(12):
        pitch, glide, swell, phase = torch.rand(4, generator=random).tolist()
        frequency = 60 * 2 ** (6 * pitch) * (1 + 0.3 * torch.sin(2 * torch.pi * 3 * glide * time))
        loudness = torch.sin(2 * torch.pi * (4 * swell * time + phase)).clamp_min(0) ** 2
        total = total + 0.2 * loudness * torch.sin(2 * torch.pi * frequency.cumsum(0) / rate)
    return total.view(1, 1, -1)


def drawn(rows: Tensor, size: int) -> Tensor:
    """Normal codes (K, D), a third as long as the rows (N, D) that they meet."""
    return 0.3 * rows.std() * torch.randn(size, rows.shape[-1])


def fill_stack(stack: Any, rows: Tensor, name: str) -> None:
    """Codebooks of a stack for rows (N, D), each for what the stages before it leave."""
    for layer in stack.layers:
        codes = drawn(rows, layer.codebook.codebook_size)
        getattr(layer.codebook, name).copy_(codes)
        rows = rows - codes[fastvq.functional.nearest(rows, codes).indices]


def encodec(transformers: Any) -> tuple[Any, Tensor, Tensor, Shape]:
    """EnCodec at 24 kHz and 24 kbit/s: 32 stages of 1024 codes of 128 dimensions."""
    model = transformers.EncodecModel(transformers.EncodecConfig(target_bandwidths=[24.0])).eval()
    rows = torch.randn(1, 128, GATED)
    fill_stack(model.quantizer, rows.mT.flatten(0, 1), "embed")
    return model, rows, sound(HEARD, 24000, 0), Shape("encodec-24khz", G=1, N=SECONDS * 75, K=1024, D=128, Q=32)


def mimi(transformers: Any) -> tuple[Any, Tensor, Tensor, Shape]:
    """Mimi: one stage beside 31, of 2048 codes of 256 dimensions."""
    model = transformers.MimiModel(transformers.MimiConfig()).eval()
    rows, both = torch.randn(1, 512, GATED), model.quantizer
    for stack in (both.semantic_residual_vector_quantizer, both.acoustic_residual_vector_quantizer):
        fill_stack(stack, stack.input_proj(rows).mT.flatten(0, 1), "embed_sum")
    shape = Shape("mimi", G=1, N=SECONDS * 25 // 2, K=2048, D=256, Q=32)
    return model, rows, sound(HEARD, 24000, 0), shape


def dac(transformers: Any) -> tuple[Any, Tensor, Tensor, Shape]:
    """The Descript Audio Codec at 44 kHz: 9 stages of 1024 codes of 8 dimensions, projected from 1024 channels."""
    config = transformers.DacConfig(sampling_rate=44100, downsampling_ratios=[2, 4, 8, 8], n_codebooks=9)
    model = transformers.DacModel(config).eval()
    rows = residual = torch.randn(1, 1024, GATED)
    for stage in model.quantizer.quantizers:
        stage.codebook.weight.copy_(drawn(stage.in_proj(residual).mT.flatten(0, 1), 1024))
        residual = residual - stage(residual)[0]
    return model, rows, sound(HEARD, 44100, 0), Shape("dac-44khz", G=1, N=SECONDS * 44100 // 512, K=1024, D=8, Q=9)


def quantize(model: Any, latents: Tensor) -> Tensor:
    """The codes of latents, by the quantizer alone."""
    quantizer = model.quantizer
    codes: Tensor = quantizer(latents)[1] if hasattr(quantizer, "quantizers") else quantizer.encode(latents)
    return codes


def stages_first(codes: Tensor, stages: int) -> Tensor:
    """(Q, B, T) or (B, Q, T) -> (Q, B, T)."""
    return codes if codes.shape[0] == stages else codes.transpose(0, 1)


MODELS = {"encodec": encodec, "mimi": mimi, "dac": dac}


@torch.no_grad()
def run(names: Sequence[str], *, reps: int = 9, seconds: float = 30.0) -> list[Row]:
    """Compares codes, then times the quantizer and the whole of encode, original and swapped in turns."""
    import transformers

    rows = []
    for name in names:
        torch.manual_seed(0)
        model, rows_in, audio, shape = MODELS[name](transformers)
        swapped = copy.deepcopy(model)
        fastvq.swap(swapped)
        before, after = (stages_first(quantize(m, rows_in), shape.Q) for m in (model, swapped))
        used = min(int((codes.flatten().bincount(minlength=shape.K) > 0).sum()) for codes in before)
        if used < shape.K / 2:
            raise SystemExit(f"gate: a stage of {name} uses {used} codes, so that equal codes would prove little")
        # A close call that the original's rounding decided changes what all later stages see.
        differing = int((before != after).any(0).sum())
        print(f"{shape.name}: of {GATED} rows {differing} have a code that the original's rounding decided otherwise")
        if differing > 0.002 * GATED:
            raise SystemExit(f"gate: {differing} of {GATED} rows of {name} have other codes after the swap")
        latents = rows_in[..., : shape.N].contiguous()
        parts: dict[str, Callable[[Any], object]] = {
            "quantizer": partial(_quantize, latents),
            "encode": partial(_encode, audio),
        }
        for part, call in parts.items():
            timings = interleave(
                {"fastvq": partial(call, swapped), "transformers": partial(call, model)},
                reps=reps,
                seconds=seconds,
                measure=wall_ms,
            )
            for who, timing in timings.items():
                own = who == "fastvq"
                rows.append(
                    timed(
                        shape,
                        timing,
                        op=f"{type(model).__name__}.{part}",
                        pass_="encode",
                        impl="swap" if own else "",
                        precision="exact" if own else "",
                        peer="" if own else "transformers",
                        peer_version="" if own else transformers.__version__,
                        mismatch_rows=0 if own else None,
                    )
                )
                ratio = timing.median_ms / timings["fastvq"].median_ms
                print(
                    f"{shape.name:14s} {part:10s} {who:14s} {timing.median_ms:9.2f} ms {ratio:6.2f}x ours", flush=True
                )
    return rows


def _quantize(latents: Tensor, model: Any) -> object:
    return quantize(model, latents)


def _encode(audio: Tensor, model: Any) -> object:
    return model.encode(audio)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which models")
    parser.add_argument("--reps", type=int, default=9, help="rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    write_rows(options.out, run(options.models, reps=options.reps))


if __name__ == "__main__":
    main()
