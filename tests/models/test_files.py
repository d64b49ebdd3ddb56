"""Text of users, and files that are replaced in one step or not at all."""

import os
import stat

import pytest

from fastvq.models.errors import UserError
from fastvq.models.files import find_files, parse_json, read_text, replacing


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_of_any_program_reads_alike(tmp_path, encoding, newline):
    path = tmp_path / "a.txt"
    path.write_bytes(f"wälks{newline}runs{newline}".encode(encoding))
    assert read_text(path, what="text") == "wälks\nruns\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "expected a list in UTF-8, but byte 3 is no such text: save it as UTF-8"),
        (b"a\0b", "expected a list, got binary data"),
        (b"\xff\xfea", "no such text"),
        (None, "cannot be read .No such file or directory."),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(path, what="a list")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path, what="a list")


def test_files_are_found_through_links_and_folders_entered_once(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data / "a", data / ".hidden", elsewhere / "deep"):
        folder.mkdir(parents=True)
        (folder / "file.txt").touch()
    (data / ".file").touch()
    (data / "linked").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(data)
    (data / "one.txt").symlink_to(elsewhere / "deep" / "file.txt")
    (data / "gone.txt").symlink_to(tmp_path / "nowhere")
    files, broken = find_files(data)
    assert [str(path.relative_to(data)) for path in files] == ["a/file.txt", "again/deep/file.txt", "one.txt"]
    assert broken == [data / "gone.txt"]


def test_a_folder_that_cannot_be_read_is_not_taken_as_empty(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed: cannot be read .Permission denied.: check its permissions"):
        find_files(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000])
def test_whatever_is_wrong_with_a_json_text_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent
    with replacing(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, UserError])
def test_an_error_in_the_block_leaves_the_old_file_and_passes_through(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"b\.txt: cannot be written \(.*\): choose another place or make room"),
        replacing(tmp_path / "file" / "b.txt"),
    ):
        pytest.fail("there is no place to write to")
