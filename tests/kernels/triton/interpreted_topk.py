"""``nearest_topk``, and the beam search made of it, under the interpreter against the oracle. Run by
``test_interpreter.py``."""

import pytest
import torch

from fastvq.benchmarks import gate
from fastvq.kernels import beam, reference
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton.topk import LISTED, WIDEST, launch_topk_search

# numpy, which computes here, warns of the overflows and NaN that the kernels expect and leave to the oracle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# (G, R1, R2, K, D) and how many codes: with every kind of data in one piece, past a tile of codes; with one kind or
# another in pieces and past a tile of rows, as many as there are, one row, no rows.
CASES = (((1, 2, 3, 7, 17), 3), ((2, 1, 5, 131, 6), 8))
MORE_CASES = (((1, 1, 70, 66, 40), 32), ((2, 1, 4, 9, 5), 9), ((1, 1, 1, 1, 1), 1), ((3, 2, 0, 5, 4), 2))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("kind", gate.INPUTS)
def test_codes_and_their_order_are_the_oracles(kind):
    turn = gate.INPUTS.index(kind)
    for place, (size, topk) in enumerate((*CASES, MORE_CASES[turn % 4])):
        x, codes, mask = gate.search_input(kind, size, DTYPES[(turn + place) % 4], "cpu")
        metric = reference.METRICS[(turn + place) % 3]
        assert not gate.topk_mismatches(kernels, x, codes, mask, topk, metric).any(), (size, metric, x.dtype)


def test_more_codes_than_the_search_lists():
    """Asked for, or rivals of each other."""
    x, codes, mask = gate.search_input("normal", (1, 1, 9, 150, 5), torch.float32, "cpu")
    assert not gate.topk_mismatches(kernels, x, codes, mask, WIDEST + 1, "l2").any()
    codes[:, : LISTED.value + 1] = codes[:, :1]
    assert not gate.topk_mismatches(kernels, x, codes, mask, 4, "l2").any()


@pytest.mark.parametrize(("topk", "most"), [(1, 2), (8, 12), (32, 64)])
def test_few_codes_are_listed(topk, most):
    """Of random ones, as many as the docstring says, on average; always enough."""
    x, codes, _ = gate.search_input("normal", (1, 1, 200, 512, 24), torch.float32, "cpu")
    lists, counts = launch_topk_search(x, codes, None, topk, "l2", "exact")
    assert lists.shape == (1, 200, 1, LISTED.value)
    assert (counts >= topk).all()
    assert counts.float().mean() <= most
    assert (counts <= LISTED.value).float().mean() >= 0.99


def test_rows_in_place_and_results_outermost():
    codes = torch.randn(3, 20, 8)
    for x in (torch.randn(2, 5, 3, 8).permute(2, 0, 1, 3), torch.randn(2, 3, 8, 5).permute(1, 0, 3, 2)):
        mask = torch.tensor([[True], [False]]).expand(3, 2, 5)
        assert not gate.topk_mismatches(kernels, x, codes.mT.contiguous().mT, mask, 5, "cosine").any()
        for result in kernels.nearest_topk(x, codes, None, 5):
            assert result.permute(1, 2, 0, 3).is_contiguous()


def test_fast_leaves_out_near_ties_only():
    x, codes, mask = gate.search_input("normal", (2, 1, 60, 70, 24), torch.float32, "cpu")
    indices, distances = kernels.nearest_topk(x, codes, mask, 4, "l2", "fast")
    _, expected = reference.nearest_topk(x, codes, mask, 4)
    assert (indices >= 0).eq(mask.unsqueeze(-1)).all()
    assert torch.allclose(distances, expected, rtol=1e-5)


def test_beam_search():
    stack = gate.stack_input("normal", (2, 1, 12, 20, 6), torch.float32, "cpu")
    ours, expected = (
        beam.residual_beam(impl, stack.x, stack.codebooks, stack.sizes, stack.stages, stack.mask, 4)
        for impl in (kernels, reference)
    )
    for a, b in zip(ours, expected, strict=True):
        assert not gate.differ(a, b, 0.0).any()
