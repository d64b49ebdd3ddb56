"""Trainings of all kinds, small. As a program, ``python ranks.py FOLDER PORT ...``, one of several processes, as the
variables that ``torchrun`` sets tell; the ports are for connecting again. Raises if a check fails."""

import contextlib
import dataclasses
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from fastvq.models.cli import main
from fastvq.models.commands import train as train_command
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import EvaluatorConfig
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT, DoubleTierGPTConfig
from fastvq.models.generators.refine_transformer import RefineTransformerConfig
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAEConfig
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.adversarial import AdversarialWeights
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.data import FeatureClip, prepare_clips
from fastvq.models.training.evaluator import train_evaluator
from fastvq.models.training.generator import GeneratorTrainConfig, train_generator
from fastvq.models.training.generator_data import CaptionedTokens, tokenise, with_text
from fastvq.models.training.heatmap_data import prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, train_heatmaps
from fastvq.models.training.loop import TrainingLoop
from fastvq.models.training.pgr2m import PGR2MTrainConfig
from fastvq.models.training.pgr2m_generators import BaseTrainConfig, RefineTrainConfig, train_refine
from fastvq.models.training.pose_residual_vqvae import PoseResidualTrainConfig
from fastvq.models.training.processes import join
from fastvq.models.training.reporting import Reporter
from fastvq.models.training.residual_vqvae import ResidualTrainConfig
from fastvq.models.training.run_folder import RunFolder
from fastvq.models.training.trainer import train
from fastvq.models.training.windows import Windows, WindowSampler

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 4, "warmup": 2, "checkpoint_every": 4, "log_every": 3}
TOKENIZER: dict[str, Any] = {**SHORT, "window": 32, "lr": 1e-3}
SMALL: dict[str, Any] = {"width": 16, "output_dim": 16, "codebook_size": 16, "depth": 1}
PLAIN = {"dead_below": 0.0}
MOTION = MotionVQVAEConfig(width=16, output_dim=32, groups=4, codebook_size=16, depth=1)
HEATMAPS = HeatmapVQGANConfig(
    frames=8,
    size=16,
    channels=(8, 16),
    down_stages=2,
    latent_channels=8,
    code_dim=8,
    codebook_size=16,
    norm_groups=4,
    attention_size=8,
)
HEATMAP_RUN = HeatmapTrainConfig(
    model=HEATMAPS,
    loss=AdversarialWeights(start=2),
    steps=6,
    batch_size=4,
    lr=1e-3,
    stretch=(8, 40),
    discriminator_width=4,
    discriminator_layers=2,
    checkpoint_every=4,
    log_every=3,
)
# What a step draws at random is left out, so that several processes can be compared with one.
EXACT = {
    "motion-vqvae": TrainConfig(model=dataclasses.replace(MOTION, **PLAIN), turn=True, **TOKENIZER),
    # With masked rows k-means, and a second stage, would draw other numbers. And none of its terms is a mean over
    # pairs of frames, which parts of a batch do not have in proportion to frames.
    "padded": PGR2MTrainConfig(
        model=PGR2MConfig(stages=1, quantize_dropout=0.0, residual_dropout=0.0, entropy_weight=0.0, **SMALL, **PLAIN),
        **{**TOKENIZER, "window": 64, "short_clips": "pad", "mirror": True, "grad_clip": 0.5},
    ),
    "rvqvae": ResidualTrainConfig(
        model=ResidualVQVAEConfig(stages=2, quantize_dropout=0.0, **SMALL, **PLAIN), **TOKENIZER
    ),
    "pgr2m": PGR2MTrainConfig(
        model=PGR2MConfig(stages=2, quantize_dropout=0.0, residual_dropout=0.0, entropy_weight=0.0, **SMALL, **PLAIN),
        **TOKENIZER,
    ),
    "heatmap-vqgan": HEATMAP_RUN,
    "hifigpt": GeneratorTrainConfig(
        model=DoubleTierGPTConfig(
            dim=32, layers=1, depth_layers=1, heads=2, longest=12, dropout=0.0, corruption="none", text_dropout=0.0
        ),
        lr=1e-3,
        **SHORT,
    ),
}
# As they are, with all that is random.
RANDOM = {
    "motion-vqvae": TrainConfig(model=dataclasses.replace(MOTION, codebook_size=64, dead_below=0.9), **TOKENIZER),
    "pose-rvq": PoseResidualTrainConfig(
        model=PoseResidualVQVAEConfig(stages=2, quantize_dropout=0.5, **SMALL), **TOKENIZER
    ),
    "pgr2m": PGR2MTrainConfig(
        model=PGR2MConfig(stages=2, quantize_dropout=0.5, residual_dropout=0.5, **SMALL), **TOKENIZER
    ),
    "dvae": dataclasses.replace(
        HEATMAP_RUN,
        model=dataclasses.replace(HEATMAPS, quantizer="gumbel"),
        loss=AdversarialWeights(factor=0.0),
    ),
    "pgr2m-base": BaseTrainConfig(
        model=BaseTransformerConfig(dim=32, layers=1, heads=2, longest=12, clean_decay=0.5), lr=1e-3, **SHORT
    ),
    "pgr2m-refine": RefineTrainConfig(model=RefineTransformerConfig(layers=1, heads=2), lr=1e-3, **SHORT),
}
CASES: dict[str, Any] = {**{f"exact-{name}": one for name, one in EXACT.items()}, **RANDOM}


