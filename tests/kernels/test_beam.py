"""The beam search against one written with lists, row by row, for every implementation that has ``nearest_topk``."""

import itertools
import math

import numpy as np
import pytest
import torch

from fastvq.kernels import beam as beams
from fastvq.kernels import cpu, reference, tiled


def searched(x, codebooks, sizes, stages, valid, beam, float32):
    """The definition in plain loops over Python floats, which are float64: indices and errors of one row."""
    depth = len(codebooks)
    taken = min(max(stages, 0), depth) if valid else 0
    hypotheses = [([], [], x)]
    path, errors, _ = hypotheses[0]
    for stage in range(taken):
        extensions = []
        for rank, (codes, left, residual) in enumerate(hypotheses):
            for code, entry in enumerate(codebooks[stage][: sizes[stage]]):
                differences = [r - c for r, c in zip(residual, entry, strict=True)]
                error = 0.0
                for difference in differences:
                    error += difference * difference
                if math.isfinite(error):
                    # A difference of two float32 numbers, rounded first to float64, is the float32 one.
                    rounded = rounded_to_float32(differences) if float32 else differences
                    extensions.append((error, rank, code, ([*codes, code], [*left, error], rounded)))
        hypotheses = [extension[-1] for extension in sorted(extensions, key=lambda item: item[:3])[:beam]]
        if not hypotheses:
            break
        path, errors, _ = hypotheses[0]
    lost = taken - len(path)
    return path + [-1] * (depth - len(path)), errors + [math.nan] * lost + [0.0] * (depth - taken)


def rounded_to_float32(values):
    with np.errstate(over="ignore"):
        return np.array(values).astype(np.float32).tolist()


def compare(impl, x, codebooks, sizes, stages, mask, beam):
    indices, quantized, errors = beams.residual_beam(impl, x, codebooks, sizes, stages, mask, beam)
    G, R1, R2, _ = x.shape
    Q, K = codebooks.shape[1:3]
    for g, i, j in itertools.product(range(G), range(R1), range(R2)):
        path, error = searched(
            x[g, i, j].double().tolist(),
            codebooks[g].tolist(),
            sizes or [K] * Q,
            Q if stages is None else int(stages[i, j]),
            mask is None or bool(mask[g, i, j]),
            beam,
            codebooks.dtype == torch.float32,
        )
        assert indices[g, i, j].tolist() == path
        expected = torch.tensor(error, dtype=torch.float64).to(codebooks.dtype)
        assert torch.equal(errors[g, i, j].nan_to_num(-1), expected.nan_to_num(-1))
        assert quantized[g, i, j].isnan().all() == expected.isnan().any()
    lost = errors.isnan().any(-1, keepdim=True)
    codes = torch.where(lost, float("nan"), reference.lookup(indices, codebooks)).to(x.dtype)
    assert torch.equal(quantized.nan_to_num(7), codes.nan_to_num(7))
    assert (quantized.dtype, errors.dtype) == (x.dtype, codebooks.dtype)


@pytest.fixture(params=[reference, tiled, cpu], ids=["reference", "tiled", "cpu"])
def impl(request):
    return request.getfixturevalue("compiled") if request.param is cpu else request.param


