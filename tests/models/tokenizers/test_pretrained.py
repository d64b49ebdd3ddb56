import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE

BOOKS = "quantizer.codebooks"


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def as_pickle(folder, change=lambda state: state):
    """Turns a saved folder into one with pytorch_model.bin, its contents changed."""
    torch.save(change(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_saving_and_loading_keeps_everything(tiny_model, folder, motion):
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "mean.npy",
        "model.safetensors",
        "std.npy",
    ]
    state = torch.random.get_rng_state()
    loaded = MotionVQVAE.from_pretrained(folder)
    torch.random.set_rng_state(state)
    assert not loaded.training
    assert loaded.config == tiny_model.config
    own, other = tiny_model.state_dict(), loaded.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert torch.equal(loaded.encode(motion(40)), tiny_model.encode(motion(40)))
    assert loaded.encoder.conv_in.weight.stride() == tiny_model.encoder.conv_in.weight.stride()
    assert bool(loaded.quantizer.codebooks.initted)
    # Training goes on where it was: the codebooks are not initialised afresh.
    for model in (tiny_model, loaded):
        model.train()(motion(40))
    assert torch.equal(loaded.get_codebook_embeddings(), tiny_model.get_codebook_embeddings())


def test_other_files_in_the_folder_stay(tiny_model, folder):
    (folder / "notes.txt").write_text("mine")
    tiny_model.save_pretrained(folder, extra_config={"training": {"steps": 3}})
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "config.json").read_text())["training"] == {"steps": 3}
    assert MotionVQVAE.from_pretrained(folder).config == tiny_model.config


def test_a_full_disk_leaves_the_earlier_model(tiny_model, folder, small_disk, motion):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    tiny_model.train()(motion(40))

    def save(target):
        with small_disk(20_000):
            tiny_model.save_pretrained(target)

    for target in (folder, folder.parent / "new"):
        with pytest.raises(UserError, match="cannot be written"):
            save(target)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not (folder.parent / "new").exists()


def test_a_file_is_no_folder_to_save_to(tiny_model, folder):
    with pytest.raises(UserError, match="it is a file; give a folder"):
        tiny_model.save_pretrained(folder / "config.json")


@pytest.mark.parametrize("nested", [False, True])
def test_pickled_weights_without_statistics_of_the_codebook(tiny_model, folder, motion, nested):
    extras = [f"{BOOKS}.{name}" for name in ("embed_sum", "cluster_size", "initted")]

    def change(state):
        kept = {name: tensor for name, tensor in state.items() if name not in extras}
        return {"net": kept, "step": 300_000} if nested else kept

    as_pickle(folder, change)
    loaded = MotionVQVAE.from_pretrained(folder)
    assert torch.equal(loaded.encode(motion(40)), tiny_model.encode(motion(40)))
    assert torch.equal(loaded.quantizer.codebooks.embed_sum, loaded.quantizer.codebook)
    assert bool(loaded.quantizer.codebooks.initted)


def test_names_of_others_are_mapped(tiny_model, folder, motion):
    def change(state):
        renamed = {f"vqvae.{name}": tensor for name, tensor in state.items() if not name.startswith(BOOKS)}
        for group in range(4):
            renamed[f"vqvae.books.{group}.weight"] = state[f"{BOOKS}.codebook"][group]
        return {**renamed, "optimizer.step": torch.zeros(1)}

    def ours(name):
        if name.startswith("optimizer"):
            return None
        name = name.removeprefix("vqvae.")
        return f"{BOOKS}.codebook.{name.split('.')[1]}" if name.startswith("books.") else name

    as_pickle(folder, change)
    with pytest.raises(UserError, match=r"lacks .* and has unknown .*pass key_map"):
        MotionVQVAE.from_pretrained(folder)
    names = torch.load(folder / "pytorch_model.bin", weights_only=True)
    table = {name: ours(name) for name in names if ours(name)}
    (folder / "pytorch_model.bin").unlink()
    save_file({name: names[name].contiguous() for name in table}, folder / "model.safetensors")
    for key_map in (ours, table):
        loaded = MotionVQVAE.from_pretrained(folder, key_map=key_map)
        assert torch.equal(loaded.encode(motion(40)), tiny_model.encode(motion(40)))
    with pytest.raises(UserError, match="names tensors that the file does not have: nowhere"):
        MotionVQVAE.from_pretrained(folder, key_map={"nowhere": "encoder"})
    with pytest.raises(UserError, match="gives the name same to two tensors"):
        MotionVQVAE.from_pretrained(folder, key_map=lambda name: "same")
    with pytest.raises(UserError, match="must be there for groups 0 to 3, got 3"):
        MotionVQVAE.from_pretrained(folder, key_map=lambda name: None if ".3." in name else ours(name))


