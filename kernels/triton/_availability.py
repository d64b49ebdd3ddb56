"""Whether the Triton kernels can run on a device, and why not."""

import importlib.util
import os

import torch


def triton_installed() -> bool:
    """Whether ``import triton`` finds a package."""
    return importlib.util.find_spec("triton") is not None


def unavailable_reason(device: torch.device | str) -> str | None:
    """Why the kernels cannot run on tensors of a device; None where they can.

    CPU tensors are served by Triton's interpreter, for tests: TRITON_INTERPRET=1 before Triton is first imported.
    """
    device = torch.device(device)
    if not triton_installed():
        return "Triton is not installed (pip install triton, on Linux)"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the Triton kernels take CUDA tensors; for tests, TRITON_INTERPRET=1 interprets them on the CPU"
    if device.type != "cuda":
        return f"the Triton kernels take CUDA tensors, not {device.type} ones"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device here"
    if torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"Triton needs compute capability 8.0 or newer, and this device has {major}.{minor}"
    return None


def available(device: torch.device | str) -> bool:
    """Whether the kernels can run on tensors of a device."""
    return unavailable_reason(device) is None