@functools.cache
def clips(width: int) -> list[FeatureClip]:
    """Of 272 or 263 features, all of different lengths."""
    form = format_of(width)
    found = prepare_clips(generate_clips(8, seed=0, fps=form.fps), fps=form.fps, form=form)
    return [
        dataclasses.replace(clip, features=clip.features[: 33 + 6 * number], joints=clip.joints[: 33 + 6 * number])
        for number, clip in enumerate(found)
    ]


@functools.cache
def tokenizer(kind: type[MotionTokenizer] = PGR2MTokenizer) -> MotionTokenizer:
    """With random weights, and codes from data."""
    torch.manual_seed(0)
    own = {"residual_dropout": 0.0} if kind is PGR2MTokenizer else {}
    model = kind(kind.config_class(stages=2, **own, **SMALL)).train()
    with torch.no_grad():
        model(np.random.default_rng(0).standard_normal((4, 64, 263)).astype(np.float32))
    return model.eval()


@functools.cache
def tokens(kind: type[MotionTokenizer] = PGR2MTokenizer) -> list[CaptionedTokens]:
    return tokenise(tokenizer(kind), with_text(clips(263)))


@functools.cache
def base() -> BaseTransformer:
    encoder = open_text_encoder("hash")
    torch.manual_seed(0)
    model = BaseTransformer(RANDOM["pgr2m-base"].model.fitted(tokenizer(), encoder)).eval()
    model.use_text_encoder(encoder)
    return model


def trained(config: Any, out: Path, **options: Any) -> Any:
    """The result of a training."""
    if isinstance(config, TrainConfig):
        return train(config, clips(config.model.input_dim), out, **options)
    if isinstance(config, HeatmapTrainConfig):
        return train_heatmaps(config, prepare_joints(generate_clips(6, seed=0), fps=30.0, least=8), out, **options)
    if isinstance(config, RefineTrainConfig):
        return train_refine(config, base(), tokens(), tokenizer(), out, **options)
    encoder = open_text_encoder("hash")
    generator, kind = DoubleTierGPT, ResidualVQVAE
    if isinstance(config, BaseTrainConfig):
        generator, kind = BaseTransformer, PGR2MTokenizer
    config = dataclasses.replace(config, model=config.model.fitted(tokenizer(kind), encoder))
    return train_generator(config, generator, tokens(kind), tokenizer(kind), encoder, out, **options)


def state_of(run: TrainingLoop) -> dict[str, torch.Tensor]:
    """All that a run moves: weights, codebooks, moments of the optimizers, the discriminator."""
    modules = {"model": run.model, **run.other_modules()}
    found = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in run.optimizers().items():
        for number, moments in optimizer.state_dict()["state"].items():
            found.update({f"{name}.{number}.{key}": value for key, value in moments.items()})
    return found


