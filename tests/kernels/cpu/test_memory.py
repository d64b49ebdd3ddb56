"""A search needs little memory beyond its results, however many rows there are."""

import subprocess
import sys

import pytest

MEASURE = """
import sys, conftest
import resource, torch
from fastvq.kernels import cpu

groups, rows, codes, dim, stages = map(int, sys.argv[1:])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def search(x, codebooks):
    if stages == 1:
        return cpu.nearest(x, codebooks[:, 0], None)
    return cpu.residual_nearest(x, codebooks, None, None, None, "exact")

codebooks = torch.randn(groups, stages, codes, dim)
x = torch.randn(rows, groups, dim).transpose(0, 1)[:, None]
search(x[:, :, :4000], codebooks)  # threads, scratch of the allocator
before = peak()
results = search(x, codebooks)
print(peak() - before - sum(result.numel() * result.element_size() for result in results))
"""


@pytest.mark.parametrize(
    "sizes",
    [(1, 2_000_000, 512, 8, 1), (1, 400_000, 512, 64, 1), (64, 50_000, 512, 8, 1), (1, 100_000, 256, 64, 6)],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_extra_memory_of_a_search(cpu, sizes, pytestconfig):
    command = [sys.executable, "-c", MEASURE, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pytestconfig.rootpath, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 2**20
