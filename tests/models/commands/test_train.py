"""``fastvq train`` and ``fastvq demo``: the run folder, its report, and what they refuse to overwrite."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvq.models.commands import demo
from fastvq.models.commands.finish import representative
from fastvq.models.commands.passes import Reconstruction
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.load import load_clips
from fastvq.models.rendering.scene import unpack_joints
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.data import FeatureClip, prepare_clips
from fastvq.models.training.run_folder import RunFolder

PINNED = {
    *("config.json", "model.safetensors", "mean.npy", "std.npy", "checkpoints", "last.json", "metrics.jsonl"),
    *("evaluation.json", "environment.json", "tokens.safetensors", "report.html"),
}
TINY = (
    *("--steps", "2", "--width", "16", "--output-dim", "16", "--groups", "4", "--codes", "8", "--depth", "1"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1"),
)


def report_scenes(path: Path) -> list[dict[str, Any]]:
    """What the players of a report carry."""
    found = re.findall(r'<script type="application/json" id="scene-\d+">(.*?)</script>', path.read_text())
    return [json.loads(text)[0] for text in found]


def test_a_run_folder_holds_what_is_pinned(run_folder: Path) -> None:
    names = {entry.name for entry in run_folder.iterdir()}
    assert names >= PINNED
    assert names <= PINNED | {"tensorboard"}


def test_the_options_reach_the_model(run_folder: Path) -> None:
    config = MotionVQVAE.from_pretrained(run_folder).config
    assert (config.width, config.groups, config.codebook_size, config.output_dim, config.depth) == (16, 4, 8, 16, 1)
    stored = json.loads((run_folder / "config.json").read_text())["training"]
    assert (stored["steps"], stored["batch_size"], stored["window"]) == (3, 4, 32)


def test_the_report_shows_held_out_clips_and_their_reconstructions(run_folder: Path, motions: Path) -> None:
    clips = {clip.name: clip for clip in prepare_clips(load_clips(motions, split="test").clips)}
    model = MotionVQVAE.from_pretrained(run_folder)
    scenes = report_scenes(run_folder / "report.html")
    assert {scene["name"] for scene in scenes} == set(clips)
    for scene in scenes:
        clip = clips[scene["name"]]
        original, reconstruction = (unpack_joints(track) for track in scene["tracks"])
        assert np.abs(original - clip.joints[: len(original)]).max() < 1e-3
        decoded, _ = model(clip.features)
        positions = decoded[0, : len(reconstruction), 8:74].reshape(-1, 22, 3).numpy()
        # Heights are the same in the features and in the world; x and z are turned and moved.
        assert np.abs(reconstruction[..., 1] - positions[..., 1]).max() < 1e-3
        assert scene["caption"] == clip.text


def test_the_report_has_the_numbers_of_the_evaluation(run_folder: Path) -> None:
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    text = (run_folder / "report.html").read_text()
    assert f"{evaluation['mpjpe_mm']:.1f} mm" in text
    assert f"{evaluation['perplexity']:.0f} of 8" in text
    assert text.count('class="bar"') == 2 * 4
    assert text.count("model.width") == 1
    assert "training.batch_size" in text


def test_training_does_not_mix_with_what_is_there(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    outcome = fastvq("train", "motion-vqvae", "--data", motions, "--out", copy, *TINY)
    assert outcome.code == 2
    assert "is not empty" in outcome.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_a_run_and_nothing_else(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (copy / "notes.txt").write_text("mine")
    command = ["train", "motion-vqvae", "--data", motions, "--out", copy, *TINY, "--overwrite", "--skip-report"]
    outcome = fastvq(*command)
    assert outcome.code == 2
    assert "notes.txt" in outcome.err
    assert (copy / "report.html").is_file()
    (copy / "notes.txt").unlink()
    assert fastvq(*command).code == 0
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (copy / "report.html").exists()


def test_resume_needs_no_settings_again(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run[bold]"
    shutil.copytree(run_folder, copy)
    base = ["train", "motion-vqvae", "--data", motions, "--out", copy, "--skip-report", "--resume"]
    outcome = fastvq(*base, "--steps", 5)
    assert outcome.code == 0
    assert f"Resuming at step 3 from {copy}/checkpoints" in outcome.out  # brackets are no markup
    assert [json.loads(row)["step"] for row in (copy / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    outcome = fastvq(*base, "--steps", 6, "--width", 32)
    assert outcome.code == 2
    assert "width" in outcome.err
    assert fastvq(*base, "--overwrite").code == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--groups", "3"], "multiple of groups"),
        (["--window", "30"], "multiple of the 4 frames"),
        (["--steps", "0"], "steps must be an integer of at least 1"),
        (["--window", "4000"], "at least 4000 frames"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], motions: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    outcome = fastvq("train", "motion-vqvae", "--data", motions, "--out", tmp_path / "run", *TINY, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A demo of a few seconds, and an empty working folder for it."""

    def config(seed: int, clips: list[FeatureClip]) -> TrainConfig:
        sizes = MotionVQVAEConfig(width=16, output_dim=16, groups=4, codebook_size=8, depth=1)
        return TrainConfig(model=sizes, window=32, batch_size=2, seed=seed, log_every=10)

    monkeypatch.setattr(demo, "demo_config", config)
    monkeypatch.setattr(demo, "PROCEDURAL_CLIPS", 20)
    monkeypatch.setattr(demo, "TIMED_STEPS", 2)
    monkeypatch.setattr(demo, "FEWEST_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_demo_ends_with_its_report(fastvq: Callable[..., Any], small_demo: Path) -> None:
    outcome = fastvq("demo", "--seconds", "0.01")
    assert outcome.code == 0
    folder = small_demo / "runs" / "demo"
    assert {entry.name for entry in folder.iterdir()} >= PINNED
    assert "Joint error" in outcome.out
    assert f"Report: {folder / 'report.html'}" in outcome.out
    assert "fastvq decode --checkpoint runs/demo" in outcome.out
    assert "made up by a generator" in (folder / "report.html").read_text()
    assert report_scenes(folder / "report.html")


def test_a_second_demo_takes_the_next_folder(fastvq: Callable[..., Any], small_demo: Path, motions: Path) -> None:
    (small_demo / "runs" / "demo").mkdir(parents=True)
    (small_demo / "runs" / "demo" / "file").write_text("")
    assert fastvq("demo", "--seconds", "0.01", "--data", motions).code == 0
    assert (small_demo / "runs" / "demo-2" / "report.html").is_file()
    outcome = fastvq("demo", "--seconds", "0.01", "--out", "runs/demo")
    assert outcome.code == 2
    assert "is not empty" in outcome.err


def test_a_folder_in_which_a_process_trains_is_not_overwritten(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fcntl", reason="folders can be locked on POSIX only")
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    with RunFolder(copy).lock():
        outcome = fastvq("train", "motion-vqvae", "--data", motions, "--out", copy, *TINY, "--overwrite")
    assert outcome.code == 2
    assert "another process is training" in outcome.err
    assert (copy / "report.html").is_file()


def test_a_demo_without_anything_to_measure_says_so_before_it_trains(
    fastvq: Callable[..., Any], small_demo: Path
) -> None:
    clips = [clip("one", "train"), clip("two", "test")]
    clips[1].joints[::2] += 10
    write_joint_arrays(small_demo / "clips.npz", clips)
    outcome = fastvq("demo", "--seconds", "0.01", "--data", small_demo / "clips.npz")
    assert outcome.code == 2
    assert "none of the held-out clips has 4 frames without a jump" in outcome.err
    assert not (small_demo / "runs").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e300"])
def test_a_demo_takes_time(fastvq: Callable[..., Any], small_demo: Path, seconds: str) -> None:
    outcome = fastvq("demo", "--seconds", seconds)
    assert outcome.code == 2
    assert "--seconds must be above 0" in outcome.err


def clip(name: str, split: str, frames: int = 40) -> Clip:
    return Clip(name=name, fps=30.0, joints=np.zeros((frames, 22, 3), dtype=np.float32), split=split)


def test_clips_are_held_out_where_the_data_holds_none() -> None:
    given, note = demo.hold_out([clip("a", "train"), clip("b", "test"), clip("c", "val")])
    assert [entry.name for entry in given] == ["a", "b"]
    assert note == ""
    dealt, note = demo.hold_out([clip(str(index), "train") for index in range(21)])
    assert sum(entry.split == "test" for entry in dealt) == 3
    assert "3 of its 21 clips were held out" in note
    both, note = demo.hold_out([clip("a", "test")])
    assert [entry.split for entry in both] == ["train", "test"]
    assert "only one clip" in note


def test_shown_clips_span_the_errors() -> None:
    def found(error: float, frames: int = 60) -> Reconstruction:
        joints = np.zeros((frames, 22, 3))
        entry = FeatureClip(name=str(error), features=np.zeros((frames, 272)), joints=joints)
        return Reconstruction(entry, joints, error)

    many = [found(float(error)) for error in range(100)] + [found(1000.0, frames=10)]
    assert [one.mpjpe_mm for one in representative(many)] == [0, 20, 40, 59, 79, 99]
    assert [one.mpjpe_mm for one in representative([found(2.0, 10), found(1.0)])] == [1, 2]


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [({8: 1.0, 4: 3.0, 2: 2.0, 1: 9.0}, 4), ({8: 4.0, 4: 3.0}, 8), ({8: 1.0, 4: 2.0, 2: 3.0, 1: 4.0}, 1)],
)
def test_the_demo_halves_its_threads_while_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], chosen: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(demo, "_timed", lambda config, clips: rates[torch.get_num_threads()])
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert demo.measure_speed(TrainConfig(), []) == rates[chosen]
        assert torch.get_num_threads() == chosen
    finally:
        torch.set_num_threads(before)
