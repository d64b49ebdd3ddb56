import math

import numpy as np
import pytest
import torch

from fastvq.models.generators.pose_vectors import (
    END,
    PAD,
    WIDTH,
    best_bins,
    by_category,
    clean_probability,
    corrupted,
    drawn_stage,
    ends,
    k_hot,
    sequences,
)
from fastvq.models.motion.pose_codes import CATEGORY_SLICES, PoseCodes
from fastvq.models.tokenizers.pose_codes import POSE_SIZES

SIZES = torch.tensor(POSE_SIZES)


def drawn_bins(*shape):
    return (torch.rand(*shape, 70) * SIZES).long()


def test_vectors_are_those_of_the_pose_codes():
    bins = drawn_bins(9)
    vectors = k_hot(bins)
    assert vectors.shape == (9, 394)
    codes = PoseCodes.from_k_hot(vectors[:, :392].numpy())
    assert np.array_equal(codes.bins, bins.numpy())
    assert not vectors[:, 392:].any()
    assert torch.equal(best_bins(vectors), bins)


def test_a_sequence_ends_and_is_padded():
    bins, lengths = drawn_bins(3, 5), torch.tensor([5, 2, 0])
    bins[1, 2:] = -1
    found = sequences(bins, lengths)
    assert found.shape == (3, 6, 394)
    assert torch.equal(found[0, :5], k_hot(bins[0]))
    assert torch.equal(found[1, :2], k_hot(bins[1, :2]))
    end, pad = torch.eye(WIDTH)[END], torch.eye(WIDTH)[PAD]
    assert torch.equal(found[0, 5], end)
    assert torch.equal(found[1, 2:], torch.stack([end, pad, pad, pad]))
    assert torch.equal(found[2], torch.stack([end, *[pad] * 5]))


def test_every_category_has_its_own_largest_score():
    scores = torch.randn(4, 3, WIDTH)
    rows = by_category(scores)
    assert rows.shape == (4, 3, 70, 18)
    for category, codes in enumerate(CATEGORY_SLICES):
        assert torch.equal(rows[..., category, : POSE_SIZES[category]], scores[..., codes])
        assert (rows[..., category, POSE_SIZES[category] :] == -math.inf).all()
        assert torch.equal(best_bins(scores)[..., category], scores[..., codes].argmax(-1))


def test_the_end_comes_when_it_is_more_likely_than_not():
    scores = torch.zeros(3, WIDTH)
    scores[:, END] = torch.tensor([-1e-6, 0.0, 1e-6])
    assert ends(scores).tolist() == (scores[:, END].double().sigmoid() > 0.5).tolist() == [False, False, True]


def test_corruption_keeps_what_it_should_and_its_result_is_of_the_same_kind():
    vectors = sequences(drawn_bins(40, 30), torch.full((40,), 20))
    assert torch.equal(corrupted(vectors, 1.0)[:, :20], vectors[:, :20])
    found = corrupted(vectors, 0.5, torch.Generator().manual_seed(1))
    for codes in CATEGORY_SLICES:
        assert (found[..., codes].sum(-1) == 1).all()
    # A clean code stays if no noise in its category exceeds it: alone with n - 1 zeros, each replaced with
    # probability 1/2. By simulation of the definition for a category of two codes:
    draw = torch.Generator().manual_seed(2)
    pair = torch.tensor([1.0, 0.0]).expand(400_000, 2)
    kept = torch.rand(pair.shape, generator=draw) < 0.5
    share = (torch.where(kept, pair, torch.randn(pair.shape, generator=draw)).argmax(-1) == 0).double().mean()
    ground = [category for category, size in enumerate(POSE_SIZES) if size == 2]
    same = (best_bins(found) == best_bins(vectors))[:, :20, ground].double().mean()
    assert abs(same - share) < 5 * (0.25 / (40 * 20 * len(ground))) ** 0.5
    # END and PAD: off and kept they stay off, as noise they are on half the time; on and kept they stay on.
    for flag in (END, PAD):
        off, on = (found[..., flag][vectors[..., flag] == value].mean() for value in (0, 1))
        assert abs(off - 0.25) < 0.05
        assert abs(on - 0.75) < 0.15
    again = corrupted(vectors, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(again, found)


def test_inputs_are_clean_at_first_and_one_step_in_ten_at_last():
    assert clean_probability(0) == 1.0
    assert clean_probability(100) == pytest.approx(0.366, abs=1e-3)
    assert clean_probability(229) > 0.1
    assert clean_probability(230) == clean_probability(10**6) == 0.1


def test_stages_are_drawn_by_the_cosine():
    drawn = drawn_stage(torch.rand(400_000, dtype=torch.float64), 6)
    bounds = [0.0, *[2 / math.pi * math.acos(1 - (q + 0.5) / 5) for q in range(5)], 1.0]
    share = torch.bincount(drawn, minlength=6) / 400_000
    for stage in range(6):
        assert share[stage] == pytest.approx(bounds[stage + 1] - bounds[stage], abs=0.004)
    assert share.tolist() == sorted(share.tolist(), reverse=True)
    assert drawn_stage(torch.tensor([0.0, 0.999999]), 6).tolist() == [0, 5]
    assert drawn_stage(torch.rand(20), 1).tolist() == [0] * 20
