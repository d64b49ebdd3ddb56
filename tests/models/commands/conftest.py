"""A small data set and a tokenizer trained on it for a few steps, through the command line itself."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fastvq.models.cli import main
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.procedural import generate_clips

TINY = (
    *("--steps", "3", "--width", "16", "--output-dim", "16", "--groups", "4", "--codes", "8", "--depth", "1"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1"),
)
TINY_HEATMAPS = (
    *("--frames", "8", "--size", "16", "--channels", "4", "8", "--down-stages", "2", "--latent-channels", "4"),
    *("--code-dim", "4", "--codes", "8", "--norm-groups", "2", "--steps", "3", "--batch-size", "2"),
    *("--discriminator-width", "4", "--discriminator-layers", "2", "--loss.start", "1", "--log-every", "1"),
    *("--stretch", "8", "40", "--no-random-scores"),
)


class Outcome(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def fastvq(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 procedural clips as joint arrays, two of them in the test split."""
    folder = tmp_path_factory.mktemp("motions")
    write_joint_arrays(folder / "clips.npz", generate_clips(20, seed=1))
    return folder


def train_tiny(motions: Path, out: Path, seed: int) -> Path:
    """A run folder, quickly."""
    code = main(["train", "motion-vqvae", "--data", str(motions), "--out", str(out), *TINY, "--seed", str(seed)])
    assert code == 0
    return out


@pytest.fixture(scope="session")
def run_folder(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    return train_tiny(motions, tmp_path_factory.mktemp("runs") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_run(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same sizes and other weights."""
    return train_tiny(motions, tmp_path_factory.mktemp("runs") / "other", seed=1)


@pytest.fixture(scope="session")
def tokens(run_folder: Path, motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All clips in tokens of ``run_folder``."""
    path = tmp_path_factory.mktemp("tokens") / "all.safetensors"
    assert main(["encode", "--checkpoint", str(run_folder), "--data", str(motions), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def heatmap_run(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the heatmap VQ-GAN; tests leave it as it is."""
    out = tmp_path_factory.mktemp("heatmaps") / "run"
    assert main(["train", "heatmap-vqgan", "--data", str(motions), "--out", str(out), *TINY_HEATMAPS]) == 0
    return out
