"""Heatmaps through ``fastvq encode``, ``decode`` and ``render``: what comes back, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvq.models.heatmaps.windows import cut, join
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.load import load_clips
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN
from fastvq.models.tokenizers.token_file import read_manifest
from fastvq.models.tokenizers.volume_token_file import read_volume_tokens
from fastvq.models.training.heatmap_data import prepare_joints
from fastvq.models.training.heatmap_vqgan import settings_of


@pytest.fixture(scope="module")
def few(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips: one of 21 frames, one of 16, and one shorter than the window of 8."""
    folder = tmp_path_factory.mktemp("few")
    clips = load_clips(motions).clips[:3]
    for clip, frames in zip(clips, (21, 16, 5), strict=True):
        clip.joints, clip.rotations, clip.features = clip.joints[:frames], None, None
    write_joint_arrays(folder / "clips.npz", clips)
    return folder


@pytest.fixture
def stored(heatmap_run: Path, few: Path, tmp_path: Path, fastvq: Callable[..., Any]) -> Path:
    path = tmp_path / "tokens.safetensors"
    given = fastvq("encode", "--checkpoint", heatmap_run, "--data", few, "--out", path)
    assert given.code == 0, given.err
    assert "3 clips, 42 frames at 30 per second, 6 windows -> 192 tokens" in given.out
    return path


def test_tokens_are_those_of_each_window(heatmap_run: Path, few: Path, stored: Path) -> None:
    model, form = HeatmapVQGAN.from_pretrained(heatmap_run), settings_of(heatmap_run).heatmaps
    clips, fps = read_volume_tokens(stored, model)
    assert fps == 30
    assert [(clip.frames, len(clip.tokens)) for clip in clips] == [(21, 3), (16, 2), (5, 1)]
    for clip, read in zip(clips, prepare_joints(load_clips(few).clips, fps=30, least=4), strict=True):
        assert clip.name == read.name
        windows = torch.from_numpy(read.joints[np.minimum(np.arange(8 * len(clip.tokens)), read.frames - 1)])
        windows = windows.unflatten(0, (-1, 8))
        assert torch.equal(clip.tokens, model.encode(form.render(windows)))
        found = form.metres(form.views(windows), clip.placed)
        x, y, z = windows.unbind(dim=-1)
        seen = torch.stack([torch.stack([z, -y], -1), torch.stack([x, z], -1), torch.stack([x, -y], -1)], dim=1)
        # Half of the last of the four digits that the file keeps, and of a float32 pixel at 10 pixels a metre.
        torch.testing.assert_close(found.float(), seen, atol=1e-4, rtol=1e-5)


def test_decoding_crops_and_finds_joints(
    heatmap_run: Path, stored: Path, tmp_path: Path, fastvq: Callable[..., Any]
) -> None:
    out, lists = tmp_path / "decoded", tmp_path / "lists"
    command = ["decode", "--checkpoint", heatmap_run, "--tokens", stored]
    given = fastvq(*command, "--out", out)
    assert given.code == 0, given.err
    assert "3 clips, 42 frames at 30 per second -> heatmaps and joints" in given.out
    contents = json.loads((out / "clips.json").read_text())
    assert (contents["fps"], contents["size"], contents["window"], len(contents["joints"])) == (30, 16, 8, 22)
    model = HeatmapVQGAN.from_pretrained(heatmap_run)
    clips, _ = read_volume_tokens(stored, model)
    assert list(contents["clips"]) == [clip.name for clip in clips]
    for clip in clips:
        entry = contents["clips"][clip.name]
        pictures, joints = np.load(out / entry["heatmaps"]), np.load(out / entry["keypoints"])
        assert pictures.shape == (clip.frames, 3, 16, 16)
        assert joints.shape == (clip.frames, 3, 22, 2)
        decoded = join(model.decode(clip.tokens).clamp(0, 1), clip.frames)
        assert np.abs(pictures - decoded.numpy()).max() <= 2**-12  # half a unit of the last place of a half below 1
        there = (decoded.amax(dim=(-2, -1)) > 0).all(dim=1).numpy()
        assert np.array_equal(np.isfinite(joints).all(axis=(1, 2, 3)), there)
    assert fastvq(*command, "--out", lists, "--format", "json").code == 0
    assert len(list(lists.glob("*.keypoints.json"))) == len(list(lists.iterdir())) - 1 == 3
    entry = json.loads((lists / "clips.json").read_text())["clips"][clips[0].name]
    listed = np.array(json.loads((lists / entry["keypoints"]).read_text())["pixels"], dtype=np.float64)
    found = np.load(out / entry["keypoints"].replace(".json", ".npy"))
    np.testing.assert_allclose(listed, found, rtol=0, atol=6e-4)


