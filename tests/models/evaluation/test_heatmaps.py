import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from fastvq.models.errors import UserError
from fastvq.models.evaluation.heatmaps import FrameScores, HeatmapScores, frame_scores, unsteadiness


def pair(seed=0, size=(2, 3, 5, 20, 24)):
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand(size, dtype=torch.float64, generator=generator)
    return (wanted + 0.3 * torch.randn(size, dtype=torch.float64, generator=generator)), wanted


def ssim(first, second):
    """Of two images (Wang et al. 2004, equation 13), over the places where the 11 x 11 window fits."""

    def mean(image):
        return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    first, second = first.numpy(), second.numpy()
    a, b = mean(first), mean(second)
    variances = mean(first**2) - a**2, mean(second**2) - b**2
    shared = mean(first * second) - a * b
    top = (2 * a * b + 0.01**2) * (2 * shared + 0.03**2)
    return float((top / ((a**2 + b**2 + 0.01**2) * (sum(variances) + 0.03**2))).mean())


def test_scores_of_frames_are_those_of_their_definitions():
    given, wanted = pair()
    scores = frame_scores(given, wanted)
    clipped = given.clamp(0, 1)
    for clip in range(2):
        for frame in range(5):
            views = [(clipped[clip, view, frame], wanted[clip, view, frame]) for view in range(3)]
            assert scores.ssim[clip, frame] == pytest.approx(sum(ssim(*view) for view in views) / 3, abs=1e-9)
            error = torch.stack([a - b for a, b in views])
            assert scores.psnr[clip, frame] == pytest.approx(20 * math.log10(1 / error.square().mean().sqrt()))
            assert scores.l1[clip, frame] == pytest.approx(error.abs().mean())


def test_perfect_heatmaps():
    _, wanted = pair()
    scores = frame_scores(wanted, wanted)
    torch.testing.assert_close(scores.ssim, torch.ones(2, 5, dtype=torch.float64))
    assert scores.psnr.tolist() == [[100.0] * 5] * 2
    assert not scores.l1.any()
    assert not unsteadiness(scores).any()


def test_unsteadiness():
    rows = torch.tensor([[1.0, 3.0, 1.0, 3.0]])
    # Scaled to 0, 1, 0, 1: a deviation of 1/2; a straight line from 0 to 1 in thirds: sqrt(5) / 6; a constant: 0.
    line = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    value = unsteadiness(FrameScores(rows, line, torch.full((1, 4), 7.0)))
    assert value.tolist() == pytest.approx([(0.5 + math.sqrt(5) / 6) / 3])


def test_windows_have_equal_weights_whatever_the_batches():
    given, wanted = pair(size=(5, 1, 4, 16, 16))
    whole, parts = HeatmapScores(), HeatmapScores()
    whole.add(given, wanted)
    for part in (slice(0, 1), slice(1, 5)):
        parts.add(given[part], wanted[part])
    assert whole.windows == parts.windows == 5
    assert parts.means() == pytest.approx(whole.means())
    assert set(whole.means()) == {"ssim", "psnr", "l1", "t_std"}
    assert HeatmapScores().means() == {}


def test_bad_input_is_named():
    given, wanted = pair()
    with pytest.raises(UserError, match=r"same shape .* got \(1, 3, 5, 20, 24\) and \(2, 3, 5, 20, 24\)"):
        frame_scores(given[:1], wanted)
    with pytest.raises(UserError, match="at least 11 rows and columns"):
        frame_scores(given[..., :10], wanted[..., :10])
    given[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="must be finite"):
        frame_scores(given, wanted)
