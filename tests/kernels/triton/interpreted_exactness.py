"""Ten thousand rows of every class of shapes and kind of data against the oracle, under the interpreter. Run by
``test_interpreter.py``; ``benchmarks.exactness`` takes ten times as many, and any number."""

import pytest

from fastvq.benchmarks import exactness, gate
from fastvq.kernels import triton as kernels

# numpy, which computes here, warns of the overflows and NaN that the kernels expect and leave to the oracle.
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.timeout(1800)]


def test_ten_thousand_rows_have_the_oracles_codes():
    tallies = list(exactness.blocks(kernels, "cpu", 10_000, fast=False, part=53))
    assert sum(tally.rows for tally in tallies) >= 10_000
    assert [tally for tally in tallies if tally.exact] == []
    assert {(tally.codes, tally.dim) for tally in tallies} == set(exactness.CLASSES)
    assert {tally.kind for tally in tallies} == set(gate.INPUTS)
