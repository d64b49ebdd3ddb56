"""The residual tokenizer through the command line: train, resume, encode, decode, evaluate, render."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvq.models.cli import main
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.features263 import joints_to_features
from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES
from fastvq.models.motion.layout263 import KIT_ML
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens
from fastvq.models.training.data import prepare_clips

TINY = (
    *("--steps", "3", "--width", "16", "--output-dim", "8", "--stages", "3", "--codes", "8", "--depth", "1"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1"),
)


@pytest.fixture(scope="module")
def run(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    out = tmp_path_factory.mktemp("residual") / "run"
    assert main(["train", "rvqvae", "--data", str(motions), "--out", str(out), *TINY]) == 0
    return out


def test_training_writes_a_run_folder_with_its_evaluation_and_report(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    assert (values["kind"], values["stages"], values["input_dim"]) == ("rvqvae", 3, 263)
    assert set(values["training"]["loss"]) == {"reconstruction", "velocity", "bone"}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["perplexity_per_stage"]) == len(evaluation["utilisation_per_stage"]) == 3
    assert evaluation["tokens"] == 3 * evaluation["latents"]
    assert set(evaluation["recon_per_slice"]) == set(format_of(263).slices)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["perplexity_per_stage"]) for row in rows] == [3, 3, 3]
    report = (run / "report.html").read_text()
    assert "RVQ-VAE of width 16 with 3 stages on one shared codebook of 8 codes" in report
    assert "All 3 stages share 8 codes" in report
    assert f"{evaluation['perplexity']:.0f} of 8" in report


def test_encode_and_decode(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    assert fastvq("encode", "--checkpoint", run, "--data", motions, "--out", path).code == 0
    manifest = read_manifest(path)
    assert (manifest["kind"], manifest["groups"], manifest["stages"], manifest["fps"]) == ("rvqvae", 1, 3, 20.0)
    model = ResidualVQVAE.from_pretrained(run)
    clips = prepare_clips(load_clips(motions, fps=20.0).clips, fps=20.0, form=format_of(263))
    stored = read_tokens(path, model)
    assert [(clip.name, clip.frames) for clip in stored] == [(clip.name, len(clip.features)) for clip in clips]
    assert torch.equal(stored[0].tokens, model.encode(clips[0].features)[:, 0])
    for kind in ("npz", "bvh"):
        out = tmp_path / kind
        options = ["decode", "--checkpoint", run, "--tokens", path, "--out", out, "--format", kind]
        assert fastvq(*options).code == 0
        decoded = {clip.name: clip for clip in load_clips(out, fps=None).clips}
        assert {name: clip.frames for name, clip in decoded.items()} == {clip.name: clip.frames for clip in stored}
        features = model.decode(stored[0].tokens)[0, : stored[0].frames].numpy()
        joints = decoded[stored[0].name].joints
        assert np.abs(joints - format_of(263).to_joints(features)).max() < 2e-4
    assert fastvq(*options[:-1], "bvh", "--rigid-bones", "--overwrite").code == 0


def test_evaluate_and_render(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    outcome = fastvq("evaluate", "--checkpoint", run, "--data", motions, "--json", tmp_path / "scores.json")
    assert outcome.code == 0
    assert "Stage 2" in outcome.out
    scores, trained = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "evaluation.json"))
    assert scores["mpjpe_mm"] == trained["mpjpe_mm"]
    assert scores["perplexity_per_stage"] == trained["perplexity_per_stage"]
    page = tmp_path / "page.html"
    assert fastvq("render", "--checkpoint", run, "--data", motions, "--out", page, "--max-clips", 1).code == 0
    tokens = run / "tokens.safetensors"
    assert fastvq("render", "--checkpoint", run, "--tokens", tokens, "--out", tmp_path / "tokens.html").code == 0


def test_resume_needs_no_settings_again(fastvq: Callable[..., Any], run: Path, motions: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    base = ["--data", motions, "--out", copy, "--skip-report", "--resume"]
    refused = fastvq("train", "motion-vqvae", *base, "--steps", 4)
    assert refused.code == 2
    assert "is a run of the kind rvqvae, not motion-vqvae: resume it with fastvq train rvqvae" in refused.err
    assert fastvq("train", "rvqvae", *base, "--steps", 4).code == 0
    assert [json.loads(row)["step"] for row in (copy / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    refused = fastvq("train", "rvqvae", *base, "--steps", 5, "--stages", 2)
    assert refused.code == 2
    assert "model.stages (was 3, is 2)" in refused.err


def test_kit_ml_from_its_own_folder(fastvq: Callable[..., Any], motions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kit" / "new_joint_vecs"
    folder.mkdir(parents=True)
    smpl = {"root": "pelvis", "spine2": "spine3"}
    order = [JOINT_NAMES.index(smpl.get(name, name).replace("midfoot", "foot")) for name in KIT_JOINT_NAMES]
    written = {}
    for clip in [clip for clip in load_clips(motions, fps=12.5).clips if clip.frames > 40]:
        written[clip.name] = joints_to_features(clip.joints[:, order], KIT_ML)
        np.save(folder / f"{clip.name}.npy", written[clip.name])
    run, data = tmp_path / "run", ["--data", folder.parent]
    coarse = ["--input-dim", 251, "--down-stages", 3]
    outcome = fastvq("train", "rvqvae", *data, "--out", run, *TINY, *coarse)
    assert outcome.code == 0
    model = ResidualVQVAE.from_pretrained(run)
    tokens = tmp_path / "tokens.safetensors"
    assert fastvq("encode", "--checkpoint", run, *data, "--out", tokens).code == 0
    manifest = read_manifest(tokens)
    assert (manifest["fps"], manifest["downsample"]) == (12.5, 8)
    for clip in read_tokens(tokens, model):
        assert torch.equal(clip.tokens, model.encode(written[clip.name])[:, 0])
    out = tmp_path / "decoded"
    assert fastvq("decode", "--checkpoint", run, "--tokens", tokens, "--out", out).code == 0
    assert len(load_clips(out, fps=None).clips) == len(written)
    assert fastvq("evaluate", "--checkpoint", run, *data, "--split", "all").code == 0


def test_a_token_file_of_another_kind_is_refused(
    fastvq: Callable[..., Any], run: Path, tokens: Path, tmp_path: Path
) -> None:
    outcome = fastvq("decode", "--checkpoint", run, "--tokens", tokens, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "was written by another model (a motion-vqvae with 4 groups of 8 codes" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("rvq", [], "there is no kind of model 'rvq': the kinds are motion-vqvae, rvqvae"),
        ("rvqvae", ["--stages", "9"], "stages must be at most 8, got 9"),
        ("rvqvae", ["--input-dim", "200"], "input_dim must be a width of features that is known"),
        ("rvqvae", ["--input-dim", "251"], "KIT-ML's 251 features need KIT-ML's own at 12.5 frames per second"),
        ("rvqvae", ["--turn"], "turn has nothing to turn"),
        ("rvqvae", ["--window", "30"], "multiple of the 4 frames"),
        ("rvqvae", ["--loss.bone", "-1"], "loss.bone must be a number at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], motions: Path, tmp_path: Path, kind: str, options: list[str], complaint: str
) -> None:
    outcome = fastvq("train", kind, "--data", motions, "--out", tmp_path / "run", *TINY, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())


def test_every_kind_explains_its_own_settings(fastvq: Callable[..., Any]) -> None:
    plain, grouped, residual = (fastvq("train", *kind, "--help") for kind in ((), ("motion-vqvae",), ("rvqvae",)))
    assert "rvqvae, the residual" in " ".join(plain.out.replace("│", " ").split())
    assert "--groups" in grouped.out
    assert "--stages" not in grouped.out
    assert "--stages" in residual.out
    assert "--groups" not in residual.out
    assert "--codes" in residual.out
