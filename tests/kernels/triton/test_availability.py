"""Where the kernels can run, and that nothing loads Triton before they are used."""

import subprocess
import sys
from pathlib import Path

import torch

from fastvq.kernels.triton import _availability

ROOT = Path(__file__).resolve().parents[3]


def test_fastvq_does_not_import_triton():
    script = "import sys, fastvq; assert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.setattr(_availability, "triton_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not _availability.available("cpu")
    assert "TRITON_INTERPRET=1" in _availability.unavailable_reason("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _availability.available(torch.device("cpu"))


def test_reasons(monkeypatch):
    monkeypatch.setattr(_availability, "triton_installed", lambda: True)
    assert "mps" in _availability.unavailable_reason("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in _availability.unavailable_reason("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, reason in (((7, 5), "7.5"), ((8, 0), None), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        found = _availability.unavailable_reason("cuda:0")
        assert found is None if reason is None else reason in found
    monkeypatch.setattr(_availability, "triton_installed", lambda: False)
    assert "not installed" in _availability.unavailable_reason("cuda")
