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


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal, NaN at the same places included."""
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_nearest_codes_are_in_the_oracles_order(dtype, metric, kind):
    for size in SIZES:
        x, codebook = make(kind, *size, dtype)
        mask = torch.rand(x.shape[:-1]) > 0.2
        for topk in {1, min(3, size[3]), size[3]}:
            expected = reference.nearest_topk(x, codebook, mask, topk, metric)
            indices, distances = tiled.nearest_topk(x, codebook, mask, topk, metric)
            assert torch.equal(indices, expected[0])
            assert same(distances, expected[1])
            assert distances.dtype == torch.float64


def test_fast_nearest_codes_are_in_order_too():
    torch.manual_seed(0)
    x, codebook = torch.randn(2, 1, 300, 24), torch.randn(2, 100, 24)
    x[0, 0, 0, 0] = float("nan")
    indices, distances = tiled.nearest_topk(x, codebook, None, 5, "l2", "fast")
    expected = reference.nearest_topk(x, codebook, None, 5)[1]
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=0, equal_nan=True)
    assert (indices[0, 0, 0] == -1).all()
    assert (distances.diff(dim=-1).nan_to_num(0) >= 0).all()


def stack(
    kind: str, G: int, R1: int, R2: int, K: int, D: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor, torch.Tensor]:
    """Rows and three stages of one kind of data, codes halved from stage to stage; sizes, stages and a mask."""
    x, codebook = make(kind, G, R1, R2, K, D, dtype)
    codebooks = torch.stack([codebook.roll(stage, 1) / 2**stage for stage in range(3)], 1)
    return x, codebooks, [K, max(1, K // 2), K], torch.randint(-1, 6, (R1, R2)), torch.rand(G, R1, R2) > 0.2


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_residual_stacks_are_the_oracles(dtype, kind):
    for size in SIZES:
        x, codebooks, sizes, stages, mask = stack(kind, *size, dtype)
        for limits in ((sizes, stages, mask), (None, None, None), (sizes, None, mask[:1].expand_as(mask))):
            expected = reference.residual_nearest(x, codebooks, *limits)
            got = tiled.residual_nearest(x, codebooks, *limits)
            assert torch.equal(got[0], expected[0])
            assert same(got[1], expected[1])
            # float64 sums rounded once on both sides; only their order differs.
            unit = 2.0**-52 * size[-1] if dtype == torch.float64 else 2.0**-23
            torch.testing.assert_close(got[2], expected[2], rtol=unit, atol=0, equal_nan=True)
            assert [t.dtype for t in got] == [t.dtype for t in expected]
            sums, counts = tiled.residual_segment_sum(x, got[0], codebooks)
            wanted = reference.residual_segment_sum(x, got[0], codebooks)
            assert same(sums, wanted[0])
            assert torch.equal(counts, wanted[1])


def test_residual_results_keep_rows_outermost_and_strided_rows_are_read():
    torch.manual_seed(0)
    codebooks = torch.randn(3, 2, 4, 20, 8)[:, 1]
    for x in (
        torch.randn(2, 5, 3, 8).permute(2, 0, 1, 3),
        torch.randn(2, 3, 8, 5).permute(1, 0, 3, 2),
        torch.randn(3, 4, 10, 16)[:, ::2, 1::2, ::2],
    ):
        got = tiled.residual_nearest(x, codebooks, None, None, None)
        expected = reference.residual_nearest(x.contiguous(), codebooks.contiguous(), None, None, None)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        for result in (*got, *tiled.nearest_topk(x, codebooks[:, 0], None, 3)):
            assert result.permute(1, 2, 0, 3).is_contiguous()


def test_fast_residuals_are_nearly_right():
    torch.manual_seed(0)
    x, codebooks = torch.randn(2, 1, 200, 24), torch.randn(2, 3, 50, 24)
    expected = reference.residual_nearest(x, codebooks, None, None, None)[2]
    errors = tiled.residual_nearest(x, codebooks, None, None, None, "fast")[2]
    assert torch.allclose(errors, expected, rtol=1e-4)


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
    with pytest.raises(IndexError, match="another codebook"):
        tiled.residual_segment_sum(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0, 3]]]]), torch.zeros(1, 2, 3, 2))
