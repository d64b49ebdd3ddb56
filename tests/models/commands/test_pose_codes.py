"""The tokenizer with pose codes through the command line: train, resume, encode, decode, evaluate, render."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvq.models.cli import main
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.pose_codes import code_named, parse_features
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens
from fastvq.models.training.data import prepare_clips

TINY = (
    *("--steps", "3", "--width", "16", "--output-dim", "8", "--codes", "8", "--depth", "1"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1"),
)


@pytest.fixture(scope="module")
def run(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    out = tmp_path_factory.mktemp("pose") / "run"
    assert main(["train", "pose-rvq", "--data", str(motions), "--out", str(out), *TINY]) == 0
    return out


def test_training_writes_a_run_folder_with_its_evaluation_and_report(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    assert (values["kind"], values["stages"], values["codebook_size"]) == ("pose-rvq", 2, 8)
    assert set(values["training"]["loss"]) == {"reconstruction", "velocity"}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["perplexity_per_stage"]) == len(evaluation["utilisation_per_stage"]) == 2
    assert evaluation["tokens"] == 72 * evaluation["latents"]
    report = (run / "report.html").read_text()
    assert "pose codes and 2 residual stages on one codebook of 8, width 16" in report
    assert "All 2 stages share 8 codes" in report


def test_encode_and_decode(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    assert fastvq("encode", "--checkpoint", run, "--data", motions, "--out", path).code == 0
    manifest = read_manifest(path)
    assert (manifest["kind"], manifest["stages"], manifest["K"][-3:]) == ("pose-rvq", 72, [2, 8, 8])
    model = PoseResidualVQVAE.from_pretrained(run)
    clips = prepare_clips(load_clips(motions, fps=20.0).clips, fps=20.0, form=format_of(263))
    for clip, stored in zip(clips, read_tokens(path, model), strict=True):
        assert (clip.name, len(clip.features)) == (stored.name, stored.frames)
        assert torch.equal(stored.tokens[:70].t(), torch.from_numpy(parse_features(clip.features[::4]).bins))
    out = tmp_path / "decoded"
    assert fastvq("decode", "--checkpoint", run, "--tokens", path, "--out", out).code == 0
    assert len(load_clips(out, fps=None).clips) == len(clips)


def test_evaluate_and_render(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    outcome = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--json", tmp_path / "scores.json")
    assert outcome.code == 0
    assert "Stage 1" in outcome.out
    assert "Stage 2" not in outcome.out
    scores, trained = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "evaluation.json"))
    assert scores["mpjpe_mm"] == trained["mpjpe_mm"]
    model, shown = PoseResidualVQVAE.from_pretrained(run), []
    for clip in read_tokens(run / "tokens.safetensors", model):
        decoded = model.decode(clip.tokens)[0, : clip.frames : 4].numpy()
        shown.append(parse_features(decoded).bins == clip.tokens[:70].t().numpy())
    assert scores["pose_codes_shown"] == pytest.approx(np.concatenate(shown).mean(), abs=1e-3)
    assert "Pose codes shown" in outcome.out
    page, tokens = tmp_path / "page.html", run / "tokens.safetensors"
    assert fastvq("render", "--checkpoint", run, "--data", motions, "--out", page, "--max-clips", 1).code == 0
    assert fastvq("render", "--checkpoint", run, "--tokens", tokens, "--out", tmp_path / "tokens.html").code == 0


def test_edit(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    model = PoseResidualVQVAE.from_pretrained(run)
    stored = read_tokens(run / "tokens.safetensors", model)
    name = stored[0].name
    options = [
        "--checkpoint",
        run,
        "--rule",
        "raise the right hand from frame 4 to 12",
        "--set",
        "left knee=straight",
    ]
    out, numbers = tmp_path / "edited.safetensors", tmp_path / "edited.json"
    outcome = fastvq("edit", run / "tokens.safetensors", *options, "--frames", "0:8", "--out", out, "--json", numbers)
    assert outcome.code == 0
    assert "right hand above the neck" in outcome.out
    assert "edit consistency" in outcome.out
    for before, after in zip(stored, read_tokens(out, model), strict=True):
        assert (before.name, before.frames) == (after.name, after.frames)
        changed = (before.tokens != after.tokens).any(dim=0)
        assert changed[1:3].all()
        assert not changed[3:].any()
        assert model.pose_codes(after.tokens).has(code_named("left knee straight"))[:2].all()
    values = json.loads(numbers.read_text())
    assert values["format"] == "fastvq-edit/1"
    assert values["edits"] == ["raise the right hand from frame 4 to 12", "left knee=straight from frame 0 to 8"]
    assert len(values["clips"]) == len(stored)
    assert 0 <= values["consistency"]["after"]["share"] <= 1
    assert fastvq("decode", "--checkpoint", run, "--tokens", out, "--out", tmp_path / "bvh").code == 0
    page = tmp_path / "edited.html"
    more = ["--clip", name, "--without-residuals", "--out", page]
    assert fastvq("edit", motions, *options[:4], *more).code == 0
    assert name in page.read_text()
    assert "raise the right hand from frame 4 to 12" in page.read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "there is nothing to edit: give --rule"),
        (
            ["--rule", "rise the right hand"],
            "there is no rule 'rise the right hand': close are 'raise the right hand'",
        ),
        (["--set", "left nee=straight"], "close are 'left knee straight'"),
        (["--rule", "hands apart", "--frames", "5"], "--frames must be START:STOP, such as 20:40, got '5'"),
        (["--rule", "hands apart", "--frames", "0:100000"], "are not in clip"),
        (["--rule", "hands apart", "--clip", "nobody"], "there is no clip 'nobody'; there are"),
    ],
)
def test_edits_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], run: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    base = ["edit", run / "tokens.safetensors", "--checkpoint", run, "--out", tmp_path / "out.safetensors"]
    outcome = fastvq(*base, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())


def test_only_tokenizers_with_pose_codes_are_edited(
    fastvq: Callable[..., Any], run_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    base = ["edit", tokens, "--checkpoint", run_folder, "--rule", "hands apart", "--out"]
    outcome = fastvq(*base, tmp_path / "out.safetensors")
    assert outcome.code == 2
    assert "a motion-vqvae has no pose codes to edit" in outcome.err
    assert "must end in .safetensors or .html" in fastvq(*base, tmp_path / "out.gif").err


def test_pose_codes_alone(fastvq: Callable[..., Any], motions: Path, tmp_path: Path) -> None:
    outcome = fastvq("train", "pose-rvq", "--data", motions, "--out", tmp_path / "run", *TINY, "--stages", 0)
    assert outcome.code == 0
    assert "Perplexity" not in outcome.out
    report = (tmp_path / "run" / "report.html").read_text()
    assert "pose codes alone, decoded by convolutions of width 16" in report
    assert "Code usage" not in report
    assert (
        fastvq("train", "pose-rvq", "--data", motions, "--out", tmp_path / "run", "--resume", "--steps", 4).code == 0
    )
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--input-dim", "272"], "input_dim of a pose-rvq must be 263 (HumanML3D) or 251 (KIT-ML)"),
        (["--input-dim", "251"], "KIT-ML's 251 features need KIT-ML's own at 12.5 frames per second"),
        (["--stages", "9"], "stages must be an integer of at most 8"),
        (["--loss.velocity", "-1"], "loss.velocity must be a number at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], motions: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    outcome = fastvq("train", "pose-rvq", "--data", motions, "--out", tmp_path / "run", *TINY, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())


def test_the_kind_s_own_defaults_are_explained(fastvq: Callable[..., Any]) -> None:
    shown = fastvq("train", "pose-rvq", "--help").out
    assert "--stages" in shown
    codes = shown[shown.index("--codes INT") :]
    assert "(default: 64)" in codes[:200]
