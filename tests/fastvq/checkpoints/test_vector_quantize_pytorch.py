"""vector-quantize-pytorch's modules: the same codes, read from their states and written back into them."""

import pytest
import torch
from torch import nn

import fastvq
from fastvq import EMA, CodebookRules, checkpoints

peer = pytest.importorskip("vector_quantize_pytorch", reason="its modules are compared with")

CASES = {
    "one": (lambda: peer.VectorQuantize(6, 16), {}, fastvq.VectorQuantize),
    "cosine": (lambda: peer.VectorQuantize(6, 16, use_cosine_sim=True), {"metric": "cosine"}, fastvq.VectorQuantize),
    "projected": (lambda: peer.VectorQuantize(6, 16, codebook_dim=3), {}, fastvq.VectorQuantize),
    "heads": (lambda: peer.VectorQuantize(6, 16, codebook_dim=4, heads=2), {}, fastvq.VectorQuantize),
    "heads of dim": (
        lambda: peer.VectorQuantize(6, 16, codebook_dim=3, heads=2),
        {"heads": 2},
        fastvq.VectorQuantize,
    ),
    "separate heads": (
        lambda: peer.VectorQuantize(6, 16, codebook_dim=3, heads=2, separate_codebook_per_head=True),
        {},
        fastvq.GroupedVQ,
    ),
    "separate projected heads": (
        lambda: peer.VectorQuantize(6, 16, codebook_dim=4, heads=2, separate_codebook_per_head=True),
        {},
        fastvq.GroupedVQ,
    ),
    "learned": (
        lambda: peer.VectorQuantize(6, 16, learnable_codebook=True, ema_update=False),
        {},
        fastvq.VectorQuantize,
    ),
    "residual": (lambda: peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3), {}, fastvq.ResidualVQ),
    "residual projected": (
        lambda: peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3, codebook_dim=4),
        {},
        fastvq.ResidualVQ,
    ),
    "residual mixed": (
        lambda: peer.ResidualVQ(dim=6, codebook_size=(16, 8, 12), num_quantizers=3),
        {},
        fastvq.ResidualVQ,
    ),
    "residual shared": (
        lambda: peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3, shared_codebook=True),
        {},
        fastvq.ResidualVQ,
    ),
    "grouped": (
        lambda: peer.GroupedResidualVQ(dim=6, codebook_size=16, num_quantizers=3, groups=2),
        {},
        fastvq.GroupedResidualVQ,
    ),
    "grouped shared": (
        lambda: peer.GroupedResidualVQ(dim=6, codebook_size=16, num_quantizers=2, groups=2, shared_codebook=True),
        {},
        fastvq.GroupedResidualVQ,
    ),
    "sim": (lambda: peer.SimVQ(6, 16, frozen_codebook_dim=4), {}, fastvq.SimVQ),
    "residual sim": (lambda: peer.ResidualSimVQ(dim=6, codebook_size=16, num_quantizers=3), {}, fastvq.ResidualSimVQ),
}


@pytest.fixture(params=CASES)
def case(request):
    """The peer's module after some steps of training, in eval mode; options; the native class."""
    torch.manual_seed(0)
    make, options, native = CASES[request.param]
    module = make()
    for _ in range(3):
        module(torch.randn(2, 50, 6))
    for name, parameter in module.named_parameters():
        if name.startswith("project"):
            nn.init.normal_(parameter, std=0.5)
    return module.eval(), options, native


def peer_output(module, x):
    quantized, indices, _ = module(x)
    if isinstance(module, peer.GroupedResidualVQ):
        indices = indices.permute(1, 2, 0, 3)
    return quantized, indices


def close_calls(vq, x):
    """Rows (B, N) for which float64 and a slightly moved input disagree about a code."""
    found = [vq.encode(x * (1 + step)) for step in (-1e-5, 0, 1e-5)]
    moved = (found[0] != found[1]) | (found[1] != found[2])
    return moved.flatten(2).any(-1) if moved.dim() > 2 else moved


def test_codes_and_values_are_the_peers(case):
    module, options, native = case
    vq = checkpoints.load(module.state_dict(), **options)
    assert type(vq) is native
    assert not vq.training
    x = torch.randn(2, 60, 6)
    with torch.no_grad():
        quantized, indices = peer_output(module, x)
        out = vq(x)
    assert out.indices.shape == indices.shape
    clear = ~close_calls(vq, x)
    assert clear.float().mean() > 0.9
    assert torch.equal(out.indices[clear], indices[clear])
    torch.testing.assert_close(out.quantized[clear], quantized[clear], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vq.decode(out.indices), out.quantized, rtol=1e-4, atol=1e-5)
    assert len(indices.unique()) > 8


