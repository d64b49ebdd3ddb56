"""``fastvq encode``, ``decode``, ``evaluate`` and ``render``: what they write, and what they say of bad input."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastvq.models.commands.common import file_names
from fastvq.models.motion.features263 import joints_to_features
from fastvq.models.motion.features272 import features_to_joints
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.skeleton import bone_lengths
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens
from fastvq.models.training.data import prepare_clips


def nothing_in(folder: Path) -> bool:
    """No file, not even a hidden or temporary one."""
    return not folder.exists() or not any(folder.iterdir())


def test_tokens_are_those_of_the_model(tokens: Path, run_folder: Path, motions: Path) -> None:
    model = MotionVQVAE.from_pretrained(run_folder)
    clips = prepare_clips(load_clips(motions).clips)
    stored = read_tokens(tokens, model)
    assert [(clip.name, clip.frames) for clip in stored] == [(clip.name, len(clip.features)) for clip in clips]
    for kept, clip in zip(stored[::7], clips[::7], strict=True):
        assert (kept.tokens == model.encode(clip.features)[:, 0]).all()


def test_encode_can_take_one_split(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "test.safetensors"
    outcome = fastvq(
        "encode", "--checkpoint", run_folder, "--data", motions, "--out", path, "--split", "test", "--batch-size", 1
    )
    assert outcome.code == 0
    assert "2 clips" in outcome.out
    assert len(read_manifest(path)["clips"]) == 2


def test_a_humanml3d_folder_of_unknown_unit_needs_a_scale(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    folder, tokens = tmp_path / "set" / "new_joint_vecs", tmp_path / "tokens.safetensors"
    folder.mkdir(parents=True)
    clips = [clip for clip in load_clips(motions, fps=20).clips if clip.frames > 20][:2]
    for clip in clips:
        np.save(folder / f"{clip.name}.npy", joints_to_features(7 * clip.joints))
    options = ["encode", "--checkpoint", run_folder, "--data", folder.parent, "--out", tokens]
    refused = fastvq(*options)
    assert refused.code == 2
    assert "HumanML3D: the leg" in refused.err
    assert "give the scale (--scale) in metres per unit" in refused.err
    taken = fastvq(*options, "--scale", 1 / 7)
    assert taken.code == 0
    assert "2 files are HumanML3D's, at 20 frames per second" in taken.out
    frames = [clip["frames"] for clip in read_manifest(tokens)["clips"]]
    assert sorted(frames) == sorted(int((clip.frames - 2) * 1.5) + 1 for clip in clips)


@pytest.mark.parametrize("kind", ["bvh", "npz"])
def test_decoded_motions_can_be_read_again(
    fastvq: Callable[..., Any], run_folder: Path, tokens: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "decoded"
    outcome = fastvq("decode", "--checkpoint", run_folder, "--tokens", tokens, "--out", out, "--format", kind)
    assert outcome.code == 0
    model = MotionVQVAE.from_pretrained(run_folder)
    stored = {clip.name: clip for clip in read_tokens(tokens, model)}
    clips = load_clips(out).clips
    assert {clip.name: clip.frames for clip in clips} == {name: clip.frames for name, clip in stored.items()}
    clip = clips[3]
    features = model.decode(stored[clip.name].tokens)[0, : clip.frames].numpy()
    # What 6 digits of a degree and of a metre keep at the end of a limb.
    assert np.abs(clip.joints - features_to_joints(features)).max() < 1e-4
    assert clip.fps == pytest.approx(30.0)


def test_rigid_bones_keep_their_lengths(
    fastvq: Callable[..., Any], run_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    out = tmp_path / "decoded"
    assert fastvq("decode", "--checkpoint", run_folder, "--tokens", tokens, "--out", out, "--rigid-bones").code == 0
    lengths = bone_lengths(load_clips(out).clips[0].joints)
    assert np.ptp(lengths, axis=0).max() < 1e-4


def test_names_of_clips_become_names_of_files() -> None:
    names = ["a/b", "a_b", "A_B", "..", "x" * 300, "walk 1", "名" * 100]
    assert file_names(names) == ["a_b", "a_b_2", "A_B_3", "clip", "x" * 120, "walk 1", "名" * 60]


def test_decode_refuses_tokens_of_another_model(
    fastvq: Callable[..., Any], other_run: Path, tokens: Path, tmp_path: Path
) -> None:
    outcome = fastvq("decode", "--checkpoint", other_run, "--tokens", tokens, "--out", tmp_path / "decoded")
    assert outcome.code == 2
    assert "written by another model" in outcome.err
    assert nothing_in(tmp_path)


def test_evaluate_writes_the_pinned_keys(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.json"
    base = ["evaluate", "--checkpoint", run_folder, "--data", motions, "--json", path]
    outcome = fastvq(*base, "--split", "test")
    assert outcome.code == 0
    numbers = json.loads(path.read_text())
    pinned = {
        *("recon_smooth_l1", "recon_per_slice", "mpjpe_mm", "perplexity", "utilisation", "clips", "frames"),
        "tokens_per_second",
    }
    assert numbers.keys() >= pinned
    assert len(numbers["recon_per_slice"]) == 5
    assert (numbers["clips"], numbers["split"]) == (2, "test")
    stored = json.loads((run_folder / "evaluation.json").read_text())
    assert numbers["mpjpe_mm"] == pytest.approx(stored["mpjpe_mm"])
    assert f"{numbers['mpjpe_mm']:.1f} mm" in outcome.out
    assert fastvq(*base).code == 2
    assert fastvq(*base, "--split", "all", "--overwrite").code == 0
    assert json.loads(path.read_text())["clips"] == 20


def test_a_split_that_is_not_there(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.json"
    outcome = fastvq("evaluate", "--checkpoint", run_folder, "--data", motions, "--split", "val", "--json", path)
    assert outcome.code == 2
    assert "no clips in the split 'val'" in outcome.err
    assert nothing_in(tmp_path)


def test_render_shows_motions_tokens_and_both(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tokens: Path, tmp_path: Path
) -> None:
    model = ["--checkpoint", run_folder]
    name = load_clips(motions).clips[4].name
    assert fastvq("render", "--data", motions, "--out", tmp_path / "a.html").code == 0
    assert fastvq("render", "--data", motions, *model, "--clip", name, "--out", tmp_path / "b.html").code == 0
    assert fastvq("render", "--tokens", tokens, *model, "--max-clips", 3, "--out", tmp_path / "c.html").code == 0
    texts = [(tmp_path / f"{letter}.html").read_text() for letter in "abc"]
    assert [text.count('"tracks"') for text in texts] == [12, 1, 3]
    assert [text.count('"Reconstruction"') for text in texts] == [0, 1, 0]
    assert name in texts[1]


def test_render_draws_a_gif(fastvq: Callable[..., Any], motions: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    clip = min(load_clips(motions).clips, key=lambda one: one.frames)
    outcome = fastvq("render", "--data", motions, "--clip", clip.name, "--size", 48, "--out", path)
    assert outcome.code == 0
    with Image.open(path) as image:
        assert image.size == (48, 48)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--out", "a.html"], "either --data or --tokens"),
        (["--out", "a.html", "--data", "x", "--tokens", "y"], "either --data or --tokens"),
        (["--out", "a.html", "--tokens", "y"], "--tokens needs --checkpoint"),
        (["--out", "a.mp4", "--data", "x"], "must end in .html or .htm or .gif"),
        (["--out", "a.html", "--data", "{motions}", "--clip", "nobody"], "there is no clip 'nobody'"),
        (["--out", "a.gif", "--data", "{motions}", "--size", "5"], "--size must be from 16"),
        (["--out", "a.html", "--data", "{motions}", "--max-clips", "0"], "--max-clips must be at least 1"),
    ],
)
def test_render_says_what_it_needs(
    fastvq: Callable[..., Any],
    motions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fastvq("render", *(option.replace("{motions}", str(motions)) for option in options))
    assert outcome.code == 2
    assert complaint in outcome.err
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("command", ["encode", "evaluate", "train", "demo", "render"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_data_that_holds_no_motions(
    fastvq: Callable[..., Any], run_folder: Path, tmp_path: Path, command: str, kind: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    if kind != "missing":
        data.mkdir()
    if kind == "text":
        (data / "motion.bvh").write_text("This is no BVH file.")
    options = {
        "encode": ["--checkpoint", run_folder, "--data", data, "--out", out / "a.safetensors"],
        "evaluate": ["--checkpoint", run_folder, "--data", data, "--json", out / "a.json"],
        "train": ["motion-vqvae", "--data", data, "--out", out],
        "demo": ["--data", data, "--out", out],
        "render": ["--data", data, "--out", out / "a.html"],
    }
    outcome = fastvq(command, *options[command])
    assert outcome.code == 2
    assert str(data) in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert nothing_in(out)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "mean.npy", "std.npy"])
def test_a_checkpoint_that_lacks_a_file(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path, missing: str
) -> None:
    model = MotionVQVAE.from_pretrained(run_folder)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    out = tmp_path / "a.safetensors"
    outcome = fastvq("encode", "--checkpoint", tmp_path / "model", "--data", motions, "--out", out)
    assert outcome.code == 2
    assert missing in outcome.err
    assert not out.exists()


def test_a_checkpoint_that_is_not_there(fastvq: Callable[..., Any], motions: Path, tmp_path: Path) -> None:
    outcome = fastvq("evaluate", "--checkpoint", tmp_path / "nowhere", "--data", motions)
    assert outcome.code == 2
    assert "there is no folder" in outcome.err


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_tokens_that_cannot_be_read(
    fastvq: Callable[..., Any], run_folder: Path, tokens: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "bad.safetensors"
    if damage == "cut":
        path.write_bytes(tokens.read_bytes()[:-100])
    if damage == "text":
        path.write_text("no tokens")
    outcome = fastvq("decode", "--checkpoint", run_folder, "--tokens", path, "--out", tmp_path / "decoded")
    assert outcome.code == 2
    assert "bad.safetensors" in outcome.err
    assert nothing_in(tmp_path / "decoded")


def test_files_that_exist_are_kept(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tokens: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_text("mine")
    encode = ["encode", "--checkpoint", run_folder, "--data", motions, "--out", mine]
    assert "exists" in fastvq(*encode).err
    assert "is not empty" in fastvq("decode", "--checkpoint", run_folder, "--tokens", tokens, "--out", tmp_path).err
    assert mine.read_text() == "mine"
    assert fastvq(*encode, "--overwrite").code == 0
    assert read_manifest(mine) == read_manifest(tokens)
    assert fastvq(*encode[:-1], tmp_path).code == 2
    assert fastvq(*encode[:-1], tmp_path / "tokens.txt").code == 2


def test_a_full_disk_leaves_nothing_half_written(
    fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path, small_disk: Callable[[int], Any]
) -> None:
    out = tmp_path / "out" / "a.safetensors"
    with small_disk(500):
        outcome = fastvq("encode", "--checkpoint", run_folder, "--data", motions, "--out", out)
    assert outcome.code == 2
    assert "cannot be written" in outcome.err
    assert nothing_in(out.parent)


@pytest.mark.parametrize("kind", ["bvh", "npz"])
def test_a_full_disk_leaves_no_part_of_what_was_decoded(
    fastvq: Callable[..., Any],
    run_folder: Path,
    tokens: Path,
    tmp_path: Path,
    small_disk: Callable[[int], Any],
    kind: str,
) -> None:
    sizes = [clip["frames"] for clip in read_manifest(tokens)["clips"]]
    limit = 1400 * (min(sizes) + max(sizes)) // 2 if kind == "bvh" else 1000
    out = tmp_path / "decoded"
    with small_disk(limit):
        outcome = fastvq("decode", "--checkpoint", run_folder, "--tokens", tokens, "--out", out, "--format", kind)
    assert outcome.code == 2
    assert "cannot be written" in outcome.err
    assert ".partial" not in outcome.err
    assert not out.exists()


def test_what_a_killed_process_left_does_not_fill_a_folder(
    fastvq: Callable[..., Any], run_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    (tmp_path / "decoded" / ".files.abc.partial").mkdir(parents=True)
    command = ["decode", "--checkpoint", run_folder, "--tokens", tokens, "--out", tmp_path / "decoded"]
    assert fastvq(*command).code == 0
    assert "is not empty" in fastvq(*command).err


def test_devices_are_not_replaced_by_files(fastvq: Callable[..., Any], run_folder: Path, motions: Path) -> None:
    outcome = fastvq("evaluate", "--checkpoint", run_folder, "--data", motions, "--json", os.devnull, "--overwrite")
    assert outcome.code == 2
    assert "is no ordinary file" in outcome.err


def test_nan_frames_are_named(fastvq: Callable[..., Any], run_folder: Path, motions: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(motions, data)
    arrays = dict(np.load(data / "clips.npz"))
    name = next(iter(arrays))
    arrays[name][5, 3, 1] = np.nan
    np.savez(data / "clips.npz", **arrays)
    outcome = fastvq("encode", "--checkpoint", run_folder, "--data", data, "--out", tmp_path / "a.safetensors")
    assert outcome.code == 2
    assert name in outcome.err
    assert "frame 5" in outcome.err