def everywhere(value: Any) -> list[Any]:
    """What each rank has."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def same_everywhere(values: Any, what: str) -> None:
    """What the ranks have is the same, to the bit."""
    every = everywhere(values)
    for name, value in every[0].items():
        other = every[-1][name]
        equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert equal, f"{what}: the ranks differ in {name}: {value} {other}"


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "steps_per_second"}


RUNS: list[TrainingLoop] = []
GO = TrainingLoop.go


def recorded(run: TrainingLoop, **options: Any) -> Any:
    """RUNS gets every training loop that is run."""
    RUNS.append(run)
    return GO(run, **options)


def stays_equal(name: str, folder: Path) -> None:
    """Ranks end alike, each after its own half of every batch, with random numbers of its own."""
    result = trained(CASES[name], folder / name)
    assert result.step == 6
    same_everywhere(state_of(RUNS[-1]), name)
    same_everywhere(untimed(result.metrics), name)
    run: Any = RUNS[-1]
    batches, states = everywhere(run.sampler.batch(0)[0]), everywhere(torch.get_rng_state())
    assert [len(batch) for batch in batches] == [2, 2]
    assert batches[0].shape != batches[1].shape or not torch.equal(*batches), f"{name}: the ranks see the same"
    assert not torch.equal(*states), f"{name}: the ranks draw the same random numbers"


def resumes_to_the_bit(name: str, folder: Path) -> None:
    """Stopped after four steps and resumed, a run ends as the whole one did."""
    whole = {key: value.clone() for key, value in state_of(RUNS[-1]).items()}
    trained(dataclasses.replace(CASES[name], steps=4), folder / f"{name}-parts")
    result = trained(CASES[name], folder / f"{name}-parts", resume=True)
    assert result.step == 6
    for key, value in state_of(RUNS[-1]).items():
        assert torch.equal(value, whole[key]), f"{name}: {key} is another after a resume"


def refuses_a_batch_that_cannot_be_shared(folder: Path) -> None:
    config = dataclasses.replace(EXACT["motion-vqvae"], batch_size=5)
    with pytest.raises(UserError, match="must be a multiple of their number, 2, got 5: use 4"):
        trained(config, folder / "odd")
    assert not (folder / "odd" / "config.json").exists()


def refuses_other_clips(folder: Path) -> None:
    kept = clips(272)
    features = kept[0].features + float(dist.get_rank())
    other = [dataclasses.replace(kept[0], features=features), *kept[1:]]
    with pytest.raises(UserError, match="need the same clips"):
        train(EXACT["motion-vqvae"], other, folder / "other")


def gives_all_the_weights_of_the_first() -> None:
    """However they lie in memory."""
    torch.manual_seed(dist.get_rank())
    module = torch.nn.BatchNorm1d(3)
    module.register_parameter("folded", torch.nn.Parameter(torch.randn(2, 3, 4).permute(2, 0, 1)))
    own = module.folded.detach().clone()
    join().align_([module])
    same_everywhere(module.state_dict(), "aligned")
    assert torch.equal(own, module.folded) == (dist.get_rank() == 0)
    assert module.folded.stride() == (1, 12, 4)


def refuses_an_evaluator() -> None:
    config = EvaluatorConfig(input_dim=263, window=40, stride=4)
    with pytest.raises(UserError, match="an evaluator is trained in one process, got 2"):
        train_evaluator(config, clips(263), data="clips")


def at_step(number: int, action: Callable[[], Any]) -> Callable[[], None]:
    """Has something happen before a step's windows are drawn; gives back what undoes that."""
    draw = WindowSampler.batch

    def batch(self: WindowSampler, step: int) -> Any:
        windows = draw(self, step)
        return (action() or windows) if step == number else windows

    WindowSampler.batch = batch  # type: ignore[method-assign]

    def undo() -> None:
        WindowSampler.batch = draw  # type: ignore[method-assign]

    return undo


def a_signal_to_one_stops_all(folder: Path) -> None:
    """After the same step, with a checkpoint, from which the run goes on."""
    undo = at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM) if dist.get_rank() else None)
    result = trained(EXACT["motion-vqvae"], folder / "stopped")
    undo()
    assert result.interrupted
    assert result.step == 3, result.step
    same_everywhere(state_of(RUNS[-1]), "stopped")
    assert trained(EXACT["motion-vqvae"], folder / "stopped", resume=True).step == 6


