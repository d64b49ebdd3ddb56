import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.token_file import model_sha256, read_manifest, read_tokens, write_tokens


@pytest.fixture
def clips(tiny_model, motion):
    return [
        (f"clip {frames}", frames, tiny_model.encode(motion(frames, seed))[:, 0])
        for seed, frames in enumerate((41, 4, 64))
    ]


@pytest.fixture
def path(tiny_model, clips, tmp_path):
    write_tokens(tmp_path / "tokens.safetensors", tiny_model, clips)
    return tmp_path / "tokens.safetensors"


def rewrite(path, **changes):
    """Writes the file anew with other metadata; None leaves an entry out."""
    with safe_open(path, "pt") as file:
        codes, metadata = file.get_tensor("codes"), file.metadata()
    metadata.update(changes)
    save_file({"codes": codes}, path, {name: value for name, value in metadata.items() if value is not None})


def test_tokens_return(path, tiny_model, clips, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    for model in (tiny_model, MotionVQVAE.from_pretrained(tmp_path / "model")):
        found = read_tokens(path, model)
        assert [(clip.name, clip.frames) for clip in found] == [(name, frames) for name, frames, _ in clips]
        assert all(torch.equal(clip.tokens, tokens) for clip, (_, _, tokens) in zip(found, clips, strict=True))


def test_the_format_is_the_pinned_one(path, tiny_model, clips):
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["codes"]
        codes, metadata = file.get_tensor("codes"), file.metadata()
    assert metadata["format"] == "fastvq-tokens/1"
    assert metadata["model_sha256"] == model_sha256(tiny_model)
    assert metadata["kind"] == "motion-vqvae"
    parsed = {name: json.loads(metadata[name]) for name in ("K", "groups", "stages", "downsample", "fps", "clips")}
    assert parsed == {
        "K": [16],
        "groups": 4,
        "stages": 1,
        "downsample": 4,
        "fps": 30.0,
        "clips": [
            {"name": "clip 41", "frames": 41, "offset": 0},
            {"name": "clip 4", "frames": 4, "offset": 11},
            {"name": "clip 64", "frames": 64, "offset": 12},
        ],
    }
    # Unpacked by hand: 5 bits a code (16 codes and the hole), lowest first, clip, time, group.
    bits = np.unpackbits(codes.numpy(), bitorder="little")[: 28 * 4 * 5].reshape(-1, 5)
    by_hand = (bits * (1 << np.arange(5))).sum(axis=1).reshape(28, 4)
    expected = torch.cat([tokens.t() for _, _, tokens in clips])
    assert np.array_equal(by_hand, expected.numpy())
    assert codes.numel() == 28 * 4 * 5 // 8


def test_holes_are_kept(tiny_model, clips, tmp_path):
    name, frames, tokens = clips[0]
    tokens = tokens.clone()
    tokens[1, 3] = -1
    write_tokens(tmp_path / "holes", tiny_model, [(name, frames, tokens)])
    assert torch.equal(read_tokens(tmp_path / "holes", tiny_model)[0].tokens, tokens)


def test_another_model_is_refused(path, tiny_model):
    assert read_tokens(path, tiny_model)
    with torch.no_grad():
        tiny_model.decoder.conv_out.bias[0] += 1e-6
    with pytest.raises(UserError, match=r"was written by another model \(a motion-vqvae with 4 groups of 16 codes"):
        read_tokens(path, tiny_model)


def test_the_hash_covers_settings_weights_codes_and_statistics(tiny_model, tiny_config):
    first = model_sha256(tiny_model)
    assert len(first) == 64
    assert model_sha256(tiny_model) == first
    for name in ("mean", "quantizer.codebooks.codebook", "encoder.stacks.0.blocks.0.conv_in.weight"):
        tensor = tiny_model.get_parameter(name) if "weight" in name else tiny_model.get_buffer(name)
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor[(0,) * tensor.dim()] += 1
        assert model_sha256(tiny_model) != first, name
        with torch.no_grad():
            tensor.copy_(kept)
    assert model_sha256(tiny_model) == first
    tiny_model.config = dataclasses.replace(tiny_config, fps=20.0)
    assert model_sha256(tiny_model) != first


def test_unknown_formats_are_refused(path, tiny_model, tmp_path):
    rewrite(path, format="fastvq-tokens/3")
    with pytest.raises(UserError, match="has the format 'fastvq-tokens/3', and this version of fastvq reads"):
        read_manifest(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="has the format None"):
        read_tokens(tmp_path / "weights.safetensors", tiny_model)


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": "[{"},
        {"clips": None},
        {"K": None},
        {"clips": '[{"name": "a", "frames": 41, "offset": 1}]'},
        {"clips": '[{"name": "a", "frames": 0, "offset": 0}]'},
        {"clips": '[{"name": "a", "frames": 1.0, "offset": 0}]'},
        {"clips": '[{"name": "a", "frames": true, "offset": 0}]'},
        {"clips": '[{"name": "a", "frames": 4, "offset": 0.0}]'},
        {"clips": '[{"name": 5, "frames": 4, "offset": 0}]'},
        {"clips": '[{"name": "\\ud800", "frames": 4, "offset": 0}]'},
        {"clips": '[{"name": "a\\u0000b", "frames": 4, "offset": 0}]'},
        {"clips": '[{"frames": 4, "offset": 0}]'},
        {"clips": '[{"name": "a", "frames": 4, "offset": 0}, {"name": "a", "frames": 4, "offset": 1}]'},
        {"clips": "[5]"},
        {"clips": "{}"},
        {"clips": "[" * 100_000},
        {"clips": "9" * 5000},
        {"K": "[]"},
        {"K": "16"},
        {"groups": "null"},
        {"downsample": "0"},
        {"downsample": "4.0"},
        {"fps": "NaN"},
    ],
)
def test_damaged_manifests_are_refused(path, changes):
    rewrite(path, **changes)
    with pytest.raises(UserError, match="is not a whole token file"):
        read_manifest(path)


def test_a_manifest_that_does_not_fit_the_codes_is_refused(path, tiny_model):
    for frames in (41, 10**30):
        rewrite(path, clips=json.dumps([{"name": "a", "frames": frames, "offset": 0}]))
        with pytest.raises(UserError, match="is damaged"):
            read_tokens(path, tiny_model)


def test_a_manifest_that_contradicts_its_model_is_refused(path, tiny_model):
    rewrite(path, stages="2")
    with pytest.raises(UserError, match="is damaged: its manifest has stages = 2, and its model 1"):
        read_tokens(path, tiny_model)


def test_missing_and_cut_files_are_refused(path, tmp_path):
    with pytest.raises(UserError, match="there is no token file"):
        read_manifest(tmp_path / "nowhere")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole token file"):
        read_manifest(path)


def test_a_full_disk_leaves_the_earlier_file(path, tiny_model, clips, small_disk):
    before = path.read_bytes()

    def write():
        with small_disk(100):
            write_tokens(path, tiny_model, clips)

    with pytest.raises(UserError, match="cannot be written"):
        write()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_clips_must_fit(tiny_model, clips, tmp_path):
    name, frames, tokens = clips[0]
    target = tmp_path / "new"
    for given, message in (
        ([], "there are no clips to write"),
        ([clips[0], clips[0]], "two clips are called 'clip 41'"),
        ([("\udcff", frames, tokens)], "cannot be written: a name is text without a zero byte"),
        ([(name, frames + 4, tokens)], r"of 45 frames must have tokens of shape \(4, 12\), got \(4, 11\)"),
        ([(name, frames, tokens + 16)], "must lie in 0 to 15"),
    ):
        with pytest.raises(UserError, match=message):
            write_tokens(target, tiny_model, given)
    assert not target.exists()
