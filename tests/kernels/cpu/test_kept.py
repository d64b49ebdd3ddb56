"""Codebooks that stay prepared: found again by where they lie, whole or their first stages, until they are let go.

That they give the same codes is part of test_residual.py.
"""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastvq.kernels import reference


def test_what_is_kept_is_what_is_searched_until_it_is_let_go(cpu):
    """Written to against the rules, kept codes show that they are not read again; let go, they are."""
    torch.manual_seed(0)
    x, codes = torch.randn(1, 1, 60, 32), torch.randn(1, 2, 96, 32)
    kept = cpu.Kept(codes)
    before = cpu.residual_nearest(x, codes, None, None, None)[0][..., 0]
    codes.copy_(codes.flip(2))
    assert not torch.equal(cpu.residual_nearest(x, codes[:, :1], None, None, None)[0][..., 0], 95 - before)
    del kept
    gc.collect()
    assert torch.equal(cpu.residual_nearest(x, codes, None, None, None)[0][..., 0], 95 - before)


@pytest.mark.parametrize("part", ["first stages", "later stages", "one group", "sizes", "fewer codes", "clone"])
def test_only_the_very_codes_are_found(cpu, part):
    torch.manual_seed(0)
    x, codes = torch.randn(2, 1, 60, 12), torch.randn(2, 3, 40, 12)
    kept = cpu.Kept(codes)
    sizes = None
    if part == "first stages":
        asked = kept.codebooks[:, :2]
    elif part == "later stages":
        asked = kept.codebooks[:, 1:]
    elif part == "one group":
        x, asked = x[1:], kept.codebooks[1:]
    elif part == "sizes":
        asked, sizes = kept.codebooks, [40, 7, 1]
    elif part == "fewer codes":
        asked = kept.codebooks[:, :, :9]
    else:
        asked = kept.codebooks.flip(2)
    found = cpu.residual_nearest(x, asked, sizes, None, None)
    expected = reference.residual_nearest(x, asked, sizes, None, None)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_threads_search_and_let_go_at_the_same_time(cpu):
    torch.manual_seed(0)
    x, codes = torch.randn(1, 1, 60, 24), torch.randn(1, 4, 64, 24)
    codes[:, :, 32:] = codes[:, :, :32]  # every row is a close call, which the second level decides
    expected = reference.residual_nearest(x, codes, None, None, None)[0]

    def search(number):
        kept = cpu.Kept(codes) if number % 3 == 0 else None
        found = cpu.residual_nearest(x, codes, None, None, None)[0]
        del kept
        return torch.equal(found, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(search, range(200)))


def test_strided_codes_are_refused(cpu):
    with pytest.raises(ValueError, match=r"codebooks must be contiguous to be kept: give codebooks.contiguous\(\)"):
        cpu.Kept(torch.randn(1, 2, 8, 6).mT)
