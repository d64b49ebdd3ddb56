import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from fastvq.models.errors import UserError
from fastvq.models.evaluation.frechet import frechet_distance, matching


def rows_with(mean, covariance, count=64, seed=0):
    """Rows whose mean and covariance are exactly these."""
    draw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    draw -= draw.mean(axis=0)
    whitened = draw @ np.linalg.inv(np.linalg.cholesky(np.cov(draw, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_of_gaussians_whose_covariances_commute():
    """|m - m'|^2 + sum (s_i - s'_i)^2 where both have the same axes."""
    turn = ortho_group.rvs(4, random_state=0)
    first, second = np.array([1.0, 2, 3, 0.5]), np.array([2.0, 2, 0.1, 4])
    move = np.array([1.0, -2, 0, 0.5])
    given = rows_with(move, turn @ np.diag(first**2) @ turn.T, 40, 1)
    wanted = rows_with(np.zeros(4), turn @ np.diag(second**2) @ turn.T, 70, 2)
    expected = np.square(move).sum() + np.square(first - second).sum()
    assert frechet_distance(given, wanted) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(wanted, given) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("width", [3, 17])
def test_agrees_with_the_root_of_the_product(width):
    draw = np.random.default_rng(width)
    first = draw.normal(size=(90, width)) @ draw.normal(size=(width, width))
    second = draw.normal(size=(60, width)) @ draw.normal(size=(width, width)) + 1
    a, b = (np.cov(rows, rowvar=False) for rows in (first, second))
    move = first.mean(axis=0) - second.mean(axis=0)
    expected = move @ move + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)


def test_singular_covariances_are_exact():
    """Fewer rows than dimensions: the distance is that within the few dimensions that the rows span."""
    draw = np.random.default_rng(0)
    small_first, small_second = draw.normal(size=(9, 5)), 2 * draw.normal(size=(8, 5)) + 1
    inside = ortho_group.rvs(200, random_state=1)[:5]
    expected = frechet_distance(small_first, small_second)
    assert frechet_distance(small_first @ inside, small_second @ inside) == pytest.approx(expected, rel=1e-10)
    apart = frechet_distance(np.eye(6)[[0, 0, 1]] * [[1], [-1], [0]], np.eye(6)[[2, 2, 3]] * [[1], [-1], [0]])
    # Means 1/3 of the last row's axis each; variances add up, since no direction is shared.
    variance = np.var([1, -1, 0], ddof=1) + np.var([0, 0, 1], ddof=1)
    assert frechet_distance(
        np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0]]),
        np.array([[0.0, 0, 1, 0], [0, 0, -1, 0], [0, 0, 0, 1]]),
    ) == pytest.approx(2 / 9 + 2 * variance)
    assert apart == pytest.approx(2 * 1, rel=1e-12)


def test_the_same_rows_are_no_distance_apart():
    rows = np.random.default_rng(0).normal(size=(40, 64)) * 1e3
    assert frechet_distance(rows, rows[::-1]) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, rows + 2) == pytest.approx(4 * 64)


def test_what_has_no_distance_is_refused():
    rows = np.zeros((4, 3))
    with pytest.raises(UserError, match="needs two embeddings on each side, got 4 and 1"):
        frechet_distance(rows, rows[:1])
    with pytest.raises(UserError, match=r"must be \(N, D\) and \(M, D\), got \(4, 3\) and \(4, 2\)"):
        frechet_distance(rows, rows[:, :2])
    with pytest.raises(UserError, match="must be finite"):
        frechet_distance(rows, rows + np.nan)


def test_matching_counts_ranks():
    texts = np.arange(6.0)[:, None]
    captions = [str(index) for index in range(6)]
    assert matching(texts, texts, captions, batch=6) == {"top1": 1.0, "top2": 1.0, "top3": 1.0}
    # Nearer than their own are 1, 0, 2, 0, 4 and 0 others.
    found = matching(np.array([[0.6], [1.0], [0.8], [3.0], [1.2], [5.4]]), texts, captions, batch=6)
    assert found == {"top1": 3 / 6, "top2": 4 / 6, "top3": 5 / 6}
    assert matching(texts, texts, captions, batch=7) == {}


def test_matching_takes_any_description_of_the_same_words():
    texts = np.array([[0.0], [10.0], [20.0], [30.0]])
    motions = np.array([[10.0], [0.0], [20.0], [30.0]])
    assert matching(motions, texts, ["a", "b", "c", "d"], batch=4)["top1"] == 0.5
    assert matching(motions, texts, ["a", "a", "c", "d"], batch=4)["top1"] == 1.0


def test_matching_by_embeddings_that_tell_nothing_apart_is_chance():
    captions = [str(index) for index in range(32)]
    found = matching(np.zeros((32, 4)), np.ones((32, 4)), captions)
    assert found == {"top1": 1 / 32, "top2": 2 / 32, "top3": 3 / 32}
    assert matching(np.zeros((32, 4)), np.ones((32, 4)), ["a"] * 32)["top1"] == 1.0
