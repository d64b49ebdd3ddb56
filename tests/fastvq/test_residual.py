"""Residual stacks and the k nearest codes through the public door: shapes, gradients, tracing, messages."""

import pytest
import torch

import fastvq
from fastvq import functional as F
from fastvq.kernels import reference

SHAPES = [
    ((9, 5), (3, 7, 5)),
    ((4, 3, 5), (1, 7, 5)),
    ((2, 9, 5), (2, 3, 7, 5)),
    ((2, 4, 3, 5), (2, 3, 7, 5)),
    ((0, 5), (2, 7, 5)),
    ((6, 1), (2, 1, 1)),
]


@pytest.fixture(params=["auto", "tiled", "reference"])
def impl(request) -> str:
    return request.param


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(("x_shape", "codebooks_shape"), SHAPES)
def test_shapes(x_shape, codebooks_shape, beam, impl):
    torch.manual_seed(0)
    x, codebooks = torch.randn(x_shape), torch.randn(codebooks_shape)
    indices, quantized, errors = F.residual_nearest(x, codebooks, beam=beam, impl=impl)
    depth, num_codes, dim = codebooks_shape[-3:]
    assert indices.shape == errors.shape == (*x_shape[:-1], depth)
    assert torch.equal(quantized, F.lookup(indices, codebooks, impl=impl))
    torch.testing.assert_close(errors[..., -1], (x - quantized).square().sum(-1), rtol=1e-4, atol=1e-5)
    sums, counts = F.residual_segment_sum(x, indices, codebooks, impl=impl)
    groups = codebooks_shape[:-3]
    assert sums.shape == (*groups, depth, num_codes, dim)
    assert counts.shape == (*groups, depth, num_codes)
    assert counts.sum() == indices.numel()
    first = F.segment_sum(x.view(*groups, -1, dim), indices[..., 0].view(*groups, -1), num_codes, impl=impl)
    assert torch.equal(counts[..., 0, :], first.counts)
    torch.testing.assert_close(sums[..., 0, :, :], first.sums, rtol=2**-22, atol=0)


