import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from fastvq.models import storage
from fastvq.models.errors import UserError


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for content in ("old", "new"):
        with storage.replacing_folder(folder) as partial:
            (partial / content).write_text(content)
        assert [file.name for file in folder.iterdir()] == [content]
    assert os.listdir(folder.parent) == ["folder"]


@pytest.mark.parametrize("writer", [storage.replacing_folder, storage.replacing_files])
def test_an_error_leaves_everything_as_it_was(tmp_path, writer):
    folder = tmp_path / "folder"
    with writer(folder) as partial:
        (partial / "a").write_text("old")

    def fail(target):
        with writer(target) as partial:
            (partial / "a").write_text("new")
            raise KeyboardInterrupt

    for target in (folder, tmp_path / "other"):
        with pytest.raises(KeyboardInterrupt):
            fail(target)
    assert (folder / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == ["a"]


def test_files_join_what_is_there(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "a").write_text("old")
    with storage.replacing_files(tmp_path) as partial:
        (partial / "a").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"mine": "kept", "a": "new"}


def test_tensors_keep_their_values_whatever_their_strides(tmp_path):
    tensors = {"turned": torch.arange(6.0).reshape(2, 3).t(), "flag": torch.tensor(True)}
    path = tmp_path / "t.safetensors"
    storage.write_tensors(path, tensors, {"a": "b"})
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def save_tensors(partial):
    storage.write_tensors(partial / "x", {"x": torch.zeros(100_000)})


def save_pickle(partial):
    torch.save({"x": torch.zeros(100_000)}, partial / "x")


@pytest.mark.parametrize("save", [save_tensors, save_pickle])
@pytest.mark.parametrize("writer", [storage.replacing_folder, storage.replacing_files])
def test_a_full_disk_gets_one_sentence_and_leaves_nothing(tmp_path, small_disk, writer, save):
    def write():
        with small_disk(10_000), writer(tmp_path / "folder") as partial:
            save(partial)

    with pytest.raises(UserError, match=r"folder: cannot be written \(.*\): choose another place or make room"):
        write()
    assert os.listdir(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    def write():
        with storage.replacing_folder(tmp_path / "folder"):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write()


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".step.abc.partial").mkdir()
    (tmp_path / ".step.abc.partial" / "file").write_text("half")
    (tmp_path / ".last.json.abc.partial").write_text("half")
    (tmp_path / "step").mkdir()
    storage.remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["step"]