class Code:
    """Pickles into a call, as a malicious file would."""

    def __reduce__(self):
        return open, ("pwned", "w")


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_a_pickle_that_carries_code_is_refused(folder, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if how == "plain":
        path.write_bytes(pickle.dumps(Code()))
    else:
        torch.save({"weight": Code()}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"was refused: it holds Python objects .* could run code"):
        MotionVQVAE.from_pretrained(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "is not a whole safetensors file"),
        ("model.safetensors", None, "has neither model.safetensors nor pytorch_model.bin"),
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "must hold a JSON object, got list"),
        ("config.json", b'{"width": "big"}', "width must be an integer of at least 1, got 'big'"),
        ("mean.npy", None, "has no mean.npy"),
        ("std.npy", None, "has no std.npy"),
        ("std.npy", b"text", r"std.npy: not a \.npy file of numbers"),
        ("mean.npy", b"PK\x03\x04 and no more", r"mean.npy: not a \.npy file of numbers"),
        ("mean.npy", b"\x93NUMPY\x01\x00\x10\x00" + b'{"descr": ((((  ', r"mean.npy: the file is cut off or damaged"),
        ("config.json", b"[" * 100_000, "is not JSON .it is nested too deeply.; it may be damaged"),
        ("config.json", b'{"width": ' + b"9" * 5000 + b"}", "is not JSON .*digits"),
    ],
)
def test_missing_and_damaged_files_are_named(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        MotionVQVAE.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 and then nothing"])
def test_damaged_pickles_are_named(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model.bin is not a whole PyTorch file"):
        MotionVQVAE.from_pretrained(folder)


def test_cut_files_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        MotionVQVAE.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(whole)
    as_pickle(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UserError, match="is not a whole PyTorch file"):
        MotionVQVAE.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mean.npy", np.zeros(263), r"mean.npy must have the shape \(272,\), got \(263,\)"),
        ("mean.npy", np.full(272, np.nan), "mean.npy must be finite$"),
        ("std.npy", np.full(272, -1.0), "std.npy must be finite and not negative"),
        ("mean.npy", np.full(272, 1e300), "mean.npy must be finite$"),
        ("mean.npy", np.full(272, "a"), "mean.npy: expected an array of real numbers, got dtype <U1"),
        ("std.npy", np.full(272, 1j), "std.npy: expected an array of real numbers, got dtype complex128"),
    ],
)
def test_wrong_statistics_are_named(folder, name, values, message):
    np.save(folder / name, values)
    with pytest.raises(UserError, match=message):
        MotionVQVAE.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "is not finite: training had broken down"),
        (lambda tensor: tensor.to(torch.int64), "must hold floating-point numbers, got torch.int64"),
        (lambda tensor: tensor.to(torch.complex64), "must hold floating-point numbers, got torch.complex64"),
    ],
)
def test_weights_of_another_kind_are_named(folder, change, message):
    path = folder / "model.safetensors"
    for name in ("quantizer.codebooks.codebook", "encoder.conv_in.bias"):
        state = load_file(path)
        save_file({**state, name: change(state[name])}, path)
        with pytest.raises(UserError, match=rf"model.safetensors: {name} {message}"):
            MotionVQVAE.from_pretrained(folder)
        save_file(state, path)
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path)
    assert MotionVQVAE.from_pretrained(folder).mean.dtype == torch.float32


def test_wrong_shapes_are_named(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "width": 24}))
    expected = r"encoder.conv_in.weight must have the shape \(24, 272, 3\), got \(16, 272, 3\)"
    with pytest.raises(UserError, match=expected):
        MotionVQVAE.from_pretrained(folder)
    (folder / "config.json").write_text('{"nb_code": 512}')
    with pytest.raises(UserError, match="does not know: nb_code"):
        MotionVQVAE.from_pretrained(folder)
    known = {name: values[name] for name in ("width", "output_dim", "groups", "codebook_size", "depth")}
    assert MotionVQVAE.from_pretrained(folder, config=MotionVQVAEConfig(**known)).config.width == 16


def test_a_run_that_has_not_ended_says_so(folder):
    (folder / "model.safetensors").unlink()
    (folder / "last.json").write_text("{}")
    with pytest.raises(UserError, match="training there has not ended; resume it, or use a folder under"):
        MotionVQVAE.from_pretrained(folder)


def test_what_is_no_folder_is_said_to_be_none(folder, tmp_path):
    with pytest.raises(UserError, match="is a file; give the folder"):
        MotionVQVAE.from_pretrained(folder / "config.json")
    for name in (tmp_path / "nowhere", "nowhere", "./a/b"):
        with pytest.raises(UserError, match=r"there is no folder .*; give a checkpoint folder, or a hub name"):
            MotionVQVAE.from_pretrained(name)


def test_a_hub_name_without_a_network_gets_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be reached \(no network, or HF_HUB_OFFLINE is set\)"):
        MotionVQVAE.from_pretrained("owner/name", cache_dir=tmp_path)


def test_a_hub_name_is_downloaded(folder, monkeypatch):
    asked = []

    def download(repo, name, **options):
        asked.append(name)
        assert (repo, options["revision"]) == ("owner/name", "v1")
        if name == "model.safetensors":
            raise pretrained_error
        return str(folder / name)

    from huggingface_hub.errors import EntryNotFoundError

    pretrained_error = EntryNotFoundError("no such file")
    as_pickle(folder)
    monkeypatch.setattr("fastvq.models.tokenizers.pretrained.hf_hub_download", download)
    MotionVQVAE.from_pretrained("owner/name", revision="v1")
    assert asked == ["config.json", "mean.npy", "std.npy", "model.safetensors", "pytorch_model.bin"]


def test_pushing_saves_and_uploads(tiny_model, monkeypatch, tmp_path):
    uploaded = []

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **options):
            uploaded.extend(sorted(file.name for file in folder_path.iterdir()))
            return "address"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert tiny_model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="owner/name") == "address"
    assert uploaded == ["config.json", "mean.npy", "model.safetensors", "std.npy"]