SIZES = [(1, 1, 1, 2, 1, 1), (2, 1, 5, 3, 4, 3), (1, 3, 2, 4, 3, 2), (2, 2, 0, 2, 3, 5), (1, 1, 7, 2, 11, 13)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beam", [1, 2, 3, 5, 100])
def test_beam_search_is_the_plain_one(beam, dtype, impl):
    for kind, (G, R1, R2, Q, K, D) in itertools.product(("normal", "integers", "twice", "not finite"), SIZES):
        torch.manual_seed(G + R1 + R2 + Q + K + D)
        x, codebooks = torch.randn(G, R1, R2, D), torch.randn(G, Q, K, D)
        if kind == "integers":
            x, codebooks = x.round(), codebooks.round()
        elif kind == "twice":
            codebooks[:, :, K // 2 :] = codebooks[:, :, : K - K // 2].clone()
        elif kind == "not finite" and x.numel():
            x[0, -1, -1, -1], codebooks[0, -1, 0, 0] = float("nan"), float("inf")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x, codebooks = x.to(dtype), codebooks.to(wide)
        sizes = [max(1, K - stage) for stage in range(Q)]
        stages, mask = torch.randint(-1, Q + 2, (R1, R2)), torch.rand(G, R1, R2) > 0.2
        compare(impl, x, codebooks, None, None, None, beam)
        compare(impl, x, codebooks, sizes, stages, mask, beam)


def test_hypotheses_that_overflow_are_dropped(impl):
    """The first stage's nearest code leaves more than float32 holds: a beam of one loses the row, two keep it.

    Where every code does, any beam loses it.
    """
    x = torch.tensor([[[[3e38, 0.0, 0.0]]]])
    codebooks = torch.tensor([[[[-1e38, 0.0, 0.0], [0.0, 3e38, 3e38]], [[0.0, 0.0, 0.0], [3e38, 0.0, 0.0]]]])
    for beam, path in ((1, [0, -1]), (2, [1, 1])):
        compare(impl, x, codebooks, None, None, None, beam)
        assert beams.residual_beam(impl, x, codebooks, None, None, None, beam)[0].flatten().tolist() == path
    codebooks[0, 0, 1] = codebooks[0, 0, 0]
    compare(impl, x, codebooks, None, None, None, 2)


def test_one_hypothesis_is_the_greedy_search(impl):
    torch.manual_seed(0)
    x, codebooks = torch.randn(2, 3, 7, 5), torch.randn(2, 4, 9, 5)
    x[0, 0, 0, 0] = float("nan")
    stages, mask = torch.randint(-1, 6, (3, 7)), torch.rand(2, 3, 7) > 0.3
    got = beams.residual_beam(impl, x, codebooks, [9, 5, 1, 7], stages, mask, 1)
    expected = reference.residual_nearest(x, codebooks, [9, 5, 1, 7], stages, mask)
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left.nan_to_num(-7), right.nan_to_num(-7))
        assert left.stride() == right.stride()


def test_every_combination_is_found_by_a_beam_that_holds_them_all(impl):
    torch.manual_seed(0)
    x, codebooks = torch.randn(1, 1, 20, 3, dtype=torch.float64), torch.randn(1, 3, 4, 3, dtype=torch.float64)
    errors = beams.residual_beam(impl, x, codebooks, None, None, None, 64)[2][0, 0, :, -1]
    sums = torch.stack([sum(codes) for codes in itertools.product(*codebooks[0])])
    best = torch.cdist(x[0, 0], sums).square().amin(-1)
    torch.testing.assert_close(errors, best, rtol=1e-12, atol=1e-12)
    assert (beams.residual_beam(impl, x, codebooks, None, None, None, 1)[2][0, 0, :, -1] > errors * 1.01).any()


def test_rows_in_blocks(monkeypatch, impl):
    torch.manual_seed(0)
    x, codebooks = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 6, 5)
    stages, mask = torch.randint(-1, 5, (3, 7)), torch.rand(2, 3, 7) > 0.3
    whole = beams.residual_beam(impl, x, codebooks, None, stages, mask, 4)
    monkeypatch.setattr(beams, "BLOCK", 2 * 4 * 5 * 4)
    for left, right in zip(whole, beams.residual_beam(impl, x, codebooks, None, stages, mask, 4), strict=True):
        assert torch.equal(left, right)


def test_the_host_asks_no_tensor_for_a_value():
    """On tensors that have none, where the question would raise: on a GPU it would wait for all that was launched."""
    x, codebooks = torch.empty(2, 3, 7, 5, device="meta"), torch.empty(2, 4, 9, 5, device="meta")
    stages, mask = torch.empty(3, 7, dtype=torch.int64, device="meta"), torch.empty(2, 3, 7, device="meta") > 0
    results = beams.residual_beam(reference, x, codebooks, [9, 5, 1, 7], stages, mask, 3)
    assert [tuple(result.shape) for result in results] == [(2, 3, 7, 4), (2, 3, 7, 5), (2, 3, 7, 4)]
