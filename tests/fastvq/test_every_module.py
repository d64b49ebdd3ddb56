"""What holds for every native module: whole graphs, copies, dtypes, checkpointing, and documentation that runs."""

import copy
import doctest
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastvq

MAKERS = {
    "VectorQuantize": lambda: fastvq.VectorQuantize(6, 16),
    "VectorQuantize heads": lambda: fastvq.VectorQuantize(6, 16, heads=2, codebook_dim=4),
    "VectorQuantize learned": lambda: fastvq.VectorQuantize(
        6, 16, rules=fastvq.CodebookRules(update=fastvq.Learned()), estimator=fastvq.DiVeQ()
    ),
    "VectorQuantize gumbel": lambda: fastvq.VectorQuantize(
        6, 16, rules=fastvq.CodebookRules(update=fastvq.Learned()), estimator=fastvq.GumbelSoftmax()
    ),
    "VectorQuantize regularised": lambda: fastvq.VectorQuantize(
        6,
        16,
        rules=fastvq.CodebookRules(update=fastvq.Learned()),
        regularisers=[fastvq.losses.Orthogonality(), fastvq.losses.Diversity()],
    ),
    "GroupedVQ": lambda: fastvq.GroupedVQ(6, 16, groups=2, estimator=fastvq.RotationTrick()),
    "ResidualVQ": lambda: fastvq.ResidualVQ(6, 16, num_quantizers=2, dropout=fastvq.QuantizeDropout()),
    "ResidualVQ beam": lambda: fastvq.ResidualVQ(6, 16, num_quantizers=2, beam=2),
    "GroupedResidualVQ": lambda: fastvq.GroupedResidualVQ(6, 16, groups=2, num_quantizers=2),
    "ProjectedResidualVQ": lambda: fastvq.ProjectedResidualVQ(6, 16, num_quantizers=2, codebook_dim=3),
    "SplitResidualVQ": lambda: fastvq.SplitResidualVQ(6, 16, num_quantizers=(1, 2), codebook_dim=4),
    "AttentionVQ": lambda: fastvq.AttentionVQ(6, 16),
    "ResidualAttentionVQ": lambda: fastvq.ResidualAttentionVQ(6, 16, num_quantizers=2),
    "ResidualAttentionVQ replaced": lambda: fastvq.ResidualAttentionVQ(
        6,
        16,
        num_quantizers=2,
        start="identity",
        rules=fastvq.CodebookRules(update=fastvq.Learned(), dead=fastvq.RelativeUsage(0.3)),
    ),
    "SimVQ": lambda: fastvq.SimVQ(6, 16),
    "ResidualSimVQ": lambda: fastvq.ResidualSimVQ(6, 16, num_quantizers=2),
    "FSQ": lambda: fastvq.FSQ(6, (5, 4, 3)),
    "ResidualFSQ": lambda: fastvq.ResidualFSQ(6, (5, 4, 3), num_quantizers=2),
    "GroupedResidualFSQ": lambda: fastvq.GroupedResidualFSQ(6, (5, 4, 3), groups=2, num_quantizers=2),
    "LFQ": lambda: fastvq.LFQ(6, 16),
    "ResidualLFQ": lambda: fastvq.ResidualLFQ(6, 16, num_quantizers=2),
    "GroupedResidualLFQ": lambda: fastvq.GroupedResidualLFQ(6, 16, groups=2, num_quantizers=2),
}


@pytest.fixture(params=MAKERS)
def vq(request):
    torch.manual_seed(0)
    module = MAKERS[request.param]()
    module(torch.randn(4, 9, 6))
    return module


def public_modules():
    return [
        getattr(fastvq, name)
        for name in fastvq.__all__
        if inspect.isclass(getattr(fastvq, name)) and issubclass(getattr(fastvq, name), nn.Module)
    ]


def test_the_list_is_whole():
    listed = {type(make()) for make in MAKERS.values()}
    quantizers = {kind for kind in public_modules() if hasattr(kind, "encode")}
    assert quantizers - listed == set(), "a module is missing here"


def test_no_graph_breaks(vq):
    x = torch.randn(4, 9, 6, requires_grad=True)
    for module in (vq.train(), vq.eval()):
        torch._dynamo.reset()
        out = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
        (out.quantized.sum() + out.loss).backward()
        assert x.grad.isfinite().all()


def test_eval_is_exported(vq):
    x = torch.randn(4, 9, 6)
    vq.eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = torch.export.export(vq, (x,), dynamic_shapes=(axes,)).module()
    for rows in (x, torch.randn(2, 30, 6)):
        for ours, theirs in zip(program(rows), vq(rows), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_copies(vq):
    x = torch.randn(4, 9, 6)
    vq.eval()
    expected = vq(x)
    buffer = io.BytesIO()
    torch.save(vq.state_dict(), buffer)
    buffer.seek(0)
    loaded = copy.deepcopy(vq)
    for p in loaded.state_dict().values():
        p.zero_()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(vq), pickle.loads(pickle.dumps(vq)), loaded):
        for ours, theirs in zip(other(x), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(vq, dtype):
    vq.to(dtype)
    x = torch.randn(4, 9, 6, dtype=dtype, requires_grad=True)
    for module in (vq.train(), vq.eval()):
        out = module(x)
        assert out.quantized.dtype == dtype
        (out.quantized.float().sum() + out.loss.float()).backward()
        assert x.grad.isfinite().all()
    for name, value in vq.state_dict().items():
        if name.endswith(("codebooks.codebook", "embed_sum", "cluster_size")):
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast(vq):
    x = torch.randn(4, 9, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vq(x)
    (out.quantized.float().sum() + out.loss.float()).backward()
    assert x.grad.isfinite().all()


def test_gradient_checkpointing(vq):
    """In eval mode, where nothing is updated: a second forward pass inside the backward pass finds the same codes."""
    vq.eval()
    grads = []
    for run in (lambda x: vq(x), lambda x: checkpoint(vq, x, use_reentrant=False)):
        x = torch.linspace(-2, 2, 4 * 9 * 6).view(4, 9, 6).requires_grad_()
        out = run(x)
        (out.quantized.square().sum() + out.loss).backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_gradient_checkpointing_updates_once(vq):
    """In training the codebook moves in the forward pass, not again where that is repeated for the backward pass."""
    other = copy.deepcopy(vq)
    x = torch.randn(4, 9, 6, requires_grad=True)
    torch.manual_seed(1)
    vq(x)
    torch.manual_seed(1)
    out = checkpoint(other, x, use_reentrant=False)
    (out.quantized.sum() + out.loss).backward()
    for name, value in vq.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_vmap_over_batches(vq):
    """torch.func.vmap over a leading axis gives what a loop over it gives."""
    vq.eval()
    x = torch.randn(3, 4, 9, 6)
    batched = torch.func.vmap(vq.encode, in_dims=0)(x)
    assert torch.equal(batched, torch.stack([vq.encode(part) for part in x]))


@pytest.mark.parametrize("kind", public_modules(), ids=lambda kind: kind.__name__)
def test_documentation(kind):
    """Shapes, parameters or buffers, errors where there are any, and an example that runs as it says."""
    text = inspect.getdoc(kind)
    assert "Args:" in text
    assert "Buffers" in text or "buffers" in text or "Parameters" in text
    found = doctest.DocTestFinder(recurse=False).find(kind, kind.__name__, globs={})
    assert sum(len(test.examples) for test in found) > 1
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
