"""Reading and writing files of tensors: nothing in them is ever run, and no file is ever half-written."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS = ".safetensors"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of anything that torch.save wrote, by name and on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a damaged file, or a pickle that holds more than tensors.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights in it, e.g. model.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a file of weights, or a state dict")
    values = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_pickle(path)
    return flat(values)


def flat(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Nested dicts as one, names joined by dots; what is no tensor is left out."""
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": tensor for inner, tensor in flat(value).items()}
    return found


def read_config(path: Path) -> dict[str, Any]:
    """What the config.json beside a file of weights says; empty where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not JSON ({error}); it may be damaged or cut short") from error
    if not isinstance(values, dict):
        raise ValueError(f"{config} must hold a JSON object, got {type(values).__name__}")
    return values


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a file of tensors beside its place and renames it, so that a reader meets a whole one or none.

    A name that ends in ``.safetensors`` gets that format, any other torch.save's.

    Raises:
        ValueError: the file system refused; what stood there before still does.
    """
    folder = path.parent
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".partial")
    except OSError as error:
        raise _refused(path, error) from error
    os.close(handle)
    partial = Path(name)
    try:
        if path.suffix == SAFETENSORS:
            # Its writer refuses tensors that share memory, as the stages of a shared codebook do.
            _safetensors().save_file(
                {key: tensor.clone().contiguous() for key, tensor in state.items()}, name, {"format": "pt"}
            )
        else:
            torch.save(dict(state), partial)
        # mkstemp makes files that only their owner can read; this one should look like any other.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        # Without this a power cut can leave the new name on an empty file.
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise _refused(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    module = _safetensors()
    try:
        return module.load_file(str(path))
    except Exception as error:  # its own error, or the file system's
        raise ValueError(
            f"{path} is not a whole safetensors file ({_line(error)}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings():  # a pickle of another protocol warns before it is refused
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds Python objects beside tensors, and unpickling them could run code; "
            "ask its author for safetensors, or give the state dict of a model that you loaded from it"
        ) from error
    except Exception as error:  # damage makes the unpickler raise nearly anything
        raise ValueError(f"{path} is not a whole PyTorch file ({_line(error)}); copy or download it again") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors by name, got {type(values).__name__}")
    return values


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("files in the safetensors format need that package: pip install safetensors") from error
    return safetensors.torch


def _refused(path: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or _line(error)
    return ValueError(f"{path} cannot be written ({reason}): choose another place or make room")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
