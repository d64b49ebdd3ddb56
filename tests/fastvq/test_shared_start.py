"""A shared codebook starts from what every stage will see, not from the rows alone."""

import itertools

import pytest
import torch

from fastvq import CodebookRules, FirstRowsInit, GroupedResidualVQ, KMeansInit, RandomInit, ResidualVQ

INITIALISERS = [KMeansInit(), RandomInit(), FirstRowsInit()]


def start(initialiser, *, rows=600, codes=64, stages=4, groups=1, mask=None, x=None):
    """A module, the rows that it started from, and the stack's error by how many stages take part."""
    torch.manual_seed(0)
    x = torch.randn(4, rows // 4, 8 * groups) + 3 if x is None else x
    rules = CodebookRules(init=initialiser, dead=None)
    vq = GroupedResidualVQ(8 * groups, codes, groups=groups, num_quantizers=stages, shared=True, rules=rules).train()
    vq.codebooks.initialise_(x.unflatten(-1, (groups, 8)).movedim(-2, 0), mask)
    vq.eval()
    indices = vq.encode(x)
    errors = []
    for count in range(1, stages + 1):
        taken = indices.clone()
        taken[..., count:] = -1
        errors.append(float((vq.decode(taken) - x).square().sum()))
    return vq, indices, errors


@pytest.mark.parametrize("initialiser", INITIALISERS, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_every_stage_leaves_less_from_the_start(initialiser, groups):
    _, indices, errors = start(initialiser, groups=groups)
    assert all(after < before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.75 * errors[0]
    for stage in range(1, 4):
        assert len(indices[..., stage].unique()) > 8


def test_stages_contribute_equal_shares_and_the_first_ones_the_rest():
    vq, _, _ = start(RandomInit(), codes=10, stages=4)
    book = vq.codebooks.codebook[0, 0]
    # Rows lie round 3; what the first codes leave lies round 0.
    assert (book.mean(-1) > 2).tolist() == [True] * 3 + [False] * 7


def test_fewer_codes_than_stages():
    vq, _, errors = start(KMeansInit(), codes=2, stages=5)
    assert vq.codebooks.codebook.isfinite().all()
    assert errors[1] <= errors[0]


def test_rows_that_became_codes_are_not_drawn_again():
    x = torch.randn(1, 12, 8) + 5
    vq, _, errors = start(FirstRowsInit(), x=x, codes=12, stages=2)
    book = vq.codebooks.codebook[0, 0]
    assert len(book.unique(dim=0)) == 12
    assert book.abs().amax(-1).min() > 0.1  # no code for what leaves nothing
    assert errors[1] < errors[0]


def test_fewer_rows_than_codes_leave_nothing_and_still_start():
    x = torch.randn(1, 3, 8) + 5
    vq, _, errors = start(KMeansInit(), x=x, codes=32, stages=2)
    assert vq.codebooks.codebook.isfinite().all()
    assert errors[1] < 1e-3 * float(x.square().sum())


def test_masked_and_broken_rows_start_nothing():
    torch.manual_seed(1)
    x = torch.randn(2, 40, 8)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1] = False
    x[1] = 1e3
    x[0, 7] = float("nan")
    vq = ResidualVQ(8, 16, num_quantizers=3, shared=True, rules=CodebookRules(init=KMeansInit(), dead=None)).train()
    vq.codebooks.initialise_(x.unsqueeze(0), mask)
    book = vq.codebooks.codebook
    assert book.isfinite().all()
    assert book.abs().max() < 10


def test_training_begins_with_a_used_codebook():
    torch.manual_seed(0)
    x = torch.randn(16, 64, 32) + 2
    vq = ResidualVQ(32, 64, num_quantizers=2, shared=True).train()
    first = vq(x).indices
    share = torch.bincount(first.flatten(), minlength=64) / first.numel()
    perplexity = torch.exp(-(share * share.clamp_min(1e-9).log()).sum())
    assert perplexity > 0.4 * 64
    assert len(first[..., 1].unique()) > 16
