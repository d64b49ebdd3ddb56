"""What fails or misbehaves in vector-quantize-pytorch 1.32 and does not here: one test each, peer and ours."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastvq
from fastvq.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualSimVQ, ResidualVQ, SimVQ, VectorQuantize

PLAIN = {"dim": 16, "codebook_size": 24}
STACK = {**PLAIN, "num_quantizers": 3}
X = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) > 0.3


def graph_breaks(module, x) -> int:
    torch._dynamo.reset()
    return torch._dynamo.explain(module)(x).graph_break_count


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_mask_with_a_projection(peer):
    options = {**PLAIN, "codebook_dim": 6}
    with pytest.raises(RuntimeError, match="must match"):
        peer.VectorQuantize(**options)(X, mask=MASK)
    torch.manual_seed(0)
    vq = VectorQuantize(**options)
    rows, book = vq.project_in(X), vq.codebook.clone()
    quantized, indices, loss = vq(X, mask=MASK)
    chosen = book[indices[MASK]]
    assert torch.equal(indices == -1, ~MASK)
    torch.testing.assert_close(loss, (rows[MASK] - chosen).square().mean())
    torch.testing.assert_close(quantized[MASK], vq.project_out(chosen))
    assert not bool(quantized[~MASK].any())


def test_a_mask_with_cosine_similarity(peer):
    """A mask that keeps every row changes nothing; the peer's loss becomes twenty times as large."""
    losses = {}
    for package in (peer.VectorQuantize, VectorQuantize):
        for mask in (None, torch.ones_like(MASK)):
            torch.manual_seed(0)
            losses[package, mask is None] = float(package(**PLAIN, use_cosine_sim=True)(X, mask=mask)[2].detach())
    assert losses[peer.VectorQuantize, False] > 5 * losses[peer.VectorQuantize, True]
    assert losses[VectorQuantize, False] == pytest.approx(losses[VectorQuantize, True], rel=1e-6)
    assert losses[VectorQuantize, True] == pytest.approx(losses[peer.VectorQuantize, True], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learned", [False, True])
def test_state_stays_float32(peer, dtype, learned):
    """A decay of 0.999 moves nothing in 16 bits."""
    options = {**PLAIN, "decay": 0.999, "learnable_codebook": learned, "ema_update": not learned}
    assert peer.VectorQuantize(**options).to(dtype)._codebook.embed.dtype == dtype
    vq = VectorQuantize(**options)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq = vq.to(dtype)
    for name, value in vq.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert isinstance(vq._codebook.embed, torch.nn.Parameter) == learned
    quantized, _, loss = vq(X.to(dtype))
    assert (quantized.dtype, loss.dtype) == (dtype, torch.float32)
    stack = ResidualVQ(**STACK, codebook_dim=8).to(dtype)
    assert stack.project_in.weight.dtype == dtype
    assert stack.codebooks.dtype == torch.float32
    assert stack(X.to(dtype))[0].dtype == dtype
    assert VectorQuantize(**PLAIN).double()._codebook.embed.dtype == torch.float64
    for module in (VectorQuantize(**PLAIN), ResidualVQ(**STACK), GroupedResidualVQ(**STACK, groups=2)):
        assert module(X.double())[0].dtype == torch.float64
        assert module.double()(X.double())[0].dtype == torch.float64
        assert module(X)[0].dtype == torch.float32


def test_autocast_changes_no_code():
    vq, stack = VectorQuantize(**PLAIN).eval(), ResidualVQ(**STACK).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vq(X)[1], stack(X)[1]
    assert torch.equal(inside[0], vq(X)[1])
    assert torch.equal(inside[1], stack(X)[1])


MODULES = {
    "plain": (VectorQuantize, PLAIN, {}),
    "masked, projected": (VectorQuantize, {**PLAIN, "codebook_dim": 6}, {"mask": MASK}),
    "lengths": (VectorQuantize, PLAIN, {"lens": torch.tensor([3, 16, 5, 7])}),
    "cosine": (VectorQuantize, {**PLAIN, "use_cosine_sim": True}, {"mask": MASK}),
    "heads": (VectorQuantize, {**PLAIN, "heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True}, {}),
    "learned": (VectorQuantize, {**PLAIN, "learnable_codebook": True, "ema_update": False}, {}),
    "orthogonal": (
        VectorQuantize,
        {**PLAIN, "orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
        {},
    ),
    "cross-entropy": (VectorQuantize, {**PLAIN, "commitment_use_cross_entropy_loss": True}, {}),
    "diversity": (VectorQuantize, {**PLAIN, "codebook_diversity_loss_weight": 1.0}, {}),
    "k nearest": (VectorQuantize, PLAIN, {"topk": 3}),
    "affine": (VectorQuantize, {**PLAIN, "affine_param": True}, {}),
    "stack": (ResidualVQ, STACK, {}),
    "masked stack": (ResidualVQ, {**STACK, "codebook_dim": 6}, {"mask": MASK}),
    "cosine stack": (ResidualVQ, {**STACK, "use_cosine_sim": True}, {}),
    "shared stack": (ResidualVQ, {**STACK, "shared_codebook": True}, {}),
    "learned stack": (ResidualVQ, {**STACK, "learnable_codebook": True, "ema_update": False}, {}),
    "stack of several sizes": (ResidualVQ, {"dim": 16, "codebook_size": (24, 8, 5)}, {}),
    "implicit stack": (ResidualVQ, {**STACK, "implicit_neural_codebook": True}, {}),
    "beams": (ResidualVQ, {**STACK, "beam_size": 2}, {}),
    "dropout, fixed": (ResidualVQ, {**STACK, "quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 3}),
    "groups": (GroupedResidualVQ, {**STACK, "groups": 2}, {}),
    "SimVQ": (SimVQ, PLAIN, {}),
    "SimVQ stack": (ResidualSimVQ, STACK, {}),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_the_peer_breaks_graphs(peer):
    for module in (peer.VectorQuantize(**PLAIN), peer.ResidualVQ(**STACK)):
        for mode in (True, False):
            assert graph_breaks(module.train(mode), X) > 0
    for module in (VectorQuantize(**PLAIN), ResidualVQ(**STACK), GroupedResidualVQ(**STACK, groups=2)):
        for mode in (True, False):
            assert graph_breaks(module.train(mode), X) == 0


@pytest.mark.parametrize("name", MODULES)
def test_compiles_whole(name):
    """In training, with the update, and in eval mode; the same results as eager."""
    kind, options, call = MODULES[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = kind(**options)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for _ in range(3):
        rows = [X.clone().requires_grad_() for _ in range(2)]
        results = [step(own, **call) for step, own in zip((eager, compiled), rows, strict=True)]
        for quantized, _, loss in results:
            (quantized.sum() + loss.sum()).backward()
        assert torch.equal(results[0][1], results[1][1])
        torch.testing.assert_close(rows[0].grad, rows[1].grad)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[key])
    eager.eval(), module.eval()
    assert torch.equal(eager(X, **call)[1], compiled(X, **call)[1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VectorQuantize, {**PLAIN, "kmeans_init": True}),
        (VectorQuantize, {**PLAIN, "threshold_ema_dead_code": 2}),
        (VectorQuantize, {**PLAIN, "stochastic_sample_codes": True}),
        (VectorQuantize, {**PLAIN, "straight_through": True, "rotation_trick": False}),
        (VectorQuantize, {**PLAIN, "directional_reparam": True, "threshold_ema_dead_code": 2}),
        (ResidualVQ, {**STACK, "kmeans_init": True}),
        (ResidualVQ, {**STACK, "threshold_ema_dead_code": 2}),
        (ResidualVQ, {**STACK, "diveq": True, "threshold_ema_dead_code": 2}),
        (ResidualVQ, {**STACK, "quantize_dropout": True}),
        (GroupedResidualVQ, {**STACK, "groups": 2, "quantize_dropout": True}),
        (ResidualSimVQ, {**STACK, "quantize_dropout": True}),
    ],
)
def test_what_draws_at_random_compiles_whole(kind, options):
    torch._dynamo.reset()
    module = kind(**options)
    step = torch.compile(module, fullgraph=True, backend="eager")
    for _ in range(3):
        quantized, indices, loss = step(X)
    assert bool(quantized.isfinite().all())
    assert bool(loss.isfinite().all())
    if options.get("threshold_ema_dead_code"):
        sizes = [value for key, value in module.state_dict().items() if key.endswith("cluster_size")]
        assert all(bool((size >= 2).all()) for size in sizes)
    if options.get("quantize_dropout"):
        taken = (indices >= 0).flatten(0, -2).all(0)
        assert bool(taken[0])
        assert bool((loss.flatten(0, -2) if loss.dim() > 1 else loss)[..., ~taken].eq(0).all())


def test_dropped_stages_stay_as_they_are_when_compiled():
    torch._dynamo.reset()
    module = ResidualVQ(**STACK, quantize_dropout=True)
    step = torch.compile(module, fullgraph=True, backend="eager")
    seen = set()
    for _ in range(12):
        before = module.codebooks.clone()
        taken = (step(X)[1] >= 0).all(0).all(0)
        seen.add(int(taken.sum()))
        assert torch.equal((module.codebooks != before).any(-1).any(-1), taken)
    assert len(seen) > 1


@pytest.mark.usefixtures("inductor")
def test_compiles_with_the_default_backend():
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = GroupedResidualVQ(**STACK, groups=2)
    module = copy.deepcopy(eager)
    rows = [X.clone().requires_grad_() for _ in range(2)]
    for step, own in zip((eager, torch.compile(module, fullgraph=True)), rows, strict=True):
        quantized, _, loss = step(own)
        (quantized.square().sum() + loss.sum()).backward()
    torch.testing.assert_close(rows[0].grad, rows[1].grad)
    torch.testing.assert_close(eager.codebooks, module.codebooks)


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ"])
def test_the_peer_does_not_export(peer, kind):
    options = PLAIN if kind == "VectorQuantize" else STACK
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(getattr(peer, kind)(**options).eval(), (X,))


@pytest.mark.parametrize("name", [name for name, (_, _, call) in MODULES.items() if not call])
def test_exports(name):
    kind, options, _ = MODULES[name]
    module = kind(**options).eval()
    exported = torch.export.export(module, (X,)).module()
    for mine, theirs in zip(exported(X), module(X), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["plain", "cosine", "heads", "stack", "groups", "SimVQ"])
def test_exports_for_every_number_of_rows(name):
    kind, options, _ = MODULES[name]
    module = kind(**options).eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    exported = torch.export.export(module, (X,), dynamic_shapes=(dims,)).module()
    x = torch.randn(3, 7, 16)
    assert torch.equal(exported(x)[1], module(x)[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plain", "cosine", "heads", "stack", "cosine stack", "groups", "SimVQ"])
def test_runs_in_onnxruntime(name):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    kind, options, _ = MODULES[name]
    torch.manual_seed(0)
    module = kind(**options).eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = fastvq.onnx.export(module, (X,), dynamic_shapes=(axes,))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(3, 7, 16)
    quantized, indices, *_ = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.from_numpy(indices), module(x)[1])  # no close calls among a few random rows
    torch.testing.assert_close(torch.from_numpy(quantized), module(x)[0].detach())


class NoValues(TorchDispatchMode):
    """Refuses operations that ask a tensor for its value, which on a GPU wait for all work before them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"):
            raise AssertionError(f"{name} asks for a value")
        return func(*args, **(kwargs or {}))


DRAWN = {
    "k-means": (VectorQuantize, {**PLAIN, "kmeans_init": True}, {"mask": MASK}),
    "expiry": (VectorQuantize, {**PLAIN, "threshold_ema_dead_code": 2}, {"mask": MASK}),
    "expiry of a stack": (ResidualVQ, {**STACK, "threshold_ema_dead_code": 2, "kmeans_init": True}, {}),
    "expiry of groups": (GroupedResidualVQ, {**STACK, "groups": 2, "threshold_ema_dead_code": 2}, {}),
    "sampled": (VectorQuantize, {**PLAIN, "stochastic_sample_codes": True}, {}),
}


@pytest.mark.parametrize("name", {**MODULES, **DRAWN})
def test_no_tensor_is_asked_for_a_value(monkeypatch, name):
    """Where that costs a sync: the module runs as on a GPU."""
    for module in ("draws", "codebook", "objectives", "vector_quantize", "residual_stack"):
        monkeypatch.setattr(f"fastvq.compat.vector_quantize_pytorch.{module}.known", lambda tensor: False)
    monkeypatch.setattr("fastvq.compat.vector_quantize_pytorch.dropout.shared_draw", lambda high, device: 3)
    kind, options, call = {**MODULES, **DRAWN}[name]
    module = kind(**options)
    x = X.clone().requires_grad_()
    with NoValues():
        for _ in range(2):
            quantized, _, loss = module(x, **call)
            (quantized.sum() + loss.sum()).backward()
        module.eval()(x, **call)
    assert bool(x.grad.isfinite().all())


def test_every_stage_of_a_beam_search_is_updated(peer):
    """The peer's update meets the rows of the first stage only."""
    moved = {}
    for kind in (peer.ResidualVQ, ResidualVQ):
        torch.manual_seed(0)
        module = kind(**STACK, beam_size=2)
        before = module.codebooks.clone()
        module(X)
        moved[kind] = (module.codebooks != before).any(-1).any(-1).tolist()
    assert moved == {peer.ResidualVQ: [True, False, False], ResidualVQ: [True, True, True]}


def test_freeze_codebook_of_a_stack_freezes(peer):
    moved = {}
    for kind in (peer.ResidualVQ, ResidualVQ):
        module = kind(**STACK, freeze_codebook=True)
        before = module.codebooks.clone()
        module(X)
        moved[kind] = not torch.equal(module.codebooks, before)
    assert moved == {peer.ResidualVQ: True, ResidualVQ: False}


def test_loss_of_a_stack_on_given_indices(peer):
    indices = torch.randint(0, 24, (4, 16, 3))
    with pytest.raises(ValueError, match="unpack"):
        peer.ResidualVQ(**STACK)(X, indices=indices)
    stack = ResidualVQ(**STACK).eval()
    quantized, loss = stack(X, indices=indices)
    assert torch.equal(quantized, stack(X)[0])
    residual, expected = X, 0.0
    for stage, book in enumerate(stack.codebooks):
        scores = -torch.cdist(residual, book)
        expected += torch.nn.functional.cross_entropy(scores.flatten(0, 1), indices[..., stage].flatten())
        residual = residual - book[scores.argmax(-1)]
    torch.testing.assert_close(loss, expected)
    grouped = GroupedResidualVQ(**STACK, groups=2).eval()
    assert grouped(X, indices=torch.stack([indices, indices]))[1].shape == ()


@pytest.mark.parametrize("kind", [VectorQuantize, ResidualVQ, GroupedResidualVQ])
@pytest.mark.parametrize("cosine", [False, True])
def test_rows_that_are_not_finite(kind, cosine):
    """They get NaN and index -1, and spoil neither the loss nor the codes."""
    options = {VectorQuantize: PLAIN, ResidualVQ: STACK, GroupedResidualVQ: {**STACK, "groups": 2}}[kind]
    module = kind(**options, use_cosine_sim=cosine, threshold_ema_dead_code=1)
    x = X.clone()
    x[1, 2] = float("nan")
    quantized, indices, loss = module(x.requires_grad_())
    (quantized[0].sum() + loss.sum()).backward()
    assert bool(quantized[1, 2].isnan().all())
    assert int(quantized.isnan().any(-1).sum()) == 1
    assert bool((indices[..., 1, 2] if kind is VectorQuantize else indices[..., 1, 2, :]).eq(-1).all())
    assert bool(loss.isfinite().all())
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


@pytest.mark.parametrize("name", MODULES)
def test_copies(name):
    kind, options, call = MODULES[name]
    module = kind(**options)
    module(X, **call)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for mine, theirs in zip(other.eval()(X, **call), copy.deepcopy(module).eval()(X, **call), strict=True):
            assert torch.equal(mine, theirs)


def test_affine_statistics_rest_in_eval_mode(peer):
    """So that what a row becomes does not depend on the rows encoded before it, as it does in the peer."""
    same = {}
    for kind in (peer.VectorQuantize, VectorQuantize):
        module = kind(**PLAIN, affine_param=True)
        module(X)
        first = module.eval()(X)[0]
        module(3 * X + 1)
        same[kind] = torch.equal(module(X)[0], first)
    assert same == {peer.VectorQuantize: False, VectorQuantize: True}


def test_noise_of_diveq_is_for_training(peer):
    same = {}
    for kind in (peer.ResidualVQ, ResidualVQ):
        module = kind(**STACK, diveq=True, threshold_ema_dead_code=1).eval()
        quantized, indices, _ = module(X)
        same[kind] = torch.equal(quantized, module.get_output_from_indices(indices))
    assert same == {peer.ResidualVQ: False, ResidualVQ: True}