def test_written_back_bit_by_bit(case):
    module, options, _ = case
    state = module.state_dict()
    written = checkpoints.save(checkpoints.load(state, **options), None, "vector-quantize-pytorch")
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor), name
    module.load_state_dict(written)


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_inside_a_bigger_model(case, wrapper, tmp_path):
    module, options, native = case
    model = nn.ModuleDict({"encoder": nn.Linear(6, 6), "middle": nn.ModuleDict({"vq": module})})
    state = model.state_dict()
    torch.save({wrapper: state, "step": 3} if wrapper else state, tmp_path / "model.ckpt")
    vq = checkpoints.load(tmp_path / "model.ckpt", **options)
    assert type(vq) is native
    prefix = "model.middle.vq" if wrapper else "middle.vq"
    named = checkpoints.load(tmp_path / "model.ckpt", "vector-quantize-pytorch", prefix=prefix, **options)
    assert all(torch.equal(a, b) for a, b in zip(vq.state_dict().values(), named.state_dict().values(), strict=True))
    written = checkpoints.save(vq, None, "vector-quantize-pytorch", prefix="middle.vq")
    assert written.keys() == {name for name in state if name.startswith("middle.vq.")}


OLDER = [name for name in CASES if not name.startswith("separate") and "sim" not in name]


@pytest.mark.parametrize("case", OLDER, indirect=True)
def test_older_names(case):
    """Before 1.26 the flag was a float of shape (1,), before 0.9 there was no axis of heads."""
    module, options, _ = case
    state = module.state_dict()
    older = {}
    for name, tensor in state.items():
        if name.endswith("initted"):
            tensor = tensor.float().reshape(1)
        older[name] = tensor[0] if "_codebook." in name and tensor.dim() > 1 else tensor
        if name.endswith("cluster_size"):
            older[name] = tensor[0]
    vq, modern = checkpoints.load(older, **options), checkpoints.load(state, **options)
    for name, tensor in modern.state_dict().items():
        assert torch.equal(vq.state_dict()[name], tensor), name


def test_shared_codebooks():
    torch.manual_seed(0)
    module = peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3, shared_codebook=True)
    vq = checkpoints.load(module.state_dict())
    assert vq.codebooks.shared
    assert vq.codebooks.codebook.shape == (1, 1, 16, 6)
    apart = checkpoints.load(module.state_dict(), shared=False)
    assert not apart.codebooks.shared
    x = torch.randn(2, 50, 6)
    assert torch.equal(apart.encode(x), vq.encode(x))
    other = peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3).state_dict()
    assert not checkpoints.load(other).codebooks.shared
    with pytest.raises(ValueError, match="shared=True needs stages that are all equal, but they differ"):
        checkpoints.load(other, shared=True)


def test_codes_that_have_not_begun():
    """With kmeans_init all codes are zero until the first batch: not a shared codebook, and still to begin."""
    module = peer.ResidualVQ(dim=6, codebook_size=16, num_quantizers=3, kmeans_init=True)
    vq = checkpoints.load(module.state_dict(), rules=CodebookRules(update=EMA(0.8)))
    assert not vq.codebooks.initted
    assert not vq.codebooks.shared
    vq.train()(torch.randn(2, 50, 6))
    assert vq.codebooks.initted


def test_several_quantizers_need_a_prefix():
    model = nn.ModuleDict({"top": peer.VectorQuantize(6, 16), "bottom": peer.VectorQuantize(6, 8)})
    with pytest.raises(
        ValueError, match=r"there are 2 quantizers, 'bottom' \(vector-.*'top'.*: choose one with pref"
    ):
        checkpoints.load(model.state_dict())
    assert checkpoints.load(model.state_dict(), prefix="bottom").codebook_size == 8
    assert checkpoints.detect(model.state_dict(), prefix="top.") == "vector-quantize-pytorch"


def test_what_native_modules_do_not_have_is_refused():
    grouped = peer.GroupedResidualVQ(dim=6, codebook_size=16, num_quantizers=2, groups=2, codebook_dim=2).state_dict()
    with pytest.raises(ValueError, match=r"have projections of their own.*with prefix='rvqs.0' and so on"):
        checkpoints.load(grouped)
    assert checkpoints.load(grouped, prefix="rvqs.1").codebook_dim == 2
    normed = peer.VectorQuantize(6, 16, codebook_dim=3, layernorm_after_project_in=True).state_dict()
    with pytest.raises(ValueError, match=r"has no place for project_in.0.weight, .*more parts"):
        checkpoints.load(normed)
    affine = peer.VectorQuantize(6, 16, affine_param=True)
    affine(torch.randn(2, 20, 6))
    with pytest.raises(ValueError, match=r"has no place for .*_codebook\.\w+"):
        checkpoints.load(affine.state_dict())
    mapped = peer.SimVQ(6, 16, codebook_transform=nn.Sequential(nn.Linear(6, 6))).state_dict()
    with pytest.raises(ValueError, match=r"code_transform.weight is missing"):
        checkpoints.load(mapped)
    with pytest.raises(ValueError, match="heads must be 1 by the file's projections, got 2"):
        checkpoints.load(peer.VectorQuantize(6, 16, codebook_dim=3).state_dict(), heads=2)
