"""The heatmap VQ-GAN through the command line: train, resume, evaluate."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, settings_of

TINY = (
    *("--frames", "8", "--size", "16", "--channels", "4", "8", "--down-stages", "2", "--latent-channels", "4"),
    *("--code-dim", "4", "--codes", "8", "--norm-groups", "2", "--steps", "3", "--batch-size", "2"),
    *("--discriminator-width", "4", "--discriminator-layers", "2", "--loss.start", "1", "--log-every", "1"),
    *("--stretch", "8", "40", "--no-random-scores"),
)
SCORES = {"ssim", "psnr", "l1", "t_std", "keypoint_px", "keypoint_px_other", "perplexity", "utilisation"}


@pytest.fixture
def run(heatmap_run: Path) -> Path:
    return heatmap_run


def test_training_writes_a_run_folder_with_its_evaluation(run: Path) -> None:
    config = settings_of(run)
    assert config.model.channels == (4, 8)
    assert config.model.codebook_size == 8
    assert config.stretch == (8, 40)
    assert config.loss.start == 1
    assert not config.random_scores
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation) >= SCORES
    assert evaluation["split"] == "test"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["discriminator"] > 0 for row in rows] == [False, True, True]


def test_the_same_command_resumes(run: Path, motions: Path, tmp_path: Path, fastvq: Callable[..., Any]) -> None:
    parts = tmp_path / "parts"
    short = [*TINY, "--steps", "2"]
    assert fastvq("train", "heatmap-vqgan", "--data", motions, "--out", parts, *short, "--skip-report").code == 0
    given = fastvq("train", "heatmap-vqgan", "--data", motions, "--out", parts, "--resume", "--steps", "3")
    assert given.code == 0
    assert "Resuming at step 2" in given.out
    whole, resumed = (HeatmapVQGAN.from_pretrained(folder).state_dict() for folder in (run, parts))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_evaluate(run: Path, motions: Path, tmp_path: Path, fastvq: Callable[..., Any]) -> None:
    scores = tmp_path / "scores.json"
    given = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--json", scores)
    assert given.code == 0
    assert "SSIM" in given.out
    assert "px in another window" in given.out
    found, before = (json.loads(path.read_text()) for path in (scores, run / "evaluation.json"))
    for name in SCORES:
        assert found[name] == pytest.approx(before[name]), name
    refused = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--evaluator", tmp_path)
    assert refused.code == 2
    assert "not heatmaps: leave it out" in refused.err
    assert before["windows"] > 2
    some = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--windows", 2, "--json", tmp_path / "two.json")
    assert some.code == 0
    assert json.loads((tmp_path / "two.json").read_text())["windows"] == 2
    none = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--windows", 0)
    assert none.code == 2
    assert "--windows must be an integer of at least 1, got 0" in none.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "18"), "size must be a multiple of the 4 that a token covers, got 18: use 16"),
        (("--sigma", "0"), "sigma must be a number above 0"),
        (("--stretch", "5000", "6000"), "5000 frames without a jump: give longer motions"),
    ],
)
def test_what_is_wrong_is_said(
    motions: Path, tmp_path: Path, fastvq: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    given = fastvq("train", "heatmap-vqgan", "--data", motions, "--out", tmp_path / "new", *TINY, *options)
    assert given.code == 2
    assert message in given.err
    assert not (tmp_path / "new").exists()


def test_a_model_that_was_saved_by_itself_has_default_heatmaps(run: Path, tmp_path: Path) -> None:
    HeatmapVQGAN.from_pretrained(run).save_pretrained(tmp_path / "alone")
    config = settings_of(tmp_path / "alone")
    assert config.heatmaps.projection == HeatmapTrainConfig().projection
    assert config.heatmaps.size == 16
    shutil.copytree(run, tmp_path / "copy")
    values = json.loads((tmp_path / "copy" / "config.json").read_text())
    values["training"]["colour"] = 1
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="does not know: colour"):
        settings_of(tmp_path / "copy")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (5, "training must be an object of settings, got int"),
        ({"stretch": 5}, "config.json: object of type 'int' has no len()"),
        ({"azimuths": 5}, "config.json: 'int' object is not iterable"),
        ({"sigma": 0}, "config.json: sigma must be a number above 0, got 0"),
        ({"loss": 5}, "has a loss that this version of fastvq does not know"),
    ],
)
def test_damaged_settings_name_their_file(run: Path, tmp_path: Path, training: object, message: str) -> None:
    values = json.loads((run / "config.json").read_text())
    values["training"] = {**values["training"], **training} if isinstance(training, dict) else training
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(message)):
        settings_of(tmp_path)
