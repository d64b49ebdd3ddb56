"""k-means: initialisers, and rows that come in a stream."""

import pytest
import torch

from fastvq.clustering import kmeans, kmeans_stream


def clusters(groups, count, each, dim, seed=0):
    """Tight clusters far apart: rows (G, count * each, D) in random order, and their centres."""
    random = torch.Generator().manual_seed(seed)
    centres = 100 * torch.randn(groups, count, dim, generator=random)
    rows = centres.repeat_interleave(each, 1) + 0.01 * torch.randn(groups, count * each, dim, generator=random)
    return rows[:, torch.randperm(count * each, generator=random)], centres


def test_k_means_plus_plus_finds_every_far_cluster():
    x, centres = clusters(3, 12, 30, 5)
    generator = torch.Generator().manual_seed(1)
    found = kmeans(x, 12, iters=1, init="k-means++", generator=generator)
    for group in range(3):
        assert torch.cdist(centres[group], found.codebook[group]).amin(1).max() < 0.1
    assert (found.inertia < 1).all()


def test_k_means_plus_plus_draws_in_proportion_to_squared_distance():
    # Rows at 0 (many), 1 and 3. Started at 0, the second centre is 3 in nine cases of ten.
    x = torch.cat([torch.zeros(1000, 1), torch.tensor([[1.0], [3.0]])])
    second = []
    for seed in range(300):
        found = kmeans(x, 2, iters=0, init="k-means++", generator=torch.Generator().manual_seed(seed)).codebook
        if found[0] == 0:
            second.append(float(found[1]))
    assert len(second) > 290
    share = sum(value == 3 for value in second) / len(second)
    assert abs(share - 0.9) < 5 * (0.09 / len(second)) ** 0.5


def test_k_means_plus_plus_takes_no_masked_row_and_none_that_is_not_finite():
    x = torch.tensor([[0.0], [1.0], [50.0], [float("nan")], [2.0]])
    mask = torch.tensor([True, True, False, True, True])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found = kmeans(x, 3, iters=0, init="k-means++", mask=mask, generator=generator)
        assert sorted(found.codebook.flatten().tolist()) == [0, 1, 2]
        assert found.indices[2] == -1
        assert found.indices[3] == -1


def test_fewer_distinct_rows_than_codes_still_give_codes():
    x = torch.ones(6, 2)
    assert kmeans(x, 3, init="k-means++").codebook.isfinite().all()


@pytest.mark.parametrize("grouped", [False, True])
def test_a_stream_gives_what_all_rows_at_once_give(grouped):
    x, _ = clusters(2, 8, 50, 4, seed=3)
    x = x if grouped else x[0]
    start = kmeans(x, 8, iters=0, init="k-means++", generator=torch.Generator().manual_seed(0)).codebook
    whole = kmeans(x, 8, iters=4, init=start)
    streamed = kmeans_stream(lambda: x.split(37, dim=-2), 8, iters=4, init=start)
    torch.testing.assert_close(streamed.codebook, whole.codebook)
    torch.testing.assert_close(streamed.inertia, whole.inertia.double(), rtol=1e-4, atol=1e-4)
    assert streamed.rows == 400
    assert streamed.codebook.dtype == torch.float32


def test_a_stream_starts_from_a_sample_of_all_batches(monkeypatch):
    monkeypatch.setattr("fastvq.clustering.SAMPLE", 8)
    x, centres = clusters(1, 6, 200, 3, seed=5)
    found = kmeans_stream(lambda: x[0].split(100), 6, generator=torch.Generator().manual_seed(0))
    assert torch.cdist(centres[0], found.codebook).amin(1).max() < 0.1
    again = kmeans_stream(lambda: x[0].split(100), 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.codebook, again.codebook)


def test_bad_input():
    with pytest.raises(ValueError, match="init must be one of 'random', 'k-means"):
        kmeans(torch.zeros(4, 2), 2, init="kmeans")
    with pytest.raises(ValueError, match="at least one row together"):
        kmeans_stream(list, 2)
    with pytest.raises(ValueError, match="batches must agree"):
        kmeans_stream(lambda: [torch.zeros(4, 2), torch.zeros(4, 3)], 2)
    with pytest.raises(ValueError, match="iters"):
        kmeans_stream(lambda: [torch.zeros(4, 2)], 2, iters=-1)
