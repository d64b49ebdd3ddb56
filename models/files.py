"""Finding and reading what users wrote, and writing files so that nothing half-written is ever seen."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvq.models.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without an error.

    Args:
        path: The file to write; missing parent folders are made.

    Yields:
        The temporary file's path, ``.<name>.<random>.partial``, which the block writes.

    Raises:
        UserError: The file system refuses (no permission, no space left); whatever stood at ``path``
            before is still there, and the temporary file is gone.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        temporary = Path(name)
        # mkstemp makes files that only their owner can read; what replaces them should look like any other.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        yield temporary
        # Without this a power cut can leave the new name on an empty file.
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): choose another place or make room"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def find_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files at any depth, in the order of their paths; links are followed, each folder is entered once.

    Hidden files and folders are left out.

    Returns:
        The files, and the links that lead nowhere.

    Raises:
        UserError: A folder inside cannot be read.
    """

    def refused(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror or error}): check its permissions")

    files, broken, entered = [], [], set()
    for place, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # The first of several ways to a folder is the one that counts, so it must not depend on the file system.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = [Path(place, name) for name in names if not name.startswith(".")]
        files += [path for path in found if path.is_file()]
        broken += [path for path in found if path.is_symlink() and not path.exists()]
    return sorted(files), sorted(broken)


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: It is no JSON, or nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_readable(path: Path) -> None:
    """Raises a UserError unless the file can be opened; libraries give other reasons, or none.

    Raises:
        UserError: It is missing or cannot be read.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error


def read_text(path: Path, *, what: str) -> str:
    """The text of a UTF-8 (or, by its byte-order mark, UTF-16) file, lines ending in ``\\n``.

    Args:
        path: The file.
        what: What it should be, for the message: ``"a BVH file"``.

    Raises:
        UserError: The file is missing, cannot be read, or holds no such text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected {what} in UTF-8, but byte {error.start} is no such text: "
            "save it as UTF-8, or give another file"
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: expected {what}, got binary data: give another file")
    return text.replace("\r\n", "\n").replace("\r", "\n")
