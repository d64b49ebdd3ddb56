"""The benchmark of codebook sums at toy sizes."""

import torch

from fastvq.benchmarks import sums
from fastvq.benchmarks.shapes import Shape


def test_contenders_add_up_alike():
    x, indices = torch.randn(3, 40, 8), torch.randint(16, (3, 40))
    for ours, theirs in zip(sums.one_hot(x, indices, 16), sums.index_add(x, indices, 16), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_of_every_contender(capsys):
    rows = sums.run((Shape("toy", 3, 40, 16, 8, 2),), reps=3)
    assert [row.peer for row in rows] == ["", "torch one-hot", "torch index_add"]
    assert all(row.median_ms > 0 and row.gate == "pass" and row.Q == 1 for row in rows)
    assert "toy torch one-hot" in capsys.readouterr().out
