"""PGR2M's tokenizer through the command line: train, resume, encode, decode, evaluate, render."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvq.models.cli import main
from fastvq.models.motion.load import load_clips
from fastvq.models.tokenizers.token_file import read_manifest

TINY = (
    *("--steps", "3", "--width", "16", "--output-dim", "8", "--codes", "8", "--depth", "1", "--stages", "2"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1"),
)


@pytest.fixture(scope="module")
def run(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    out = tmp_path_factory.mktemp("pgr2m") / "run"
    assert main(["train", "pgr2m", "--data", str(motions), "--out", str(out), *TINY]) == 0
    return out


def test_training_writes_a_run_folder_with_its_evaluation_and_report(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    assert (values["kind"], values["stages"], values["quantizer"]) == ("pgr2m", 2, "attention")
    assert values["training"]["loss"] == {"reconstruction": 1.0, "velocity": 0.5, "vel_mode": "positions"}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["perplexity_per_stage"]) == 2
    assert evaluation["tokens"] == 72 * evaluation["latents"]
    report = (run / "report.html").read_text()
    assert "pose codes and 2 residual stages of 8 codes by attention, width 16" in report
    assert "Each of the 2 stages has its own" in report


def test_every_command_takes_it(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "tokens.safetensors", tmp_path / "decoded"
    assert fastvq("encode", "--checkpoint", run, "--data", motions, "--out", path).code == 0
    assert read_manifest(path)["kind"] == "pgr2m"
    assert fastvq("decode", "--checkpoint", run, "--tokens", path, "--out", out).code == 0
    assert len(load_clips(out, fps=None).clips) == len(load_clips(motions, fps=20.0).clips)
    outcome = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--json", tmp_path / "scores.json")
    assert outcome.code == 0
    assert "Stage 1" in outcome.out
    scores, trained = (json.loads(file.read_text()) for file in (tmp_path / "scores.json", run / "evaluation.json"))
    assert scores["mpjpe_mm"] == trained["mpjpe_mm"]
    edited, rule = tmp_path / "edited.safetensors", "raise the right hand from frame 4 to 12"
    assert fastvq("edit", path, "--checkpoint", run, "--rule", rule, "--out", edited).code == 0
    page = tmp_path / "page.html"
    assert fastvq("render", "--checkpoint", run, "--data", motions, "--out", page, "--max-clips", 1).code == 0


def test_a_run_is_resumed_with_its_settings(fastvq: Callable[..., Any], motions: Path, tmp_path: Path) -> None:
    given = ("train", "pgr2m", "--data", motions, "--out", tmp_path / "run")
    ours = ("--quantizer", "distance", "--residual-dropout", "0.5", "--loss.vel-mode", "differences")
    assert fastvq(*given, *TINY, *ours, "--skip-report").code == 0
    assert fastvq(*given, "--resume", "--steps", 4, "--skip-report").code == 0
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (values["quantizer"], values["residual_dropout"]) == ("distance", 0.5)
    assert values["training"]["loss"]["vel_mode"] == "differences"
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--residual-dropout", "2"], "residual_dropout must be a number at least 0 and at most 1, got 2"),
        (["--entropy-temperature", "0"], "entropy_temperature must be a number above 0"),
        (["--quantizer", "nearest"], "nearest"),
        (["--loss.vel-mode", "v1"], "v1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], motions: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    outcome = fastvq("train", "pgr2m", "--data", motions, "--out", tmp_path / "run", *TINY, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())
