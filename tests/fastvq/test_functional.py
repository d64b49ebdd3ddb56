"""Public ops: shapes, gradients, messages, and every implementation held to the reference through one door."""

import pytest
import torch

import fastvq
from fastvq import functional as F
from fastvq import kmeans

SHAPES = [((9, 5), (7, 5)), ((4, 3, 5), (7, 5)), ((2, 9, 5), (2, 7, 5)), ((2, 4, 3, 5), (2, 7, 5)), ((0, 5), (7, 5))]


@pytest.fixture(params=["auto", "tiled", "reference"])
def impl(request) -> str:
    return request.param


@pytest.mark.parametrize(("x_shape", "codebook_shape"), SHAPES)
def test_shapes(x_shape, codebook_shape, impl):
    torch.manual_seed(0)
    x, codebook = torch.randn(x_shape), torch.randn(codebook_shape)
    indices, distances = F.nearest(x, codebook, impl=impl)
    assert indices.shape == distances.shape == x.shape[:-1]
    expected = torch.cdist(x.double(), codebook.double() if x.dim() < 4 else codebook.double().unsqueeze(1))
    assert torch.equal(indices, expected.argmin(-1))
    torch.testing.assert_close(distances.double(), expected.amin(-1).square(), rtol=1e-5, atol=0)
    codes = F.lookup(indices.unsqueeze(-1), codebook.unsqueeze(-3), impl=impl)
    assert codes.shape == x.shape


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_strided_rows_are_searched_in_place(metric, impl):
    """Groups of (B, T, G*D), and a (B, C, T) feature map, give what their contiguous copies give."""
    torch.manual_seed(0)
    codebook = torch.randn(4, 11, 6)
    for x in (
        torch.randn(3, 5, 24).view(3, 5, 4, 6).permute(2, 0, 1, 3),
        torch.randn(3, 4, 6, 5).permute(1, 0, 3, 2),
    ):
        got = F.nearest(x, codebook, metric=metric, impl=impl)
        expected = F.nearest(x.contiguous(), codebook, metric=metric, impl="reference")
        assert torch.equal(got.indices, expected.indices)
        sums = F.segment_sum(x, got.indices, 11, impl=impl)
        torch.testing.assert_close(sums, F.segment_sum(x.contiguous(), got.indices, 11, impl="reference"))


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_gradients_of_distances(metric, impl):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 4) > 0.3
    assert torch.autograd.gradcheck(
        lambda a, b: F.nearest(a, b, metric=metric, mask=mask, impl=impl).distances, (x, codebook)
    )


def test_gradients_of_sums_and_lookup(impl):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(-1, 6, (2, 3, 4))
    assert torch.autograd.gradcheck(lambda a: F.segment_sum(a, indices, 6, impl=impl).sums, (x,))
    codebooks = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    stages = torch.randint(-1, 6, (2, 3, 4, 3))
    assert torch.autograd.gradcheck(lambda c: F.lookup(stages, c, impl=impl), (codebooks,))


def test_rows_that_are_not_finite(impl):
    x = torch.randn(5, 3)
    x[1, 2], x[3, 0] = float("nan"), float("-inf")
    indices, distances = F.nearest(x, torch.randn(4, 3), impl=impl)
    assert indices[[1, 3]].tolist() == [-1, -1]
    assert distances.isnan().tolist() == [False, True, False, True, False]


def test_autocast_changes_nothing(impl):
    torch.manual_seed(0)
    x, codebook = torch.randn(200, 40) + 30, torch.randn(100, 40) + 30
    expected = F.nearest(x, codebook, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = F.nearest(x, codebook, impl=impl)
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.distances, expected.distances)


def test_opcheck(impl):
    x, codebook = torch.randn(3, 2, 5, 4, requires_grad=True), torch.randn(3, 6, 4)
    mask, indices = torch.rand(3, 2, 5) > 0.5, torch.randint(-1, 6, (3, 2, 5))
    for metric in ("dot", "cosine", "l2"):
        arguments = (codebook, mask, metric, "exact", impl)
        torch.library.opcheck(torch.ops.fastvq.nearest, (x.detach(), *arguments))
    # opcheck's own loss adds float outputs to integer ones in place, so its AOT test cannot take this op's gradient.
    rest = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.fastvq.nearest, (x, *arguments), test_utils=rest)
    torch.library.opcheck(torch.ops.fastvq.segment_sum, (x, indices, 6, impl))
    torch.library.opcheck(
        torch.ops.fastvq.lookup, (indices.unsqueeze(-1), torch.randn(3, 1, 6, 4, requires_grad=True), impl)
    )
    state = (torch.randn(3, 6, 4), torch.randn(3, 6, 4), torch.rand(3, 6), torch.randn(3, 6, 4), torch.rand(3, 6))
    torch.library.opcheck(torch.ops.fastvq.ema_update_, (*state, 0.9, 1e-5, "laplace", False, 0.1, True, impl))


