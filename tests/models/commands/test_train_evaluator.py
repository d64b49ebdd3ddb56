"""``fastvq train-evaluator`` and the FID of ``fastvq evaluate``, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvq.models.evaluation.evaluator import SMALL, load_evaluator

SHORT = ("--movement-steps", 3, "--match-steps", 3)


@pytest.fixture(scope="module")
def evaluator(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastvq.models.cli import main

    out = tmp_path_factory.mktemp("evaluator") / "mine"
    options = [
        "--data",
        motions,
        "--out",
        out,
        "--input-dim",
        272,
        "--small",
        "--name",
        "swings",
        "--window",
        24,
        *SHORT,
    ]
    assert main(["train-evaluator", *map(str, options)]) == 0
    return out


def test_the_fid_is_named_after_its_evaluator(
    fastvq: Callable[..., Any], evaluator: Path, run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    model = load_evaluator(evaluator)
    assert model.label == "fastvq evaluator, trained on swings"
    assert (model.config.window, model.config.embedding_dim) == (24, SMALL["embedding_dim"])
    scores = tmp_path / "scores.json"
    outcome = fastvq(
        "evaluate", "--checkpoint", run_folder, "--data", motions, "--evaluator", evaluator, "--json", scores
    )
    assert outcome.code == 0
    assert "trained on" in " ".join(outcome.out.split())
    # A long name leaves the column beside it its place.
    assert "pelvises moved together" in " ".join(outcome.out.replace("│", " ").split())
    values = json.loads(scores.read_text())
    assert values["fid"] > 0
    assert values["fid_name"] == "FID (fastvq evaluator, trained on swings)"
    assert values["fid_windows"] > 2


def test_settings_are_those_of_the_sizes(fastvq: Callable[..., Any], evaluator: Path) -> None:
    facts = json.loads((evaluator / "evaluator.json").read_text())["training"]
    assert (facts["movement_steps"], facts["match_steps"], facts["lr"], facts["seed"]) == (3, 3, 5e-4, 0)


def test_what_cannot_be_is_refused(
    fastvq: Callable[..., Any], evaluator: Path, run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    base = ["train-evaluator", "--data", motions, "--small", *SHORT]
    (tmp_path / "notes.txt").write_text("")
    for options, complaint in (
        (["--out", tmp_path], "is not empty"),
        (["--out", tmp_path, "--overwrite"], "holds no evaluator, and is left alone"),
        (["--out", "/dev/null/x"], "/dev/null/x: cannot be written"),
        (["--out", tmp_path / "x", "--input-dim", 100], "width of features that is known"),
        (["--out", tmp_path / "x", "--window", 6], "window must be a multiple of 4"),
        (["--out", tmp_path / "x", "--lr", 0], "lr must be a number above 0"),
        (["--out", tmp_path / "x", "--seed", -1], "seed must be an integer of at least 0"),
    ):
        outcome = fastvq(*base, *options)
        assert outcome.code == 2
        assert complaint in outcome.err
    assert fastvq(*base, "--out", evaluator).code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
    other = tmp_path / "other"
    assert fastvq(*base, "--out", other, "--embedding-dim", 24, "--motion-hidden", 16).code == 0
    config = load_evaluator(other).config
    assert (config.embedding_dim, config.motion_hidden, config.movement_dim) == (24, 16, SMALL["movement_dim"])
    assert fastvq(*base, "--out", other, "--overwrite", "--seed", 1).code == 0
    assert json.loads((other / "evaluator.json").read_text())["training"]["seed"] == 1
    refused = fastvq("evaluate", "--checkpoint", run_folder, "--data", motions, "--evaluator", other)
    assert refused.code == 2
    assert "takes 263 features and the model has 272" in refused.err
    early = fastvq("reproduce", "s0", "--quick", "--out", tmp_path / "claims", "--evaluator", evaluator)
    assert "takes 272 features and the model has 263" in early.err
    assert not (tmp_path / "claims").exists()
    missing = fastvq("evaluate", "--checkpoint", run_folder, "--data", motions, "--evaluator", tmp_path / "none")
    assert missing.code == 2
    assert "is no evaluator" in missing.err
