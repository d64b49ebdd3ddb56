"""``fastvq train``: a run folder from a folder of motions."""

from __future__ import annotations

import shlex
from functools import partial

from fastvq.models.commands import common, heatmap_vqgan, train_generator
from fastvq.models.commands.finish import finish_run
from fastvq.models.commands.train_options import Train, settings
from fastvq.models.errors import UserError
from fastvq.models.training.config import RunConfig, TrainConfig
from fastvq.models.training.generator import GeneratorTrainConfig
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig
from fastvq.models.training.processes import Processes, join
from fastvq.models.training.trainer import train


def run(command: Train) -> int:
    """Trains, together with the other processes that ``torchrun`` started, if it did; returns the exit code."""
    config = settings(command.options)
    if command.resume and command.overwrite:
        raise UserError("--resume keeps what --overwrite removes: give one of them")
    processes = join()
    try:
        with processes.together():
            if not command.resume:
                processes.on_main(partial(common.check_new_folder, command.out, overwrite=command.overwrite))
            return _run(command, config, processes)
    except BaseException:
        processes.abandon()
        raise


def _run(command: Train, config: RunConfig, processes: Processes) -> int:
    console = common.make_console()
    if isinstance(config, HeatmapTrainConfig):
        return heatmap_vqgan.train(command, config, console, processes)
    if isinstance(config, GeneratorTrainConfig):
        return train_generator.train(command, config, console, processes)
    assert isinstance(config, TrainConfig)
    clips = common.training_features(command, console, config.model, seed=config.seed)
    held_out = [clip for clip in clips if clip.split == "test"]
    console.print(f"{len(clips)} clips: {sum(clip.split == 'train' for clip in clips)} train, {len(held_out)} test")
    if not command.resume:
        processes.on_main(partial(common.make_room_for_run, command.out, overwrite=command.overwrite))
    result = train(config, clips, command.out, resume=command.resume, console=console)
    processes.leave()
    folder = shlex.quote(str(command.out))
    if result.interrupted:
        console.print(
            f"Go on with: fastvq train {config.model.kind}{common.data_option(command)} --out {folder} --resume"
        )
        return 130
    if not processes.main:
        return 0
    if held_out and not command.skip_report:
        finish_run(result, held_out, console)
        console.print(f"Report: {(command.out / 'report.html').resolve()}", markup=False)
    elif not command.skip_report:
        console.print("There is no test clip, so nothing was measured and no report was written.")
    console.print(f"Model:  {command.out}", markup=False)
    return 0
