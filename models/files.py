"""Writing files so that a reader never meets half of one: aside, flushed to the disk, then renamed.

What the operating system refuses (a full disk, a read-only folder) leaves nothing behind and becomes a
:class:`~fastvq.models.errors.UserError`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastvq.models.errors import UserError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; ``path`` holds all of it when the block ends, and is untouched if it fails.

    Raises:
        UserError: the operating system refused a write.
    """
    path = Path(path)
    with _clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            _open_to_all(partial)
            _flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill; it becomes ``folder``, in place of what was there, when the block ends.

    Raises:
        UserError: the operating system refused a write.
    """
    folder = Path(folder)
    with _clear_errors(folder), _partial_folder(folder) as partial:
        yield partial
        for file in partial.iterdir():
            _flush(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)


@contextlib.contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill; its files move into ``folder``, beside what else is there, when the block ends.

    Each file is whole or absent. The moves happen only after every file has been written out.

    Raises:
        UserError: the operating system refused a write.
    """
    folder = Path(folder)
    created = not folder.exists()
    with _clear_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _partial_folder(folder / "files") as partial:
                yield partial
                files = sorted(partial.iterdir())
                for file in files:
                    _flush(file)
                for file in files:
                    os.replace(file, folder / file.name)
        except BaseException:
            if created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file; not atomic by itself.

    Raises:
        OSError: the operating system refused a write.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, str(path), metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def remove_partial(folder: Path) -> None:
    """Removes what a killed process left half-written directly inside ``folder``."""
    for leftover in Path(folder).glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _open_to_all(partial)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"could not write {path}: {reason}; nothing was left half-written, "
            "free some space or choose a folder that can be written to"
        ) from error
    except RuntimeError as error:
        # torch.save reports a failed write as a RuntimeError of its zip writer.
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(f"could not write {path}: the disk refused it, it may be full") from error


def _open_to_all(path: Path) -> None:
    """Gives a temporary path the permissions that a normal one would have got."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
