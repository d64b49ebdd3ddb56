"""The oracle itself, against small cases worked out by hand and against textbook formulas."""

import math

import pytest
import torch

from fastvq.kernels import reference


def test_nearest_by_hand():
    x = torch.tensor([[[[0.0, 0.0], [3.0, 4.0], [float("nan"), 0.0]]]])
    codebook = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [float("inf"), 0.0]]])
    indices, distances = reference.nearest(x, codebook, None)
    assert indices.tolist() == [[[1, 0, -1]]]  # (0, 1) and (1, 0) tie: the lower index
    assert distances[0, 0, :2].tolist() == [1.0, 0.0]
    assert distances[0, 0, 2].isnan()


def test_mask_and_dot_and_cosine_by_hand():
    x = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    codebook = torch.tensor([[[10.0, 0.0], [1.0, 1.0], [0.0, 0.5]]])
    mask = torch.tensor([[[True, False]]])
    indices, score = reference.nearest(x, codebook, mask, "dot")
    assert indices.tolist() == [[[0, -1]]]
    assert score.tolist() == [[[10.0, 0.0]]]
    indices, distance = reference.nearest(x, codebook, None, "cosine")
    assert indices.tolist() == [[[0, 2]]]
    assert distance.tolist() == [[[0.0, 0.0]]]


def test_results_keep_rows_outermost():
    x, codebook = torch.randn(4, 3, 5, 2), torch.randn(4, 7, 2)
    indices, _ = reference.nearest(x, codebook, None)
    assert indices.permute(1, 2, 0).is_contiguous()
    stacked = reference.residual_nearest(x, codebook.unsqueeze(1).expand(-1, 3, -1, -1), None, None, None)
    for result in (*stacked, *reference.nearest_topk(x, codebook, None, 3)):
        assert result.permute(1, 2, 0, 3).is_contiguous()
    out = reference.lookup(indices.unsqueeze(-1), codebook.unsqueeze(1))
    assert out.permute(1, 2, 0, 3).is_contiguous()


def test_segment_sum_is_one_hot_product():
    torch.manual_seed(0)
    x, indices = torch.randn(2, 3, 11, 5), torch.randint(-1, 7, (2, 3, 11))
    sums, counts = reference.segment_sum(x, indices, 7)
    one_hot = torch.nn.functional.one_hot(indices.clamp_min(0), 7) * (indices >= 0).unsqueeze(-1)
    expected = torch.einsum("gabk,gabd->gkd", one_hot.double(), x.double())
    torch.testing.assert_close(sums.double(), expected, rtol=2**-23, atol=2**-23)
    assert torch.equal(counts, one_hot.sum((1, 2)).float())


@pytest.mark.parametrize("smoothing", ["laplace", "none"])
def test_ema_update(smoothing):
    torch.manual_seed(0)
    codebook, sums = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    size, counts = torch.rand(2, 5, dtype=torch.float64) + 0.5, torch.tensor([[0.0, 1, 2, 3, 4]] * 2).double()
    embed = codebook * size.unsqueeze(-1)
    n = 0.9 * size + 0.1 * counts
    m = 0.9 * embed + 0.1 * sums
    total = n.sum(-1, keepdim=True)
    divisor = (n + 1e-5) / (total + 5e-5) * total if smoothing == "laplace" else n
    dead = reference.ema_update_(codebook, embed, size, sums, counts, 0.9, 1e-5, smoothing, False, 0.9, True)
    torch.testing.assert_close(codebook, m / divisor.unsqueeze(-1))
    torch.testing.assert_close(embed, m)
    torch.testing.assert_close(size, n)
    assert torch.equal(dead, n < 0.9 * n.mean(-1, keepdim=True))


def test_codes_without_rows_keep_their_value():
    codebook, embed, size = torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2)
    for smoothing in ("laplace", "none"):
        zero = torch.zeros(1, 2, 3), torch.zeros(1, 2)
        reference.ema_update_(codebook, embed, size, *zero, 0.9, 1e-5, smoothing, False, 0.0, False)
        assert torch.equal(codebook, torch.ones(1, 2, 3))


def test_lookup_sums_stages_left_to_right():
    codebooks = torch.tensor([1e8, 1.0, -1e8]).view(1, 3, 1, 1)
    assert reference.lookup(torch.zeros(1, 1, 1, 3, dtype=torch.int64), codebooks).item() == 0.0  # not 1.0
    assert reference.lookup(torch.tensor([[[[0, -1, 0]]]]), codebooks).item() == 0.0
    assert reference.lookup(torch.tensor([[[[-1, 0, -1]]]]), codebooks).item() == 1.0


def test_square_roots_are_correctly_rounded():
    """Against Python's own, which are the processor's; torch's vectorised ones are not on every CPU."""
    x = torch.rand(5000, dtype=torch.float64)
    assert reference.square_root(x).tolist() == [math.sqrt(value) for value in x.tolist()]


