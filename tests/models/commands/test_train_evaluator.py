"""``fastvq train-evaluator`` and the FID of ``fastvq evaluate``, through the command line."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
        (["--out", tmp_path, "--overwrite"], "holds notes.txt, which is no part of an evaluator, and is left alone"),
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


def test_a_training_that_was_stopped_goes_on(
    fastvq: Callable[..., Any], motions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvq.models.training import evaluator as training

    base = ["train-evaluator", "--data", motions, "--small", "--input-dim", 272, *SHORT]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fastvq(*base, "--out", whole).code == 0
    descend, steps = training._descend, 0

    def interrupted(*given: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)
        descend(*given)

    monkeypatch.setattr(training, "_descend", interrupted)
    stopped = fastvq(*base, "--out", broken)
    assert (stopped.code, steps) == (130, 4)
    assert "The same command with --resume goes on." in stopped.out
    assert [entry.name for entry in broken.iterdir()] == ["training.pt"]
    assert "keeps a training that was stopped: add --resume" in fastvq(*base, "--out", broken).err
    other = fastvq(*base, "--out", broken, "--resume", "--seed", 1)
    assert (other.code, "other settings or clips" in other.err) == (2, True)
    assert fastvq(*base, "--out", broken, "--resume").code == 0
    assert steps == 6
    expected, found = load_evaluator(whole).state_dict(), load_evaluator(broken).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "keeps no training to go on with" in fastvq(*base, "--out", broken, "--resume").err
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "training.pt").write_bytes(b"x")
    assert "training.pt is damaged" in fastvq(*base, "--out", tmp_path / "damaged", "--resume").err
    assert fastvq(*base, "--out", tmp_path / "damaged", "--overwrite").code == 0
    assert not (tmp_path / "damaged" / "training.pt").exists()
