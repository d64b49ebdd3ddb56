import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.tokenizers.token_file import model_sha256, read_manifest, read_tokens
from fastvq.models.tokenizers.volume_token_file import VolumeTokens, read_volume_tokens, write_volume_tokens

CONFIG = HeatmapVQGANConfig(
    in_channels=2,
    frames=8,
    size=16,
    channels=(4, 4),
    down_stages=2,
    latent_channels=4,
    code_dim=4,
    codebook_size=8,
    norm_groups=2,
)


@pytest.fixture
def model():
    return HeatmapVQGAN(CONFIG)


@pytest.fixture
def clips():
    draw = torch.Generator().manual_seed(0)
    placed = [torch.rand(windows, 2, 3, generator=draw, dtype=torch.float64) + 0.5 for windows in (2, 1)]
    tokens = [torch.randint(8, (windows, 2, 4, 4), generator=draw) for windows in (2, 1)]
    return [VolumeTokens("long", 13, tokens[0], placed[0]), VolumeTokens("short", 5, tokens[1], placed[1])]


@pytest.fixture
def path(model, clips, tmp_path):
    write_volume_tokens(tmp_path / "tokens.safetensors", model, clips, fps=25.0)
    return tmp_path / "tokens.safetensors"


def rewrite(path, **changes):
    """Writes the file anew with other metadata; None leaves an entry out."""
    with safe_open(path, "pt") as file:
        codes, metadata = file.get_tensor("codes"), file.metadata()
    metadata.update(changes)
    save_file({"codes": codes}, path, {name: value for name, value in metadata.items() if value is not None})


def test_tokens_return(path, model, clips):
    found, fps = read_volume_tokens(path, model)
    assert fps == 25
    for one, other in zip(found, clips, strict=True):
        assert (one.name, one.frames) == (other.name, other.frames)
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.placed, other.placed, atol=5.1e-5, rtol=0)


def test_the_format_is_the_second_one(path, model, clips):
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["codes"]
        codes, metadata = file.get_tensor("codes"), file.metadata()
    assert metadata["format"] == "fastvq-tokens/2"
    assert metadata["model_sha256"] == model_sha256(model)
    assert metadata["kind"] == "heatmap-vqgan"
    parsed = {name: json.loads(text) for name, text in metadata.items() if name[0] not in "fmk" or name == "fps"}
    entries = parsed.pop("clips")
    assert parsed == {
        "K": [8],
        "groups": 1,
        "stages": 1,
        "downsample": 4,
        "fps": 25.0,
        "grid": [4, 4],
        "window": 8,
    }
    assert [(entry["name"], entry["frames"], entry["offset"]) for entry in entries] == [
        ("long", 13, 0),
        ("short", 5, 4),
    ]
    # Unpacked by hand: 4 bits a code (8 codes and the hole), lowest first: clip, window, time, row, column.
    bits = np.unpackbits(codes.numpy(), bitorder="little").reshape(-1, 4)
    assert np.array_equal((bits * (1 << np.arange(4))).sum(axis=1), torch.cat([c.tokens.flatten() for c in clips]))


def test_each_format_is_refused_where_the_other_is_meant(path, model, tiny_model, motion, tmp_path):
    with pytest.raises(UserError, match=r"a heatmap-vqgan with windows of 8 frames and 8 codes, sha256"):
        read_tokens(path, tiny_model)
    rewrite(path, format="fastvq-tokens/1", clips=json.dumps([{"name": "a", "frames": 24, "offset": 0}]))
    with pytest.raises(UserError, match="is damaged: its manifest has format = fastvq-tokens/1, and its model"):
        read_volume_tokens(path, model)


def test_another_model_is_refused(path, model):
    with torch.no_grad():
        model.last_weight[0, 0, 0, 0, 0] += 1e-6
    with pytest.raises(UserError, match="was written by another model"):
        read_volume_tokens(path, model)


def entries(**changes):
    whole = {"name": "a", "frames": 24, "offset": 0, "placed": [[[0.0, 0.0, 1.0]] * 2] * 3}
    return json.dumps([{**whole, **changes}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": None}, "is not a whole token file .*no valid grid"),
        ({"grid": "[4]"}, "no valid grid"),
        ({"grid": "[4, 4.0]"}, "no valid grid"),
        ({"window": "6"}, "no valid window"),
        ({"window": "0"}, "no valid window"),
        ({"downsample": "0"}, "no valid downsample"),
        ({"grid": "[2, 8]"}, r"is damaged: its manifest has grid = \[2, 8\], and its model \[4, 4\]"),
        ({"window": "4", "clips": entries(frames=12)}, "is damaged: its manifest has window = 4"),
        ({"clips": entries(frames=25)}, "is damaged: packed must be"),
        ({"clips": entries(frames=10**30)}, "is damaged"),
        ({"clips": entries(placed=None)}, "'a' does not say where its windows are placed"),
        ({"clips": entries(placed=[[[0.0, 0.0, 1.0]]] * 3)}, "does not say where"),
        ({"clips": entries(placed=[[[0.0, 0.0, 0.0]] * 2] * 3)}, "does not say where"),
        ({"clips": entries(placed=[[[0.0, float("nan"), 1.0]] * 2] * 3)}, "does not say where"),
        ({"clips": entries(placed=[[["0", 0.0, 1.0]] * 2] * 3)}, "does not say where"),
        ({"clips": entries(placed=[[[0.0, 0.0, 1.0]] * 2, []])}, "does not say where"),
    ],
)
def test_damaged_files_are_refused(path, model, changes, message):
    rewrite(path, clips=entries())
    assert [clip.frames for clip in read_volume_tokens(path, model)[0]] == [24]
    rewrite(path, **changes)
    with pytest.raises(UserError, match=message):
        read_volume_tokens(path, model)


def test_holes_are_refused(path, model):
    with safe_open(path, "pt") as file:
        codes, metadata = file.get_tensor("codes"), file.metadata()
    codes[0] = 8 | 8 << 4
    save_file({"codes": codes}, path, metadata)
    with pytest.raises(UserError, match="has holes"):
        read_volume_tokens(path, model)


def test_clips_must_fit(model, clips, tmp_path, small_disk):
    first = clips[0]
    for given, message in (
        ([], "there are no clips to write"),
        ([first, first], "two clips are called 'long'"),
        ([first._replace(name="a\0b")], "a name is text without a zero byte"),
        ([first._replace(frames=17)], r"of 17 frames must have tokens of shape \(3, 2, 4, 4\)"),
        ([first._replace(placed=first.placed[:, :1])], r"placements of shape \(2, 2, 3\)"),
        ([first._replace(tokens=first.tokens + 8)], "tokens must lie in 0 to 7, got 8"),
        ([first._replace(tokens=first.tokens - 8)], "tokens must lie in 0 to 7, got -8"),
    ):
        with pytest.raises(UserError, match=message):
            write_volume_tokens(tmp_path / "new", model, given, fps=30)
    with small_disk(100), pytest.raises(UserError, match="cannot be written"):
        write_volume_tokens(tmp_path / "new", model, clips, fps=30)
    assert not list(tmp_path.iterdir())


def test_the_first_format_is_still_written(tiny_model, motion, tmp_path):
    from fastvq.models.tokenizers.token_file import write_tokens

    write_tokens(tmp_path / "a", tiny_model, [("a", 8, tiny_model.encode(motion(8))[:, 0])])
    assert read_manifest(tmp_path / "a")["format"] == "fastvq-tokens/1"
    assert not {"grid", "window"} & set(read_manifest(tmp_path / "a"))
