"""A search needs little memory beyond its results, however many rows there are, and reads none it has not written."""

import os
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


USED_MEMORY = """
import itertools, conftest
import torch
from fastvq.kernels import cpu, reference

torch.manual_seed(0)
for rows, dim, codes in itertools.product((1, 25, 33, 100, 530), (3, 6, 8, 12, 24, 70), (40, 300)):
    x, codebooks = torch.randn(3, 1, rows, dim), torch.randn(3, 2, codes, dim)
    for metric in reference.METRICS:
        indices, wanted = (module.nearest(x, codebooks[:, 0], None, metric)[0] for module in (cpu, reference))
        assert torch.equal(indices, wanted), (rows, dim, codes, metric)
    found, wanted = (module.segment_sum(x, indices, codes) for module in (cpu, reference))
    assert all(map(torch.equal, found, wanted)), (rows, dim, codes)
    stack = (x, codebooks, None, None, None, "exact")
    found, wanted = (module.residual_nearest(*stack)[0] for module in (cpu, reference))
    assert torch.equal(found, wanted), (rows, dim, codes)
"""


def test_what_memory_held_before_does_not_matter(cpu, pytestconfig):
    """Where the C library fills what it gives out, and gives it all out of one heap."""
    settings = {"MALLOC_PERTURB_": "127", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
    command, environment = [sys.executable, "-c", USED_MEMORY], {**os.environ, **settings}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=pytestconfig.rootpath, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
