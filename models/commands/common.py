"""What the commands share: reading options, loading motions and models, and looking after what exists already."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fastvq.models import launch
from fastvq.models.errors import UserError
from fastvq.models.kinds import load_tokenizer
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.feature_formats import FEATURES272, FeatureFormat
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.mapping import MappingReport
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.storage import write_text
from fastvq.models.tokenizers.config import TokenizerConfig, check_integer
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip, prepare_clips
from fastvq.models.training.run_folder import RunFolder

# What a run folder may hold; --overwrite removes these and nothing else.
RUN_FILES = (
    "config.json",
    "model.safetensors",
    "mean.npy",
    "std.npy",
    "last.json",
    "metrics.jsonl",
    "evaluation.json",
    "environment.json",
    "tokens.safetensors",
    "report.html",
)
RUN_FOLDERS = ("checkpoints", "tensorboard", "tokenizer", "base")
_NOTES_SHOWN = 6
# Bytes of a name of a file, of which file systems take 255, endings and those of partial files included.
LONGEST_NAME = 180


def make_console() -> Console:
    """Where results go: standard output, numbers not coloured, names as they are, brackets and all; of several
    processes only the first one talks."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=not launch.is_main())


def progress_bar(console: Console, what: str) -> Progress:
    """A bar that leaves no trace; nothing at all where the output is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[name]}", markup=False))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def check_new_file(path: Path, *, overwrite: bool, endings: Sequence[str] = ()) -> None:
    """Raises a UserError unless a file can be written there without losing another."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():  # /dev/null would be replaced by a file
        raise UserError(f"{path} is no ordinary file: give another name")
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{path} must end in {' or '.join(endings)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another name, or add --overwrite")


def check_new_folder(path: Path, *, overwrite: bool) -> None:
    """Raises a UserError unless files can be put there without mixing with others."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a folder")
    # What a killed process left half-written is hidden, so that the folder looks empty.
    held = path.is_dir() and any(not re.fullmatch(r"\..*\.partial", entry.name) for entry in path.iterdir())
    if held and not overwrite:
        raise UserError(f"the folder {path} is not empty: choose another one, or add --overwrite")


def make_room_for_run(path: Path, *, overwrite: bool) -> None:
    """Makes sure that a run folder is new; ``overwrite`` removes an earlier run's files and nothing else.

    Raises:
        UserError: it is not empty and may not be emptied, what is there is no run, or a process is training in it.
    """
    check_new_folder(path, overwrite=overwrite)
    if not path.is_dir():
        return
    strangers = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in (*RUN_FILES, *RUN_FOLDERS) and not entry.name.endswith((".partial", ".part"))
    )
    if strangers:
        raise UserError(
            f"the folder {path} holds {strangers[0]}, which is not part of a run, and is left alone: "
            "choose another folder"
        )
    with RunFolder(path).lock():
        for name in RUN_FILES:
            (path / name).unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            if (path / name).is_symlink():
                (path / name).unlink()
            elif (path / name).is_dir():
                shutil.rmtree(path / name)


def read_clips(
    path: Path,
    console: Console,
    *,
    fps: float | None,
    split: str | None = None,
    mapping: Path | None = None,
    scale: float | None = None,
) -> list[Clip]:
    """The motions of a file or folder; what was mapped, skipped or assumed is printed.

    Raises:
        UserError: nothing usable is there.
    """
    with progress_bar(console, "reading") as bar:
        task = bar.add_task("reading", total=None, name="")

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, name=name)

        report = load_clips(path, fps=fps, split=split, mapping_file=mapping, scale=scale, progress=show)
    print_notes([*map(describe_mapping, report.mappings.values()), *report.notes], console)
    return report.clips


def describe_mapping(report: MappingReport) -> str:
    """One line on how a skeleton was mapped: how many joints by name, and where the others come from."""
    others = [f"{joint} {report.sources[joint]}" for joint in (*report.end_sites, *report.interpolated)]
    text = f"{report.skeleton}: {len(report.sources) - len(others)} joints mapped by name"
    return f"{text}; {', '.join(others)}" if others else text


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Notes as a short list."""
    for note in notes[:_NOTES_SHOWN]:
        console.print(f"  note: {note}", style="dim", markup=False)
    if len(notes) > _NOTES_SHOWN:
        console.print(f"  and {len(notes) - _NOTES_SHOWN} notes more", style="dim")


def read_features(
    path: Path,
    console: Console,
    model: TokenizerConfig,
    *,
    split: str | None = None,
    mapping: Path | None = None,
    scale: float | None = None,
) -> list[FeatureClip]:
    """The motions of a file or folder as a model takes them; what was mapped, skipped or assumed is printed.

    Raises:
        UserError: nothing usable is there.
    """
    clips = read_clips(path, console, fps=model.fps, split=split, mapping=mapping, scale=scale)
    return prepare(clips, console, fps=model.fps, form=model.features)


class TrainingData(Protocol):
    """The options of a command that name what to train on.

    Attributes:
        data: a file or folder of motions; None for motions that are made up.
        clips: how many of these.
        mapping, scale: how files are to be read.
    """

    @property
    def data(self) -> Path | None: ...
    @property
    def clips(self) -> int: ...
    @property
    def mapping(self) -> Path | None: ...
    @property
    def scale(self) -> float | None: ...


def training_clips(command: TrainingData, console: Console, *, fps: float, seed: int) -> list[Clip]:
    """The motions to train on, read or made up.

    Raises:
        UserError: nothing usable is there, or no number of clips.
    """
    if command.data is not None:
        return read_clips(command.data, console, fps=fps, mapping=command.mapping, scale=command.scale)
    check_integer("--clips", command.clips, 1)
    console.print(f"No --data: {command.clips} motions are made up, with captions.")
    return generate_clips(command.clips, seed=seed, fps=fps, held_out="captions")


def training_features(
    command: TrainingData, console: Console, model: TokenizerConfig, *, seed: int
) -> list[FeatureClip]:
    """The motions to train on as a model takes them.

    Raises:
        UserError: nothing usable is there, or no number of clips.
    """
    clips = training_clips(command, console, fps=model.fps, seed=seed)
    return prepare(clips, console, fps=model.fps, form=model.features)


def data_option(command: TrainingData) -> str:
    """The options that name the data again, with a blank before them."""
    if command.data is None:
        return f" --clips {command.clips}"
    return f" --data {shlex.quote(str(command.data))}"


def prepare(
    clips: Sequence[Clip],
    console: Console,
    *,
    fps: float = 30.0,
    form: FeatureFormat = FEATURES272,
) -> list[FeatureClip]:
    """Clips as features at the model's frame rate, cut where a body jumps.

    Raises:
        UserError: nothing remains.
    """
    notes: list[str] = []
    prepared = prepare_clips(clips, fps=fps, form=form, notes=notes)
    print_notes(notes, console)
    if not prepared:
        raise UserError(f"none of the {len(clips)} clips has 4 frames without a jump: give other motions")
    return prepared


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU where there is one.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # "Torch not compiled with CUDA enabled" is an assertion
        reason = (str(error).strip().splitlines() or ["unknown"])[0][:200]
        raise UserError(f"--device {name} cannot be used ({reason}): use auto, cpu or cuda") from error
    return device


def load_model(checkpoint: str, device: str = "auto") -> MotionTokenizer:
    """A trained tokenizer in evaluation mode.

    Raises:
        UserError: files are missing or damaged, or there is no such device.
    """
    chosen = choose_device(device)
    return load_tokenizer(checkpoint).to(chosen)


def write_json(path: Path, values: object) -> None:
    """Writes an indented JSON file, whole or not at all.

    Raises:
        UserError: the file system refuses.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def file_names(names: Sequence[str]) -> list[str]:
    """Names of clips as names of files: no characters that a file system refuses, and all different."""
    taken: set[str] = set()
    found = []
    for name in names:
        safe = re.sub(r"[^\w.\- ]+", "_", name).strip(" .")[:120]
        safe = safe.encode()[:LONGEST_NAME].decode(errors="ignore") or "clip"
        unique, number = safe, 2
        # Some file systems do not tell A from a.
        while unique.lower() in taken:
            unique, number = f"{safe}_{number}", number + 1
        taken.add(unique.lower())
        found.append(unique)
    return found


def choose_clips(names: Sequence[str], wanted: Sequence[str], limit: int, console: Console) -> list[int]:
    """Indices of the clips to show.

    Raises:
        UserError: a wanted one is not there, or more are wanted than can be shown.
    """
    if not wanted:
        if len(names) > limit:
            print_notes([f"showing {limit} of {len(names)} clips; choose others with --clip"], console)
        return list(range(min(limit, len(names))))
    for name in wanted:
        if name not in names:
            some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise UserError(f"there is no clip {name!r}; there are {some}")
    if len(wanted) > limit:
        raise UserError(
            f"--clip names {len(wanted)} clips, and {limit} can be shown: name fewer, or raise --max-clips"
        )
    return [names.index(name) for name in wanted]


def size_text(size: int) -> str:
    """A file size as people write it: 61 KB."""
    for unit, digits in (("bytes", 0), ("KB", 0), ("MB", 1)):
        if size < 1000 or unit == "MB":
            return f"{size:,.{digits}f} {unit}"
        size /= 1000  # type: ignore[assignment]
    raise AssertionError("unreachable")
