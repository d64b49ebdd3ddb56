"""Finding and reading folders of weights, local or on the Hugging Face Hub.

A folder holds ``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, and of tokenizers of motions
``mean.npy`` and ``std.npy``.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.files import check_readable, parse_json
from fastvq.models.motion.joint_arrays import read_array

CONFIG, MEAN, STD = "config.json", "mean.npy", "std.npy"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"

KeyMap = Mapping[str, str] | Callable[[str], "str | None"]


def locate(
    name_or_path: str | Path, *, files: Sequence[str] = (CONFIG, MEAN, STD), weights: bool = True, **hub: Any
) -> Path:
    """The folder itself, or the local copy of a hub repository of that name.

    Args:
        name_or_path: a folder, or "owner/name" on the hub.
        files: what to bring from the hub.
        weights: whether to bring the weights too.
        hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and ``force_download`` of
            ``huggingface_hub.hf_hub_download``.

    Raises:
        UserError: neither a folder nor a reachable repository.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{folder} is a file; give the folder that holds {CONFIG} and the weights")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name_or_path)):
        raise UserError(f"there is no folder {name_or_path}; give a checkpoint folder, or a hub name as owner/name")
    try:
        found = [hf_hub_download(str(name_or_path), name, **hub) for name in files]
        if weights:
            _bring_weights(str(name_or_path), **hub)
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's
        wanted = [*files, f"{SAFETENSORS} or {PICKLE}"] if weights else files
        raise UserError(f"there is no folder {name_or_path}, and {_hub_refusal(error, wanted)}") from error
    return Path(found[0]).parent


def _bring_weights(name: str, **hub: Any) -> None:
    try:
        hf_hub_download(name, SAFETENSORS, **hub)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        hf_hub_download(name, PICKLE, **hub)


def _hub_refusal(error: Exception, wanted: Sequence[str]) -> str:
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
        return (
            "the Hugging Face Hub could not be reached (no network, or HF_HUB_OFFLINE is set): "
            "go online, or download the repository and give its folder"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "the Hugging Face Hub has no repository of that name that you may read: check the name and the token"
    if isinstance(error, EntryNotFoundError):
        needed = " and ".join([*([", ".join(wanted[:-1])] if wanted[:-1] else []), wanted[-1]])
        return f"the repository of that name lacks a file (needed: {needed}): give another one"
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the Hugging Face Hub failed ({first_line}): try again, or download the repository and give its folder"


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of ``config.json``.

    Raises:
        UserError: it is missing or no JSON object.
    """
    path = folder / CONFIG
    require(folder, CONFIG)
    try:
        check_readable(path)
        values = parse_json(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it may be damaged or cut short") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def read_statistics(folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """mean and std, (width,) float32 each.

    Raises:
        UserError: a file is missing or damaged, of another shape, not finite, or the std is negative.
    """
    found = []
    for name in (MEAN, STD):
        require(folder, name)
        values = read_array(folder / name)
        if values.shape != (width,):
            raise UserError(f"{folder / name} must have the shape ({width},), got {values.shape}")
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if not np.isfinite(values).all() or (name == STD and (values < 0).any()):
            raise UserError(f"{folder / name} must be finite{' and not negative' if name == STD else ''}")
        found.append(values)
    return found[0], found[1]


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors by name, on the CPU, and the file they came from; ``model.safetensors`` is preferred.

    Raises:
        UserError: no weights, a damaged file, or a pickle that holds more than tensors.
    """
    if (folder / SAFETENSORS).is_file():
        path = folder / SAFETENSORS
        check_readable(path)
        try:
            return load_file(str(path)), path
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error})") from error
    path = folder / PICKLE
    if not path.is_file():
        raise UserError(_no_weights(folder))
    check_readable(path)
    try:
        with warnings.catch_warnings():  # a pickle of another protocol warns before it is refused
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it holds Python objects beside tensors, and unpickling them could run code; "
            f"ask its author for {SAFETENSORS}, or convert it where you trust it"
        ) from error
    except Exception as error:  # damage makes the unpickler raise nearly anything
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a whole PyTorch file ({first_line}); copy or download it again") from error
    return _tensors(values, path), path


