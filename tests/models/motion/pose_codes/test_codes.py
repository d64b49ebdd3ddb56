"""The container: frames of it, K-hot and back, and what it refuses."""

import numpy as np
import pytest
import torch

import fastvq.functional
from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import (
    CATEGORY_SLICES,
    CODE_NAMES,
    PADDED_CODES,
    PoseCodes,
    PoseParser,
    find_codes,
)


@pytest.fixture(scope="module")
def codes(procedural) -> PoseCodes:
    return PoseParser().parse(procedural[0].clip.joints)


def test_rows_ascend_and_bins_count_from_zero_in_each_category(codes: PoseCodes):
    assert codes.indices.dtype == np.int64
    assert (np.diff(codes.indices, axis=1) > 0).all()
    for column, run in enumerate(CATEGORY_SLICES):
        np.testing.assert_array_equal(codes.indices[:, column], run.start + codes.bins[:, column])
        assert codes.bins[:, column].min() >= 0
        assert codes.bins[:, column].max() < run.stop - run.start


def test_k_hot_and_back(codes: PoseCodes):
    k_hot = codes.k_hot
    assert k_hot.dtype == bool
    np.testing.assert_array_equal(np.nonzero(k_hot)[1].reshape(-1, 70), codes.indices)
    for form in (k_hot, k_hot.astype(np.float32), k_hot.astype(np.uint8)):
        np.testing.assert_array_equal(PoseCodes.from_k_hot(form).indices, codes.indices)


def test_frames_are_taken_like_those_of_an_array(codes: PoseCodes):
    np.testing.assert_array_equal(codes[::4].indices, codes.indices[::4])
    mask = np.arange(len(codes)) % 3 == 0
    np.testing.assert_array_equal(codes[mask].indices, codes.indices[mask])
    np.testing.assert_array_equal(codes[7].indices, codes.indices[7:8])
    np.testing.assert_array_equal(np.concatenate([frame.indices for frame in codes]), codes.indices)
    assert len(codes[5:5]) == 0
    assert codes[5:5].k_hot.shape == (0, 392)


def test_names_are_those_of_the_active_codes(codes: PoseCodes):
    assert codes.names(3) == [name for name, on in zip(CODE_NAMES, codes.k_hot[3], strict=True) if on]


def test_has_answers_for_one_code_and_for_several(codes: PoseCodes):
    wanted = find_codes("left hand", "neck")
    np.testing.assert_array_equal(codes.has(wanted), codes.k_hot[:, wanted])
    np.testing.assert_array_equal(codes.has(int(wanted[0])), codes.k_hot[:, wanted[0]])
    for wrong in (392, -1, [3, 500], 2.0):
        with pytest.raises(UserError, match="pose codes are whole numbers from 0 to 391, got"):
            codes.has(wrong)


def test_lookup_of_a_padded_codebook_sums_the_active_rows(codes: PoseCodes):
    """The two ways to a pose latent agree: K-hot times codebook, and the library's fused lookup."""
    draw = torch.Generator().manual_seed(0)
    codebook = torch.randn(392, 16, generator=draw, dtype=torch.float64)
    padded = codebook[torch.tensor(PADDED_CODES)]
    assert padded.shape == (70, 18, 16)
    expected = torch.from_numpy(codes.k_hot).double() @ codebook
    found = fastvq.functional.lookup(torch.from_numpy(codes.bins), padded)
    # Sums of 70 numbers of order 1 in two orders.
    torch.testing.assert_close(found, expected, rtol=0, atol=70 * 70 * 2.0**-52)
    shared = fastvq.functional.lookup(torch.from_numpy(codes.indices), codebook.expand(70, 392, 16))
    assert torch.equal(shared, found)


def test_codes_outside_their_category_are_refused(codes: PoseCodes):
    wrong = codes.indices.copy()
    wrong[2, 4] = 82
    with pytest.raises(UserError, match=r"pose code 82 in frame 2 is none of category 4 \(distance 'L-elbow vs R-el"):
        PoseCodes(wrong)
    with pytest.raises(UserError, match="expected 18 to 35; add the category's first code to bin numbers"):
        PoseCodes(codes.bins)
    with pytest.raises(UserError, match=r"must be \(frames, 70\) whole numbers, got shape \(3, 69\)"):
        PoseCodes(codes.indices[:3, :69])
    with pytest.raises(UserError, match=r"whole numbers, got shape .* of float64"):
        PoseCodes(codes.indices.astype(np.float64))


def test_k_hot_needs_one_code_of_every_category(codes: PoseCodes):
    k_hot = codes.k_hot
    k_hot[1, codes.indices[1, 69]] = False
    with pytest.raises(UserError, match="frame 1 has 0 of ground 'R-foot': take the most likely one"):
        PoseCodes.from_k_hot(k_hot)
    k_hot = codes.k_hot
    k_hot[4, 0:2] = True
    with pytest.raises(UserError, match=r"frame 4 has [23] of angle 'L-knee'"):
        PoseCodes.from_k_hot(k_hot)
    with pytest.raises(UserError, match=r"must be \(frames, 392\), got shape \(5, 394\)"):
        PoseCodes.from_k_hot(np.zeros((5, 394)))
