"""A million rows of every class of shapes and kind of data against the oracle."""

from fastvq.benchmarks import exactness


def test_a_million_rows_have_the_oracles_codes(cpu):
    rows = wrong = 0
    for tally in exactness.blocks(cpu, "cpu", 1_000_000, fast=False):
        rows, wrong = rows + tally.rows, wrong + tally.exact
    assert rows >= 1_000_000
    assert wrong == 0