def a_loss_that_is_not_finite_ends_all(folder: Path) -> None:
    """Though only one has seen the reason."""

    def poisoned() -> Windows:
        return Windows(torch.full((2, 32, 272), float("nan")), None)

    undo = at_step(1, lambda: poisoned() if dist.get_rank() else None)
    with pytest.raises(UserError, match="the loss is nan at step 3"):
        trained(EXACT["motion-vqvae"], folder / "diverged")
    undo()


def a_full_disk_ends_all(folder: Path) -> None:
    """Though only the first process writes."""

    def full(self: Reporter, row: dict[str, Any]) -> None:
        raise UserError("cannot be written: make room")

    kept, Reporter.log = Reporter.log, full  # type: ignore[method-assign]
    with pytest.raises(UserError, match="cannot be written: make room"):
        trained(EXACT["motion-vqvae"], folder / "full")
    Reporter.log = kept  # type: ignore[method-assign]


def a_folder_in_use_ends_all(folder: Path) -> None:
    """Though only the first process locks it."""
    with contextlib.ExitStack() as held:
        if dist.get_rank() == 0:
            held.enter_context(RunFolder(folder / "used").lock())
        with pytest.raises(UserError, match="another process is training in"):
            trained(EXACT["motion-vqvae"], folder / "used")


def main_fails_alone(folder: Path) -> None:
    """With what nobody foresaw; the other process ends, too, and both are by themselves from then on."""

    def fail() -> None:
        raise ZeroDivisionError("a defect")

    at_step(2, lambda: fail() if dist.get_rank() == 0 else None)
    kind, text = (
        (UserError, "another process of the training has ended") if dist.get_rank() else (ZeroDivisionError, "")
    )
    with pytest.raises(kind, match=text):
        trained(EXACT["motion-vqvae"], folder / "failed")
    assert not dist.is_initialized()
    with pytest.raises(UserError, match="the launcher says 2 processes, and torch"):
        trained(EXACT["motion-vqvae"], folder / "again")


def the_command_trains_and_reports_once(folder: Path, ports: Iterator[str]) -> None:
    """Only the first process reports and talks, and what stands in the folder is refused with its one sentence."""

    def reported_twice(*arguments: Any) -> None:
        raise AssertionError("not only the first process reports")

    if os.environ["RANK"] != "0":
        train_command.finish_run = reported_twice
    arguments = [
        "train",
        "rvqvae",
        "--out",
        str(folder / "command"),
        "--clips",
        "12",
        "--width",
        "16",
        "--depth",
        "1",
    ]
    arguments += ["--output-dim", "16", "--codes", "8", "--stages", "2", "--batch-size", "4", "--steps", "2"]
    for code, said in ((0, "Report: "), (2, "is not empty: choose another one")):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            assert main(arguments) == code
        first = os.environ["RANK"] == "0"
        assert (said in out.getvalue()) == first, out.getvalue()
        assert first or not out.getvalue(), out.getvalue()
        assert not dist.is_initialized()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = next(ports)
    held = sorted(entry.name for entry in (folder / "command").iterdir())
    assert {"report.html", "tokens.safetensors"} <= set(held), held


def train_together(folder: Path, ports: Iterator[str]) -> None:
    the_command_trains_and_reports_once(folder, ports)
    TrainingLoop.go = recorded  # type: ignore[method-assign]
    for kind in (PGR2MTokenizer, ResidualVQVAE):  # each by itself, before it is connected with the others
        tokens(kind)
    base()
    refuses_a_batch_that_cannot_be_shared(folder)
    for name in CASES:
        stays_equal(name, folder)
        if name in ("motion-vqvae", "exact-heatmap-vqgan", "pgr2m", "pgr2m-base"):
            resumes_to_the_bit(name, folder)
    refuses_other_clips(folder)
    gives_all_the_weights_of_the_first()
    refuses_an_evaluator()
    a_signal_to_one_stops_all(folder)
    a_loss_that_is_not_finite_ends_all(folder)
    a_full_disk_ends_all(folder)
    a_folder_in_use_ends_all(folder)
    main_fails_alone(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_together(Path(sys.argv[1]), iter(sys.argv[2:]))
