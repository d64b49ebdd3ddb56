"""The tool that counts rows whose code is not the oracle's."""

import torch

from fastvq.benchmarks import exactness, gate
from fastvq.kernels import reference, tiled


class Careless:
    """An implementation that takes the second code for the first."""

    @staticmethod
    def nearest(x, codebook, mask, metric="l2", precision="exact"):
        indices, distances = tiled.nearest(x, codebook, mask, metric)
        return torch.where(indices == 0, 1, indices), distances


def test_wrong_codes_are_counted():
    tallies = list(exactness.blocks(Careless, "cpu", 100, classes=[(5, 3)], dtypes=[torch.float32]))
    assert sum(tally.exact for tally in tallies) > 0
    assert sum(tally.fast for tally in tallies) > 0


def test_the_command_prints_every_class_and_a_sum(capsys):
    """Of every seventh combination, which are all pairs of a shape and a kind of data, and of these two with any
    metric and type."""
    assert exactness.main(["tiled", "--rows", "1", "--part", "7"]) == 0
    printed = capsys.readouterr().out
    for codes, dim in exactness.CLASSES:
        assert f"K {codes:4d}  D {dim:4d}" in printed
    for kind in gate.INPUTS:
        assert f"\n{kind} " in printed
    assert "0 wrong in exact mode" in printed


def test_a_part_of_the_combinations_has_every_value_of_each():
    class Right:
        nearest = staticmethod(reference.nearest)

    tallies = list(exactness.blocks(Right, "cpu", 1, fast=False, part=53))
    assert len(tallies) == -(-len(exactness.CLASSES) * len(gate.INPUTS) * 12 // 53)
    assert {(tally.codes, tally.dim) for tally in tallies} == set(exactness.CLASSES)
    assert {tally.kind for tally in tallies} == set(gate.INPUTS)


def test_the_command_goes_on_from_what_it_kept(capsys, tmp_path):
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    command = ["tiled", "--rows", "1", "--part", "211", "--keep"]
    assert exactness.main([*command, str(whole)]) == 0
    expected = capsys.readouterr().out
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == -(-len(exactness.CLASSES) * len(gate.INPUTS) * 12 // 211)
    part.write_text("".join(lines[:5]))
    assert exactness.main([*command, str(part)]) == 0
    assert capsys.readouterr().out == expected
    assert part.read_text() == whole.read_text()