@pytest.mark.parametrize(("x_shape", "codebooks_shape"), SHAPES)
def test_topk_shapes(x_shape, codebooks_shape, impl):
    torch.manual_seed(0)
    x, codebook = torch.randn(x_shape), torch.randn(codebooks_shape)[..., 0, :, :]
    topk = min(3, codebook.shape[-2])
    for metric in reference.METRICS:
        indices, distances = F.nearest(x, codebook, metric=metric, topk=topk, impl=impl)
        assert indices.shape == distances.shape == (*x_shape[:-1], topk)
        assert distances.dtype == torch.float32
        nearest = F.nearest(x, codebook, metric=metric, impl="reference")
        assert torch.equal(indices[..., 0], nearest.indices)
        assert torch.equal(distances[..., 0], nearest.distances)
        if metric == "l2":
            every = torch.cdist(x.double(), codebook.double() if x.dim() < 4 else codebook.double().unsqueeze(1))
            assert torch.equal(indices, every.topk(topk, largest=False).indices)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rows_that_are_limited_masked_or_not_finite(dtype, beam, impl):
    """Strided groups of a feature map, mixed sizes, stages for some rows, a mask, ties, NaN: as the oracle has it."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(3, 4, 6, 5).to(dtype).permute(1, 0, 3, 2)
    codebooks = torch.randn(4, 3, 11, 6, dtype=wide)
    codebooks[:, :, 6:] = codebooks[:, :, :5].clone()
    x[0, 0, 0, 0], x[3, 2, 4, 5] = float("nan"), float("inf")
    stages, mask = torch.tensor([[3], [0], [2]]), torch.rand(4, 3, 5) > 0.2
    sizes = (11, 4, 1)
    got = F.residual_nearest(x, codebooks, sizes=sizes, stages=stages, mask=mask, beam=beam, impl=impl)
    expected = F.residual_nearest(
        x.contiguous(), codebooks, sizes=sizes, stages=stages, mask=mask, beam=beam, impl="reference"
    )
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.quantized.nan_to_num(7), expected.quantized.nan_to_num(7))
    torch.testing.assert_close(got.errors, expected.errors, equal_nan=True)
    assert (got.quantized.dtype, got.errors.dtype) == (dtype, wide)
    assert (got.indices[:, 1] == -1).all()
    assert not got.quantized[:, 1].any()
    assert not got.errors[:, 2, :, 2].nan_to_num(0).any()
    assert got.quantized[0, 0, 0].isnan().all() or not mask[0, 0, 0]
    assert (got.indices.amax((0, 1, 2)) < torch.tensor(sizes)).all()
    sums = F.residual_segment_sum(x, got.indices, codebooks, impl=impl)
    torch.testing.assert_close(sums, F.residual_segment_sum(x, got.indices, codebooks, impl="reference"))
    masked = F.residual_nearest(x, codebooks, mask=mask[:1], stages=torch.tensor(2), beam=beam, impl=impl)
    assert torch.equal(masked.indices >= 0, masked.indices[..., :1].ge(0) & (torch.arange(3) < 2))


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("beam", [1, 3])
def test_gradients_of_residual_search(beam, impl):
    torch.manual_seed(0)
    x, codebooks = doubles(2, 2, 4, 3), doubles(2, 3, 4, 3)
    stages, mask = torch.tensor([[3, 1, 0, 2]]), torch.tensor([[[True], [False]], [[True], [True]]])

    def search(a, b):
        return F.residual_nearest(a, b, stages=stages, mask=mask, beam=beam, impl=impl)

    assert torch.autograd.gradcheck(lambda a, b: search(a, b).errors, (x, codebooks))
    assert torch.autograd.gradcheck(lambda a, b: search(a, b).quantized, (x, codebooks))
    assert torch.autograd.gradcheck(lambda a, b: search(a, b)[1:], (x, codebooks))
    (alone,) = torch.autograd.grad(search(x, codebooks.detach()).errors.sum(), x)
    (both, _) = torch.autograd.grad(search(x, codebooks).errors.sum(), (x, codebooks))
    assert torch.equal(alone, both)
    (gradient,) = torch.autograd.grad(search(x.detach(), codebooks).quantized.sum(), codebooks)
    assert torch.equal(
        gradient[..., 0], F.residual_segment_sum(x.detach(), search(x, codebooks)[0], codebooks.detach()).counts
    )


def test_gradients_of_residual_sums(impl):
    torch.manual_seed(0)
    x, codebooks = doubles(2, 2, 4, 3), doubles(2, 3, 4, 3)
    indices = torch.randint(-1, 4, (2, 2, 4, 3))

    def sums(a, b):
        return F.residual_segment_sum(a, indices, b, impl=impl).sums

    assert torch.autograd.gradcheck(sums, (x, codebooks))
    (to_x,) = torch.autograd.grad(sums(x, codebooks.detach()).sum(), x)
    assert torch.equal(to_x, (indices >= 0).sum(-1, keepdim=True).expand_as(x).double())


@pytest.mark.parametrize("metric", reference.METRICS)
def test_gradients_of_topk_distances(metric, impl):
    torch.manual_seed(0)
    x, codebook = doubles(2, 3, 4, 5), doubles(2, 6, 5)
    mask = torch.rand(2, 3, 4) > 0.3
    assert torch.autograd.gradcheck(
        lambda a, b: F.nearest(a, b, metric=metric, topk=3, mask=mask, impl=impl).distances, (x, codebook)
    )


@pytest.mark.parametrize("beam", [1, 3])
def test_rows_that_are_lost_get_and_give_no_gradient(beam, impl):
    torch.manual_seed(0)
    rows, codebooks = torch.randn(6, 3), torch.randn(2, 4, 3, requires_grad=True)
    clean = F.residual_nearest(rows[1:], codebooks, beam=beam, impl=impl)
    (expected,) = torch.autograd.grad(clean.quantized.sum() + clean.errors.sum(), codebooks)
    rows[0, 1] = float("nan")
    x = rows.clone().requires_grad_()
    got = F.residual_nearest(x, codebooks, beam=beam, impl=impl)
    to_x, to_codebooks = torch.autograd.grad(got.quantized.sum() + got.errors.sum(), (x, codebooks))
    assert torch.equal(to_codebooks, expected)
    assert not to_x[0].any()
    assert to_x[1:].any(-1).all()


def test_half_precision_rows_get_gradients_in_their_dtype(impl):
    x = torch.randn(5, 3).bfloat16().requires_grad_()
    codebooks = torch.randn(2, 4, 3, requires_grad=True)
    indices, quantized, errors = F.residual_nearest(x, codebooks, impl=impl)
    (quantized.sum() + errors.sum()).backward()
    assert (x.grad.dtype, codebooks.grad.dtype) == (torch.bfloat16, torch.float32)
    x.grad = None
    F.residual_segment_sum(x, indices, codebooks, impl=impl).sums.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_autocast_changes_nothing(impl):
    torch.manual_seed(0)
    x, codebooks = torch.randn(100, 40) + 30, torch.randn(2, 50, 40) + 30
    for beam in (1, 2):
        expected = F.residual_nearest(x, codebooks, beam=beam, impl=impl)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = F.residual_nearest(x, codebooks, beam=beam, impl=impl)
        for left, right in zip(got, expected, strict=True):
            assert torch.equal(left, right)


def test_opcheck(impl):
    x, codebooks = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 6, 4)
    stages, mask = torch.randint(0, 3, (2, 5)), torch.rand(3, 2, 5) > 0.5
    indices = torch.randint(-1, 6, (3, 2, 5, 2))
    # opcheck's own loss adds float outputs to integer ones in place, so its AOT test cannot take these gradients.
    rest = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.fastvq
    for op, arguments in (
        (ops.residual_nearest, ([6, 4], stages, mask, "exact", impl)),
        (ops.residual_nearest, (None, None, None, "fast", impl)),
        (ops.residual_beam, ([6, 4], stages, mask, 3, "exact", impl)),
    ):
        torch.library.opcheck(op, (x, codebooks, *arguments))
        torch.library.opcheck(
            op, (x.clone().requires_grad_(), codebooks.clone().requires_grad_(), *arguments), test_utils=rest
        )
    for metric in reference.METRICS:
        arguments = (mask, 3, metric, "exact", impl)
        torch.library.opcheck(ops.nearest_topk, (x, codebooks[:, 0], *arguments))
        torch.library.opcheck(
            ops.nearest_topk, (x.clone().requires_grad_(), codebooks[:, 0], *arguments), test_utils=rest
        )
    torch.library.opcheck(ops.residual_segment_sum, (x, indices, codebooks, impl))
    torch.library.opcheck(
        ops.residual_segment_sum,
        (x.clone().requires_grad_(), indices, codebooks.clone().requires_grad_(), impl),
    )


class Stack(torch.nn.Module):
    """What a model does with the ops: codes, their sum, a loss, the sums of an update, and the two nearest codes."""

    def __init__(self, impl: str, beam: int) -> None:
        super().__init__()
        self.impl, self.beam = impl, beam

    def forward(self, x, codebooks, stages):
        indices, quantized, errors = F.residual_nearest(
            x, codebooks, sizes=(7, 5), stages=stages, beam=self.beam, impl=self.impl
        )
        sums = F.residual_segment_sum(x.detach(), indices, codebooks.detach(), impl=self.impl).sums
        near = F.nearest(x, codebooks[0], topk=2, impl=self.impl)
        return quantized, errors.sum() + near.distances.sum(), sums, near.indices


@pytest.mark.parametrize("beam", [1, 2])
@pytest.mark.usefixtures("inductor")
def test_compiles_whole_and_once(beam, impl):
    torch.manual_seed(0)
    torch._dynamo.reset()  # `forward` is one code object for all implementations
    module = Stack(impl, beam)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    codebooks = torch.randn(2, 7, 3, requires_grad=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (5, 6, 31):
            x, stages = torch.randn(rows, 3, requires_grad=True), torch.randint(0, 3, (rows,))
            results = []
            for run in (compiled, module):
                quantized, loss, *rest = run(x, codebooks, stages)
                gradients = torch.autograd.grad(quantized.sum() + loss, (x, codebooks))
                results.append([quantized, loss, *rest, *gradients])
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("beam", [1, 2])
def test_exports(beam, impl):
    torch.manual_seed(0)
    module = Stack(impl, beam)
    rows = torch.export.Dim("rows", min=2)
    arguments = torch.randn(9, 3), torch.randn(2, 7, 3), torch.randint(0, 3, (9,))
    program = torch.export.export(module, arguments, dynamic_shapes=({0: rows}, None, {0: rows}))
    for count in (9, 4):
        arguments = torch.randn(count, 3), torch.randn(2, 7, 3), torch.randint(0, 3, (count,))
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))


def residual(x=(3, 4), codebooks=(2, 5, 4), **options):
    return lambda: F.residual_nearest(torch.zeros(x), torch.zeros(codebooks), **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (residual(codebooks=(5, 4)), ValueError, r"codebooks must be \(Q, K, D\)"),
        (residual(codebooks=(2, 0, 4)), ValueError, r"codebooks must be \(Q, K, D\)"),
        (residual(codebooks=(2, 5, 6)), ValueError, "dimension 6"),
        (residual(x=(3, 2, 4), codebooks=(2, 2, 5, 4)), ValueError, "2 groups"),
        (residual(x=(4,)), ValueError, r"beside codebooks of shape \(2, 5, 4\)"),
        (residual(x=(1, 2, 3, 4)), ValueError, "flatten further"),
        (residual(sizes=(5,)), ValueError, "sizes must hold 2 ints"),
        (residual(sizes=(5, 6)), ValueError, r"in \[1, 5\]"),
        (residual(sizes=(5, 0)), ValueError, r"in \[1, 5\]"),
        (residual(sizes=(5, 2.0)), TypeError, "float"),
        (residual(sizes=torch.tensor([5, 2])), TypeError, "sequence of ints"),
        (residual(sizes=5), TypeError, "got int"),
        (residual(stages=2), TypeError, "stages must be a torch.Tensor"),
        (residual(stages=torch.ones(3)), TypeError, "int64"),
        (residual(stages=torch.ones(4).long()), ValueError, r"stages must broadcast to the rows \(3,\)"),
        (residual(mask=torch.ones(4) > 0), ValueError, "mask must broadcast"),
        (residual(mask=torch.ones(3)), TypeError, "bool"),
        (residual(stages=torch.ones(3, device="meta").long()), ValueError, "one device"),
        (residual(beam=0), ValueError, "beam must be at least 1"),
        (residual(beam=1.5), TypeError, "beam must be an int"),
        (residual(precision="high"), ValueError, "'exact', 'fast'"),
        (residual(impl="cuda"), ValueError, "impl must be one of"),
        (
            lambda: F.residual_nearest(torch.zeros(3, 4).double(), torch.zeros(2, 5, 4)),
            TypeError,
            "x and codebooks must both be float64",
        ),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), topk=6), ValueError, "at most the codebook's 5"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), topk=0), ValueError, "at least 1"),
        (lambda: F.nearest(torch.zeros(3, 4), torch.zeros(5, 4), topk=True), TypeError, "bool"),
        (
            lambda: F.residual_segment_sum(torch.zeros(3, 4), torch.zeros(3, 3).long(), torch.zeros(2, 5, 4)),
            ValueError,
            r"indices must have shape \(3, 2\)",
        ),
        (
            lambda: F.residual_segment_sum(torch.zeros(3, 4), torch.full((3, 2), 5), torch.zeros(2, 5, 4)),
            IndexError,
            "another codebook",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_implementation_without_an_op_is_not_taken_for_it(monkeypatch):
    """Automatically it gives way to tiled torch, which explain() tells; by name it is refused."""
    fastvq.ops.implementation.cache_clear()
    kernels = fastvq.ops.importlib.import_module("fastvq.kernels.cpu")
    monkeypatch.setattr(fastvq.ops, "_cpu_obstacle", lambda device_type: None)
    monkeypatch.delattr(kernels, "residual_nearest", raising=False)
    assert fastvq.ops.choose("auto", "cpu", "residual_nearest") == (
        "tiled",
        "plain torch, because the C++ kernels have no residual_nearest",
    )
    assert fastvq.ops.explain("cpu")["residual_nearest"][0] == "tiled"
    assert fastvq.ops.explain("cpu")["nearest"][0] == "cpu"
    with pytest.raises(RuntimeError, match="the C\\+\\+ kernels have no residual_nearest; impl='auto' can"):
        fastvq.ops.implementation("cpu", "cpu", "residual_nearest")
    fastvq.ops.implementation.cache_clear()