def test_decoded_motions_are_read_again(
    heatmap_run: Path, few: Path, stored: Path, tmp_path: Path, fastvq: Callable[..., Any], monkeypatch: Any
) -> None:
    # A model that keeps everything: its heatmaps are those that were encoded.
    form, frames = settings_of(heatmap_run).heatmaps, 8
    drawn = torch.cat([form.render(cut(clip.joints, frames)) for clip in load_clips(few).clips])
    windows = iter(drawn)

    def decode(self: HeatmapVQGAN, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([next(windows) for _ in tokens])

    monkeypatch.setattr(HeatmapVQGAN, "decode", decode)
    command = ["decode", "--checkpoint", heatmap_run, "--tokens", stored, "--format", "npz"]
    given = fastvq(*command, "--out", tmp_path / "out")
    assert given.code == 0, given.err
    for clip, truth in zip(load_clips(tmp_path / "out").clips, load_clips(few).clips, strict=True):
        assert clip.name == truth.name
        assert clip.fps == 30
        assert clip.joints.shape == truth.joints.shape
        assert np.median(np.linalg.norm(clip.joints - truth.joints, axis=-1)) < 0.1  # a pixel is 0.12 m
    assert next(windows, None) is None
    windows = iter(drawn * 0)
    refused = fastvq(*command, "--out", tmp_path / "dark")
    assert refused.code == 2
    assert "show no body: train the model for longer" in refused.err
    assert not (tmp_path / "dark").exists()


@pytest.mark.parametrize("kind", ["npy", "json", "npz"])
def test_a_full_disk_leaves_no_part_of_what_was_decoded(
    heatmap_run: Path,
    stored: Path,
    tmp_path: Path,
    fastvq: Callable[..., Any],
    small_disk: Callable[[int], Any],
    kind: str,
) -> None:
    out = tmp_path / "decoded"
    with small_disk(5000):
        given = fastvq("decode", "--checkpoint", heatmap_run, "--tokens", stored, "--out", out, "--format", kind)
    assert given.code == 2
    assert "cannot be written" in given.err
    assert ".partial" not in given.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_an_interrupted_command_leaves_nothing(
    heatmap_run: Path,
    few: Path,
    stored: Path,
    tmp_path: Path,
    fastvq: Callable[..., Any],
    monkeypatch: Any,
    command: str,
) -> None:
    done = []

    def stop(self: HeatmapVQGAN, values: torch.Tensor) -> torch.Tensor:
        done.append(len(values))
        raise KeyboardInterrupt

    monkeypatch.setattr(HeatmapVQGAN, command, stop)
    before = sorted(tmp_path.iterdir())
    source = ("--data", few) if command == "encode" else ("--tokens", stored)
    given = fastvq(command, "--checkpoint", heatmap_run, *source, "--out", tmp_path / "new.safetensors")
    assert given.code == 130
    assert done
    assert sorted(tmp_path.iterdir()) == before


def test_windows_are_put_together_again() -> None:
    joints = torch.arange(7 * 2 * 3).view(7, 2, 3)
    windows = cut(joints, 3)
    assert windows.shape == (3, 3, 2, 3)
    assert torch.equal(windows[2, 1], joints[6])
    assert torch.equal(join(windows.unsqueeze(1), 7).squeeze(1), joints)
    assert cut(joints[:1].numpy(), 4).shape == (1, 4, 2, 3)


def test_pictures_stand_side_by_side(
    heatmap_run: Path, few: Path, stored: Path, tmp_path: Path, fastvq: Callable[..., Any]
) -> None:
    model = ["--checkpoint", heatmap_run, "--size", 96]
    name = load_clips(few).clips[0].name
    given = fastvq("render", *model, "--data", few, "--clip", name, "--out", tmp_path / "both.gif")
    assert given.code == 0, given.err
    assert f"{name}, 3 windows -> " in given.out
    assert fastvq("render", *model, "--tokens", stored, "--clip", name, "--out", tmp_path / "alone.gif").code == 0
    sheets = []
    for file, columns in (("both.gif", 2), ("alone.gif", 1)):
        with Image.open(tmp_path / file) as image:
            assert image.size == (32 * columns, 96)
            assert image.info["loop"] == 0
            shown = [image.seek(index) or image.info["duration"] for index in range(image.n_frames)]
            assert sum(shown) == 700  # 21 frames at 30 per second
            image.seek(0)
            sheets.append(np.asarray(image.convert("L"), dtype=int))
    # Below the labels and beside the lines the same picture, and a body that is drawn dark on the left.
    assert np.abs(sheets[0][12:31, 34:] - sheets[1][12:31, 2:]).max() <= 255 / 15
    assert sheets[0][34:62, 2:30].min() < 100
    refused = fastvq("render", *model, "--data", few, "--out", tmp_path / "page.html")
    assert refused.code == 2
    assert "heatmaps are shown as a GIF" in refused.err
    assert (
        "there is no clip 'nobody'"
        in fastvq("render", *model, "--tokens", stored, "--clip", "nobody", "--out", tmp_path / "new.gif").err
    )


def test_models_and_tokens_of_other_kinds_are_refused(
    heatmap_run: Path,
    run_folder: Path,
    tokens: Path,
    stored: Path,
    few: Path,
    tmp_path: Path,
    fastvq: Callable[..., Any],
) -> None:
    out = tmp_path / "new"
    for arguments, message in (
        (("decode", "--checkpoint", heatmap_run, "--tokens", tokens), "another model (a motion-vqvae with 4 groups"),
        (("decode", "--checkpoint", run_folder, "--tokens", stored), "(a heatmap-vqgan with windows of 8 frames"),
        (("decode", "--checkpoint", heatmap_run, "--tokens", stored, "--format", "bvh"), "use npy, json or npz"),
        (("decode", "--checkpoint", heatmap_run, "--tokens", stored, "--rigid-bones"), "leave it out"),
        (("decode", "--checkpoint", run_folder, "--tokens", tokens, "--format", "npy"), "use bvh or npz"),
    ):
        given = fastvq(*arguments, "--out", out)
        assert given.code == 2, arguments
        assert message in given.err
        assert len(given.err.splitlines()) == 1
        assert not out.exists()
    edited = fastvq(
        "edit", few, "--checkpoint", heatmap_run, "--out", tmp_path / "e.html", "--rule", "raise the right hand"
    )
    assert edited.code == 2
    assert "is a tokenizer of heatmaps, and this needs one of motions" in edited.err


@pytest.mark.parametrize("case", ["point", "nan", "short", "empty", "another length"])
def test_motions_that_cannot_be_encoded(
    heatmap_run: Path, few: Path, tmp_path: Path, fastvq: Callable[..., Any], case: str
) -> None:
    clips, data = load_clips(few).clips, tmp_path / "data"
    if case == "point":
        clips[1].joints[:] = 1.0
    elif case == "short":
        clips = clips[:1]
        clips[0].joints = clips[0].joints[:6]
        clips[0].joints[3:] += 10.0
    write_joint_arrays(data / "clips.npz", clips)
    arrays = dict(np.load(data / "clips.npz"))
    if case == "nan":
        arrays[clips[2].name][1, 4, 0] = np.nan
    elif case == "another length":
        arrays[clips[2].name] = arrays[clips[2].name][:, :1]
    np.savez(data / "clips.npz", **arrays)
    if case == "empty":
        shutil.rmtree(data)
        data.mkdir()
    message = {
        "point": f"clip {clips[min(1, len(clips) - 1)].name!r} cannot be drawn: joints must not all lie in one point",
        "nan": "frame 1",
        "short": "none of the 1 clips has 4 frames without a jump",
        "empty": str(data),
        "another length": clips[-1].name,
    }[case]
    given = fastvq("encode", "--checkpoint", heatmap_run, "--data", data, "--out", tmp_path / "new.safetensors")
    assert given.code == 2
    assert message in given.err
    assert len(given.err.splitlines()) == 1
    assert not (tmp_path / "new.safetensors").exists()


def test_a_hub_name_is_a_checkpoint(
    heatmap_run: Path, few: Path, stored: Path, tmp_path: Path, fastvq: Callable[..., Any], monkeypatch: Any
) -> None:
    asked = []

    def download(repo: str, name: str, **options: Any) -> str:
        assert repo == "owner/heatmaps"
        asked.append(name)
        return str(heatmap_run / name)

    monkeypatch.setattr("fastvq.models.tokenizers.pretrained.hf_hub_download", download)
    again = tmp_path / "again.safetensors"
    given = fastvq("encode", "--checkpoint", "owner/heatmaps", "--data", few, "--out", again)
    assert given.code == 0, given.err
    assert set(asked) == {"config.json", "model.safetensors"}
    assert read_manifest(again) == read_manifest(stored)
    given = fastvq("evaluate", "--checkpoint", "owner/heatmaps", "--data", few, "--split", "all")
    assert given.code == 0, given.err
    assert "4 windows" in given.out


def test_a_hub_name_without_a_network_gets_one_sentence(
    few: Path, tmp_path: Path, fastvq: Callable[..., Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    given = fastvq("encode", "--checkpoint", "owner/none-such", "--data", few, "--out", tmp_path / "a.safetensors")
    assert given.code == 2
    assert "could not be reached (no network, or HF_HUB_OFFLINE is set)" in given.err
