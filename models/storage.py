"""Writing whole folders so that a reader never meets half of one: aside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.files import replacing


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill; it becomes ``folder``, in place of what was there, when the block ends.

    Raises:
        UserError: the file system refused a write; nothing is left of it.
    """
    folder = Path(folder)
    with _clear_errors(folder), _partial_folder(folder) as partial:
        with _named(partial, folder):
            yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)


@contextlib.contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill; its files move into ``folder``, beside what else is there, when the block ends.

    Each file is whole or absent. The moves begin only when every file has reached the disk.

    Raises:
        UserError: the file system refused a write; nothing is left of it.
    """
    folder = Path(folder)
    created = not folder.exists()
    with _clear_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _partial_folder(folder / "files") as partial:
                with _named(partial, folder):
                    yield partial
                written = sorted(partial.iterdir())
                for file in written:
                    _flush(file)
                for file in written:
                    os.replace(file, folder / file.name)
        except BaseException:
            if created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all.

    Raises:
        UserError: the file system refused.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file; into a partial file or folder of this module, since it is not atomic by itself.

    Raises:
        OSError: the file system refused.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, str(path), metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise OSError(str(error).rpartition("I/O error: ")[2]) from error
    path.chmod(0o666 & ~_umask())


def remove_partial(folder: Path) -> None:
    """Removes what a killed process left half-written directly inside ``folder``."""
    for leftover in Path(folder).glob(".*.partial"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        # mkdtemp makes folders that only their owner can read; what comes of them should look like any other.
        partial.chmod(0o777 & ~_umask())
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _named(partial: Path, folder: Path) -> Iterator[None]:
    """Messages name the folder that users know, not the partial one."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(partial), str(folder))) from error


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
    except RuntimeError as error:
        # torch.save reports a failed write as a RuntimeError of its zip writer.
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        reason = "the disk may be full"
    else:
        return
    raise UserError(f"{path}: cannot be written ({reason}): choose another place or make room")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
