"""Codebook sums in plain torch agree, and a wrong one is counted."""

import torch

from fastvq.benchmarks import sums


def test_contenders_add_up_alike():
    x, indices = torch.randn(3, 40, 8), torch.randint(16, (3, 40))
    for ours, theirs in zip(sums.one_hot(x, indices, 16), sums.index_add(x, indices, 16), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_sums_that_are_off_by_more_than_rounding_are_counted():
    x, indices = torch.randn(3, 40, 8), torch.randint(16, (3, 40))
    expected, magnitudes = sums.index_add(x.double(), indices, 16), sums.index_add(x.double().abs(), indices, 16)[0]
    found, counts = sums.one_hot(x, indices, 16)
    assert sums.wrong_sums(expected, magnitudes, 1, "", (found, counts)) == 0
    used = int(indices[1, 0])
    found[1, used, 3] += 1e-4 * magnitudes[1, used, 3]
    counts[2, 7] += 1
    assert sums.wrong_sums(expected, magnitudes, 1, "", (found, counts)) == 2
