"""Launch configurations measured on this machine's device, where somebody asked for it (``fastvq tune``).

One JSON file a device and Triton version in the cache directory. It is read once per process; a file that is
damaged, or of another version, is left aside with a warning, and the table of ``_configs`` serves.
"""

import functools
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton

from fastvq.kernels._cache import cache_directory

FORMAT = "fastvq-tuning/1"
FIELDS = ("rows", "codes", "depth", "num_warps", "stages")

logger = logging.getLogger("fastvq")


def path(device: torch.device) -> Path:
    """The file of a device; OSError where there is no place for one."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return cache_directory() / "tuned" / f"{name}-triton-{triton.__version__}.json"


def device_name(device: torch.device) -> str:
    """What the driver calls the device; "interpreter" for CPU tensors."""
    return "interpreter" if device.type == "cpu" else torch.cuda.get_device_name(device)


def fields(device: torch.device, key: str) -> dict[str, int]:
    """The measured fields of a configuration, such as "search short 64"; empty where none was measured."""
    if device.type == "cpu" and os.environ.get("FASTVQ_CACHE_DIR") is None:
        return {}  # the interpreter, on which nobody tunes
    return _table(device.type, device.index).get(key, {})


def forget() -> None:
    """Reads the files again when next asked."""
    _table.cache_clear()


@functools.lru_cache(maxsize=64)
def _table(device_type: str, index: int | None) -> dict[str, dict[str, int]]:
    try:
        file = path(torch.device(device_type) if index is None else torch.device(device_type, index))
        text = file.read_text(encoding="utf-8")
    except OSError:
        return {}
    try:
        return read(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is not used: %s; run `fastvq tune` again", file.name, error)
        return {}


def read(document: Any) -> dict[str, dict[str, int]]:
    """The table of a file's document.

    Raises:
        ValueError: another format, or values that no configuration has.
    """
    if document.get("format") != FORMAT:
        raise ValueError(f"its format is {document.get('format')!r}, and this version reads {FORMAT!r}")
    table = document["configurations"]
    for key, values in table.items():
        for name, value in values.items():
            if name not in FIELDS or not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise ValueError(f"{key} has {name}={value!r}")
    return dict(table)


def write(device: torch.device, table: dict[str, dict[str, int]]) -> Path:
    """Adds configurations to the device's file, all or none, and returns it."""
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    forget()
    document = {
        "format": FORMAT,
        "device": device_name(device),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "configurations": {**_table(device.type, device.index), **table},
    }
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    forget()
    return file