@pytest.mark.usefixtures("inductor")
def test_compiles_whole_and_once(impl):
    def run(x, codebook):
        indices, distances = F.nearest(x, codebook, impl=impl)
        return F.lookup(indices.unsqueeze(-1), codebook.unsqueeze(0), impl=impl), distances.sum()

    torch._dynamo.reset()  # `run` is one code object for all implementations
    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    codebook = torch.randn(7, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (5, 6, 31):
            x = torch.randn(rows, 3)
            torch.testing.assert_close(compiled(x, codebook), run(x, codebook))


def test_kmeans_finds_clusters(impl):
    torch.manual_seed(0)
    centres = torch.randn(2, 4, 3) * 20
    x = (centres.repeat_interleave(50, dim=1) + 0.1 * torch.randn(2, 200, 3))[:, torch.randperm(200)]
    start = centres + torch.randn(2, 4, 3)
    result = kmeans(x, 4, iters=5, init=start, impl=impl)
    torch.testing.assert_close(result.codebook, centres, atol=0.1, rtol=0)
    assert result.indices.shape == (2, 200)
    assert (result.inertia < 200 * 3 * 0.02).all()
    few = kmeans(torch.randn(3, 2), 8, impl=impl)
    assert few.codebook.shape == (8, 2)
    assert few.codebook.unique(dim=0).shape[0] == 8


def test_ema_update_without_groups(impl):
    codebook, embed, size = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    grouped = [t.clone().unsqueeze(0) for t in (codebook, embed, size)]
    sums, counts = torch.randn(5, 3), torch.rand(5)
    dead = F.ema_update_(codebook, embed, size, sums, counts, decay=0.5, dead_below=0.4, impl=impl)
    F.ema_update_(*grouped, sums[None], counts[None], decay=0.5, dead_below=0.4, impl="reference")
    torch.testing.assert_close(codebook, grouped[0][0])
    assert dead.shape == (5,)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 6)), ValueError, "dimension 6"),
        (lambda: F.nearest(torch.zeros(3), torch.zeros(5, 3)), ValueError, r"\(N, D\)"),
        (lambda: F.nearest(torch.zeros(2, 3, 4), torch.zeros(3, 5, 4)), ValueError, "3 groups"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(0, 4)), ValueError, "at least one code"),
        (lambda: F.nearest(torch.zeros(3, 4).long(), torch.zeros(5, 4)), TypeError, "convert it first"),
        (lambda: F.nearest([1.0], torch.zeros(5, 4)), TypeError, "list"),
        (lambda: F.nearest(torch.zeros(3, 4).double(), torch.zeros(5, 4)), TypeError, "both be float64"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), metric="l1"), ValueError, "'l2', 'cosine', 'dot'"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), precision="high"), ValueError, "'exact', 'fast'"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), impl="cuda"), ValueError, "impl must be one of"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), mask=torch.ones(3)), TypeError, "bool"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), mask=torch.ones(4) > 0), ValueError, "broadcast"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4, device="meta")), ValueError, "one device"),
        (lambda: F.lookup(torch.zeros(3, 2).long(), torch.zeros(1, 5, 4)), ValueError, "Q = 1"),
        (lambda: F.lookup(torch.full((3, 1), 5), torch.zeros(1, 5, 4)), IndexError, "another codebook"),
        (lambda: F.segment_sum(torch.zeros(3, 4), torch.zeros(2).long(), 5), ValueError, r"\(3,\)"),
        (lambda: kmeans(torch.zeros(0, 4), 5), ValueError, "at least one row"),
        (lambda: kmeans(torch.zeros(3, 4), 0), ValueError, "at least 1"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_explicit_implementations_never_fall_back():
    with pytest.raises(RuntimeError, match="CPU tensors"):
        fastvq.ops.implementation("cpu", "cuda", "nearest")
    for device in ("cpu", "cuda", "mps"):
        assert set(fastvq.ops.explain(device)) == set(fastvq.ops.OPS)
