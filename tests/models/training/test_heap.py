import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastvq.models.training import heap, loop

ROOT = Path(heap.__file__).resolve().parents[2]
# 32 blocks of 8 MiB, made and freed twice: pages that the second time faults in, and MiB that stay resident after it,
# and after the end.
CODE = """
import contextlib, json, resource, sys
from pathlib import Path
import torch
from fastvq import _checkout
_checkout.install(Path(sys.argv[1]))
from fastvq.models.training.heap import kept_heap

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

def work():
    del [torch.ones(2**21) for _ in range(32)][:]

before = resident()
with kept_heap() if sys.argv[2] == "kept" else contextlib.nullcontext():
    work()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    held = resident() - before
print(json.dumps([faults, held, resident() - before]))
"""


def measure(how: str) -> list[float]:
    command = [sys.executable, "-c", CODE, str(ROOT), how]
    found: list[float] = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    return found


@pytest.mark.skipif(heap._functions()[0] is None, reason="not the GNU C library")
def test_what_a_step_frees_is_there_for_the_next_and_given_back_in_the_end():
    faults, held, after = measure("kept")
    plain_faults, *_ = measure("plain")
    assert faults < plain_faults / 10
    assert plain_faults > 2**14
    assert after < 64 < 200 < held


def no_library(name):
    raise TypeError("argument must be a string")


@pytest.mark.parametrize("library", [lambda name: object(), no_library], ids=["other functions", "none"])
def test_other_c_libraries_keep_their_ways(monkeypatch, library):
    monkeypatch.setattr(heap.ctypes, "CDLL", library)
    with heap.kept_heap() as kept:
        assert kept is False


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_whoever_tuned_the_allocator_keeps_it_so(monkeypatch, name):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072")
    monkeypatch.setattr(heap, "_functions", lambda: (pytest.fail, pytest.fail))
    with heap.kept_heap() as kept:
        assert kept is False


def test_the_heap_is_given_back_after_an_error(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, what, value):
            calls.append((what, value))
            return 1

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: Library())
    with pytest.raises(KeyError), heap.kept_heap():
        {}["missing"]
    assert calls[-2:] == [(-1, 64 * 2**20), "trim"]


def test_a_training_keeps_its_heap_until_it_ends(monkeypatch, tmp_path):
    seen = []

    @contextlib.contextmanager
    def kept_heap():
        seen.append("kept")
        yield True
        seen.append("given back")

    monkeypatch.setattr(loop, "kept_heap", kept_heap)
    with loop.workplace(tmp_path, resume=False, console=None):
        assert seen == ["kept"]
    assert seen == ["kept", "given back"]
