"""Tiled torch against the oracle: equal codes everywhere, distances to rounding."""

import pytest
import torch

from fastvq.kernels import reference, tiled

SIZES = [
    (1, 1, 1, 1, 1),
    (3, 2, 0, 5, 4),
    (1, 5, 7, 33, 8),
    (4, 13, 3, 17, 130),
    (64, 2, 9, 50, 8),
    (1, 3, 100, 257, 17),
]
DATA = ("normal", "offset", "duplicates", "integers", "tiny", "huge", "not finite")


def make(
    kind: str, G: int, R1: int, R2: int, K: int, D: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(G + R1 + R2 + K + D)
    x, codebook = torch.randn(G, R1, R2, D), torch.randn(G, K, D)
    if kind == "offset":
        x, codebook = x + 30, codebook + 30
    elif kind == "duplicates":
        codebook[:, K // 2 :] = codebook[:, : K - K // 2].clone()
    elif kind == "integers":
        x, codebook = x.round(), codebook.round()
    elif kind == "tiny":
        x, codebook = x * 1e-30, codebook * 1e-30
    elif kind == "huge":
        x, codebook = x * (1e4 if dtype == torch.float16 else 1e30), codebook * 1e30
    elif kind == "not finite" and x.numel():
        x[0, 0, 0, 0], x[-1, -1, -1, -1], codebook[0, 0, 0] = float("nan"), float("inf"), float("inf")
    return x.to(dtype), codebook.double() if dtype == torch.float64 else codebook


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_codes_are_the_oracles(dtype, metric, kind):
    for size in SIZES:
        x, codebook = make(kind, *size, dtype)
        mask = torch.rand(x.shape[:-1]) > 0.2
        expected = reference.nearest(x, codebook, mask, metric)
        indices, distances = tiled.nearest(x, codebook, mask, metric)
        assert torch.equal(indices, expected[0])
        # float64 sums rounded once on both sides; only their order differs.
        unit = 2.0**-52 * size[-1] if dtype == torch.float64 else 2.0**-23
        scale = x.double().nan_to_num(0, 0, 0).norm(dim=-1) * codebook.double().nan_to_num(0, 0, 0).norm(dim=-1).max()
        slack = unit * (scale if metric == "dot" else torch.ones_like(scale) if metric == "cosine" else 0)
        gap = (distances.double() - expected[1].double()).abs().nan_to_num(0, 0, 0)
        assert (gap <= unit * expected[1].double().abs().nan_to_num(0, 3e38) + slack).all()
        assert torch.equal(distances.isnan(), expected[1].isnan())


def test_reduced_matmul_precision_is_allowed_for():
    """With bfloat16 or TF32 products switched on by the user the codes stay the oracle's."""
    torch.manual_seed(0)
    x, codebook = torch.randn(1, 1, 300, 40), torch.randn(1, 200, 40)
    expected = reference.nearest(x, codebook, None)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(tiled.nearest(x, codebook, None)[0], expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_fast_is_nearly_right():
    torch.manual_seed(0)
    x, codebook = torch.randn(2, 1, 500, 24), torch.randn(2, 100, 24)
    expected = reference.nearest(x, codebook, None)[1]
    distances = tiled.nearest(x, codebook, None, "l2", "fast")[1]
    assert torch.allclose(distances, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_segment_sum(dtype):
    for G, R1, R2, K, D in SIZES:
        x = torch.randn(G, R1, R2, D).to(dtype)
        indices = torch.randint(-1, K, (G, R1, R2))
        expected, counts = reference.segment_sum(x, indices, K)
        sums, got = tiled.segment_sum(x, indices, K)
        assert torch.equal(got, counts)
        # Both add in float64 and in row order.
        assert torch.equal(sums, expected)


def test_foreign_indices_raise():
    with pytest.raises(IndexError, match="another codebook"):
        tiled.segment_sum(torch.zeros(1, 1, 2, 3), torch.tensor([[[0, 7]]]), 7)
    with pytest.raises(IndexError, match="-2"):
        tiled.lookup(torch.tensor([[[[-2]]]]), torch.zeros(1, 1, 3, 2))
