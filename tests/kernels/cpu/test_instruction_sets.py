"""The other instruction sets of this processor pass the same tests, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastvq.kernels.cpu import build

HERE = Path(__file__).resolve().parent
# What the vectors see; the reference makes up most of the time.
SELECTION = (
    "(oracles and not 513 and not float16) or number_of_rows or strides or finite or close or clusters or worst"
    " or sum or lookup"
)


def test_same_results(cpu, monkeypatch):
    monkeypatch.setenv("FASTVQ_CPU_ISA", "all")
    if len(build.isas()) == 1:
        pytest.skip(f"this processor runs {cpu.isa()} only")
    files = [str(HERE / f"test_{name}.py") for name in ("nearest", "topk", "levels", "residual", "updates")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", SELECTION, *files],
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout


def test_choice_among_those_compiled(cpu):
    used = cpu.isa()
    with pytest.raises(ValueError, match="FASTVQ_CPU_ISA=all"):
        cpu.select_isa("sparc")
    assert cpu.isa() == used
