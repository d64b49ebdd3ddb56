"""The drop-in's codebooks on several ranks: real processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
@pytest.mark.parametrize("world", [2, 3])
def test_ranks(world, tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import conftest, runpy; sys.argv[:] = sys.argv[2:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests/fastvq/compat/vq_ranks.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert rank.returncode == 0, f"rank {number} of {world}:\n{output}"