def _no_weights(folder: Path) -> str:
    message = f"{folder} has neither {SAFETENSORS} nor {PICKLE}"
    if (folder / "last.json").is_file():
        return f"{message}: training there has not ended; resume it, or use a folder under {folder / 'checkpoints'}"
    return f"{message}; give the folder that training or save_pretrained wrote"


def _tensors(values: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a pickle held: itself, or the one entry that is one."""
    if isinstance(values, dict) and values and all(isinstance(value, Tensor) for value in values.values()):
        return dict(values)
    inner = []
    if isinstance(values, dict):
        for value in values.values():
            if isinstance(value, dict) and value and all(isinstance(entry, Tensor) for entry in value.values()):
                inner.append(dict(value))
    if len(inner) != 1:
        raise UserError(f"{path} must hold one dict of tensors by name, found {len(inner)}")
    return inner[0]


def rename(state: Mapping[str, Tensor], key_map: KeyMap | None) -> dict[str, Tensor]:
    """Applies a key map to a state dict.

    Args:
        state: tensors by the file's names.
        key_map: their names to ours, as a dict (names that are absent stay) or a function (None drops a tensor).

    Raises:
        UserError: two tensors get the same name, or a name of the dict does not occur.
    """
    if key_map is None:
        return dict(state)
    if isinstance(key_map, Mapping):
        absent = sorted(set(key_map) - set(state))
        if absent:
            raise UserError(f"key_map names tensors that the file does not have: {_some(absent)}")
        table = key_map
        renamed = {name: table.get(name, name) for name in state}
    else:
        renamed = {name: ours for name in state if (ours := key_map(name)) is not None}
    result: dict[str, Tensor] = {}
    for theirs, ours in renamed.items():
        if ours in result:
            raise UserError(f"key_map gives the name {ours} to two tensors, one of them {theirs}")
        result[ours] = state[theirs]
    return result


def stack_groups(state: Mapping[str, Tensor], prefix: str, groups: int) -> dict[str, Tensor]:
    """Puts one tensor a group, ``<prefix>.<name>.<g>``, together as ``<prefix>.<name>`` with a leading group axis.

    Raises:
        UserError: some but not all groups are there, or their shapes differ.
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\w+)\.(\d+)")
    single: dict[str, dict[int, Tensor]] = {}
    result = {}
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if match:
            single.setdefault(match[1], {})[int(match[2])] = tensor
        else:
            result[name] = tensor
    for name, tensors in single.items():
        if sorted(tensors) != list(range(groups)):
            raise UserError(f"{prefix}.{name}.<group> must be there for groups 0 to {groups - 1}, got {len(tensors)}")
        if len({tensor.shape for tensor in tensors.values()}) > 1:
            raise UserError(f"{prefix}.{name}.<group> must have one shape for all groups")
        result[f"{prefix}.{name}"] = torch.stack([tensors[group] for group in range(groups)])
    return result


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    """Compares names and shapes with a module's own state dict, and makes sure that all numbers are finite.

    Raises:
        UserError: naming the tensors that are missing, unknown, of another shape or kind, or not finite.
    """
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
        raise UserError(f"{source} {' and '.join(parts)}; if its names differ from ours, pass key_map")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{source}: {name} must have the shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}; "
                f"{CONFIG} and the weights belong to different models"
            )
        if tensor.is_floating_point():
            if not state[name].is_floating_point():
                raise UserError(f"{source}: {name} must hold floating-point numbers, got {state[name].dtype}")
            if not bool(state[name].float().isfinite().all()):
                raise UserError(
                    f"{source}: {name} is not finite: training had broken down; take an earlier checkpoint"
                )


def require(folder: Path, name: str) -> None:
    """Raises a UserError unless ``folder`` holds the file ``name``."""
    if not (folder / name).is_file():
        raise UserError(
            f"{folder} has no {name}; a checkpoint folder holds {CONFIG}, {SAFETENSORS}, {MEAN} and {STD}"
        )


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