def test_topk_by_hand():
    x = torch.tensor([[[[0.0, 0.0], [3.0, 4.0], [float("nan"), 0.0], [0.0, 0.0]]]])
    codebook = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [float("inf"), 0.0], [1.0, 0.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    indices, distances = reference.nearest_topk(x, codebook, mask, 4)
    assert indices.tolist() == [[[[1, 3, 0, -1], [0, 1, 3, -1], [-1] * 4, [-1] * 4]]]
    assert distances.dtype == torch.float64
    assert distances[0, 0, 0, :3].tolist() == [1.0, 1.0, 25.0]
    assert distances.isnan().tolist() == [[[[False] * 3 + [True], [False] * 3 + [True], [True] * 4, [False] * 4]]]
    assert distances[0, 0, 3].tolist() == [0.0] * 4
    indices, score = reference.nearest_topk(x[:, :, :2], codebook[:, [0, 1, 3]], None, 2, "dot")
    assert indices.tolist() == [[[[0, 1], [0, 1]]]]
    assert score.tolist() == [[[[0.0, 0.0], [25.0, 4.0]]]]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1, 1)


def test_residual_by_hand():
    nan, inf = float("nan"), float("inf")
    codebooks = torch.tensor([[[0.0], [8.0], [16.0]], [[-2.0], [2.0], [0.5]], [[1.0], [inf], [0.25]]])[None]
    x = column(10.5, 4.0, nan, 20.0, 9.0)
    stages = torch.tensor([[5, 2, 3, -1, 1]])
    indices, quantized, errors = reference.residual_nearest(x, codebooks, None, stages, None)
    # 10.5 = 8 + 2 + 0.25 + 0.25; 4 lies midway between 0 and 8.
    assert indices[0, 0].tolist() == [[1, 1, 2], [0, 1, -1], [-1] * 3, [-1] * 3, [1, -1, -1]]
    assert quantized[0, 0, :2, 0].tolist() == [10.25, 2.0]
    assert quantized[0, 0, 2].isnan().all()
    assert quantized[0, 0, 3:, 0].tolist() == [0.0, 8.0]
    assert errors[0, 0, 0].tolist() == [2.5**2, 0.25, 0.0625]
    assert errors[0, 0, 1].tolist() == [16.0, 4.0, 0.0]
    assert errors[0, 0, 2].isnan().all()
    assert errors[0, 0, 3:].tolist() == [[0.0] * 3, [1.0, 0.0, 0.0]]

    first = reference.residual_nearest(x, codebooks, [1, 1, 1], None, torch.tensor([[[True] * 4 + [False]]]))
    assert first[0][0, 0].tolist() == [[0] * 3, [0] * 3, [-1] * 3, [0] * 3, [-1] * 3]
    assert first[1][0, 0, 4].tolist() == [0.0]


def test_a_stage_without_a_finite_code_ends_its_rows():
    codebooks = torch.tensor([[[1.0], [2.0]], [[float("nan")], [float("inf")]], [[0.0], [0.5]]])[None]
    indices, quantized, errors = reference.residual_nearest(
        column(2.0, 1.0), codebooks, None, torch.tensor([[3, 1]]), None
    )
    assert indices[0, 0].tolist() == [[1, -1, -1], [0, -1, -1]]
    assert errors[0, 0].isnan().tolist() == [[False, True, True], [False] * 3]
    assert quantized[0, 0].isnan().tolist() == [[True], [False]]


def test_a_residual_that_overflows_ends_its_row_at_the_next_stage():
    codebooks = torch.tensor([[[-3e38]], [[0.0]]])[None]
    indices, quantized, errors = reference.residual_nearest(column(3e38), codebooks, None, None, None)
    assert indices.flatten().tolist() == [0, -1]
    assert errors.flatten().tolist()[0] == float("inf")
    assert errors.flatten()[1].isnan()
    assert quantized.isnan().all()
    indices, quantized, _ = reference.residual_nearest(column(3e38), codebooks[:, :1], None, None, None)
    assert (indices.item(), quantized.item()) == (0, torch.tensor(-3e38).item())


def test_residual_stages_are_searches_of_float32_residuals():
    torch.manual_seed(0)
    x, codebooks = torch.randn(2, 3, 11, 5).bfloat16(), torch.randn(2, 4, 7, 5)
    indices, quantized, errors = reference.residual_nearest(x, codebooks, None, None, None)
    residual = x.float()
    for stage in range(4):
        index, distance = reference.nearest(residual, codebooks[:, stage], None)
        assert torch.equal(index, indices[..., stage])
        assert torch.equal(distance, errors[..., stage])
        residual = residual - reference.lookup(index.unsqueeze(-1), codebooks[:, stage : stage + 1])
    assert torch.equal(quantized, reference.lookup(indices, codebooks).bfloat16())


def test_residual_segment_sum_by_hand():
    codebooks = torch.tensor([[[1.0], [4.0]], [[0.5], [-1.0]], [[0.25], [2.0]]])[None]
    x = column(3.0, 5.0, 7.0)
    indices = torch.tensor([[1, 0, 0], [0, -1, 0], [1, 0, -1]]).view(1, 1, 3, 3)
    sums, counts = reference.residual_segment_sum(x, indices, codebooks)
    # Residuals: 3, -1, -1.5; 5, (4), 4; 7, 3, (2.5).
    assert sums[0, ..., 0].tolist() == [[5.0, 10.0], [2.0, 0.0], [2.5, 0.0]]
    assert counts[0].tolist() == [[1.0, 2.0], [2.0, 0.0], [2.0, 0.0]]
