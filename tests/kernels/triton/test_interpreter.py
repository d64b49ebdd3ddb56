"""The kernels under Triton's interpreter, in processes of their own: it is chosen before Triton is first imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

HERE = Path(__file__).resolve().parent
SUITES = sorted(path.name for path in HERE.glob("interpreted_*.py"))


def test_suites_are_found():
    expected = ["exactness", "nearest", "residual", "state", "topk", "tuning"]
    assert [suite.removeprefix("interpreted_").removesuffix(".py") for suite in SUITES] == expected


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", SUITES)
def test_interpreted(suite):
    # Triton 3.6's interpreter takes loop bounds from arrays of one entry, which numpy below 2.4 only warns of.
    old_triton = "ignore:Conversion of an array with ndim:DeprecationWarning"
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", old_triton]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / suite)]
    # numpy multiplies one tile after another, for which a second thread takes longer to wake than it saves.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
