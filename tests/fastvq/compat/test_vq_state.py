"""Saved state of vector-quantize-pytorch in our modules and back, that of its older versions, and options refused."""

import io

import pytest
import torch
from torch import nn

from fastvq.compat import vector_quantize_pytorch as ours
from fastvq.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualSimVQ, ResidualVQ, SimVQ, VectorQuantize

PLAIN = {"dim": 16, "codebook_size": 24}
STACK = {**PLAIN, "num_quantizers": 3}
LEARNED = {"learnable_codebook": True, "ema_update": False}
MODULES = {
    "plain": ("VectorQuantize", PLAIN),
    "k-means": ("VectorQuantize", {**PLAIN, "kmeans_init": True}),
    "cosine": ("VectorQuantize", {**PLAIN, "use_cosine_sim": True}),
    "heads": ("VectorQuantize", {**PLAIN, "heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}),
    "layer norm": ("VectorQuantize", {**PLAIN, "codebook_dim": 6, "layernorm_after_project_in": True}),
    "learned": ("VectorQuantize", {**PLAIN, **LEARNED}),
    "bridge": ("VectorQuantize", {**PLAIN, "vq_bridge": nn.Linear(16, 16)}),
    "stack": ("ResidualVQ", {**STACK, "codebook_dim": 6}),
    "shared": ("ResidualVQ", {**STACK, "shared_codebook": True}),
    "implicit": ("ResidualVQ", {**STACK, "implicit_neural_codebook": True}),
    "beams": ("ResidualVQ", {**STACK, "beam_size": 2}),
    "several sizes": ("ResidualVQ", {"dim": 16, "codebook_size": (24, 8)}),
    "groups": ("GroupedResidualVQ", {**STACK, "groups": 2}),
    "SimVQ": ("SimVQ", PLAIN),
    "SimVQ stack": ("ResidualSimVQ", STACK),
}


@pytest.mark.parametrize("name", MODULES)
def test_state_goes_both_ways(peer, name):
    """Strictly, through a file, from trained modules; and the codes are the same after it."""
    kind, options = MODULES[name]
    x = torch.randn(4, 16, 16)
    for source, target in ((peer, ours), (ours, peer)):
        trained, fresh = getattr(source, kind)(**options), getattr(target, kind)(**options)
        for _ in range(3):
            trained(x + torch.randn_like(x) / 4)
        file = io.BytesIO()
        torch.save(trained.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        before, after = trained.state_dict(), fresh.state_dict()
        assert set(before) == set(after)
        for key, value in before.items():
            assert (value.dtype, value.shape) == (after[key].dtype, after[key].shape)
            assert torch.equal(value, after[key])
        assert torch.equal(trained.eval()(x)[1], fresh.eval()(x)[1])


def test_affine_state_goes_both_ways(peer):
    """A fresh module of the peer's does not even take the peer's own, whose batch statistics it does not know yet."""
    options, x = {**PLAIN, "affine_param": True}, torch.randn(4, 16, 16)
    theirs, mine = peer.VectorQuantize(**options), VectorQuantize(**options)
    theirs(x), mine(x + 1)
    with pytest.raises(RuntimeError, match="batch_mean"):
        peer.VectorQuantize(**options).load_state_dict(theirs.state_dict())
    fresh = VectorQuantize(**options)
    fresh.load_state_dict(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])
    theirs.load_state_dict(mine.state_dict())
    theirs.train(), mine.train()
    for _ in range(3):
        assert torch.equal(theirs(x)[1], mine(x)[1])


@pytest.mark.parametrize("kmeans", [False, True])
def test_state_of_older_versions(kmeans):
    """``initted`` was one float; earlier still there was no axis of heads."""
    vq, x = VectorQuantize(**PLAIN, kmeans_init=True), torch.randn(4, 16, 16)
    if kmeans:
        vq(x)
    state = {key: value.clone() for key, value in vq.state_dict().items()}
    torch.manual_seed(0)
    expected = vq(x)
    for axes in (True, False):
        old = {key: value if axes else value.squeeze(0) for key, value in state.items()}
        old["_codebook.initted"] = torch.tensor([float(kmeans)])
        fresh = VectorQuantize(**PLAIN, kmeans_init=True)
        fresh.load_state_dict(old)
        for key, value in state.items():
            assert value.dtype == fresh.state_dict()[key].dtype
            assert torch.equal(value, fresh.state_dict()[key])
        torch.manual_seed(0)
        for mine, theirs in zip(fresh(x), expected, strict=True):  # k-means runs exactly where it has not yet
            assert torch.equal(mine, theirs)
        assert torch.equal(fresh.codebook, vq.codebook)
    stack = ResidualVQ(**STACK)
    old = {
        key: torch.tensor([1.0]) if key.endswith("initted") else value.squeeze(0)
        for key, value in stack.state_dict().items()
    }
    fresh = ResidualVQ(**STACK)
    fresh.load_state_dict(old)
    assert torch.equal(fresh.codebooks, stack.codebooks)


def test_state_in_half_precision_is_taken_as_float32():
    state = {k: v.half() if v.is_floating_point() else v for k, v in VectorQuantize(**PLAIN).state_dict().items()}
    for assign in (False, True):
        vq = VectorQuantize(**PLAIN)
        vq.load_state_dict(state, assign=assign)
        assert vq._codebook.embed.dtype == vq._codebook.cluster_size.dtype == torch.float32
        assert torch.equal(vq.codebook, state["_codebook.embed"][0].float())


@pytest.mark.parametrize("kind", [VectorQuantize, ResidualVQ])
def test_initialisation_can_be_asked_for_again(kind):
    """By the buffer, as the peer's users do."""
    options = {**(PLAIN if kind is VectorQuantize else STACK), "kmeans_init": True}
    module, x = kind(**options), torch.randn(4, 16, 16)
    module(x)
    again = kind(**options)
    again.load_state_dict(module.state_dict())
    for key, value in again.state_dict().items():
        if key.endswith("initted"):
            value.fill_(False)
    fresh = kind(**options)
    for each in (again, fresh):
        torch.manual_seed(1)
        each(x + 5)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


REFUSED = [
    (VectorQuantize, {"straight_through": True}, "rotation_trick=False"),
    (VectorQuantize, {"rotation_trick": True, "directional_reparam": True}, "rotation_trick=False"),
    (VectorQuantize, {"use_cosine_sim": True, **LEARNED}, "learnable_codebook=False"),
    (VectorQuantize, {"use_cosine_sim": True, "affine_param": True}, "leave one of them out"),
    (VectorQuantize, {"directional_reparam": True}, "threshold_ema_dead_code above 0"),
    (VectorQuantize, {"straight_through": True, "rotation_trick": False, **LEARNED}, "straight_through=False"),
    (VectorQuantize, {"learnable_codebook": True}, "ema_update=False"),
    (VectorQuantize, {"vq_bridge": nn.Identity(), "learnable_codebook": False}, "learnable_codebook=True"),
    (VectorQuantize, {"vq_bridge": nn.Identity(), "ema_update": True}, "ema_update=False"),
    (VectorQuantize, {"sync_update_v": 0.5}, "learnable_codebook=True"),
    (VectorQuantize, {"sync_update_v": 2.0}, r"\[0, 1\]"),
    (VectorQuantize, {"in_place_codebook_optimizer": torch.optim.SGD}, "learnable_codebook=True"),
    (
        VectorQuantize,
        {
            "heads": 2,
            "separate_codebook_per_head": True,
            "orthogonal_reg_weight": 1.0,
            "orthogonal_reg_active_codes_only": True,
        },
        "separate_codebook_per_head=False",
    ),
    (VectorQuantize, {"decay": 1.5}, "decay must lie"),
    (VectorQuantize, {"codebook_size": 0}, "codebook_size must be at least 1"),
    (ResidualVQ, {"heads": 2, "num_quantizers": 2}, "GroupedResidualVQ"),
    (ResidualVQ, {}, "num_quantizers is missing"),
    (ResidualVQ, {"codebook_size": (8, 4), "num_quantizers": 3}, "3 sizes, got 2"),
    (ResidualVQ, {"codebook_size": (8, 4), "shared_codebook": True}, "one size"),
    (ResidualVQ, {"num_quantizers": 2, "eval_beam_size": 2}, "beam_size=1"),
    (ResidualVQ, {"num_quantizers": 2, "beam_size": 2, "stochastic_sample_codes": True}, "leave one out"),
    (ResidualVQ, {"num_quantizers": 2, "beam_score_quantizer_weights": [1.0]}, "2 weights"),
    (ResidualVQ, {"num_quantizers": 2, "quantize_dropout_cutoff_index": 2}, r"\[0, 2\)"),
    (GroupedResidualVQ, {"num_quantizers": 2, "groups": 3}, "multiple of groups"),
    (SimVQ, {"frozen_codebook_dim": 0}, "frozen_codebook_dim"),
    (ResidualSimVQ, {"num_quantizers": 2, "heads": 2}, "heads must be 1"),
    (ResidualSimVQ, {"num_quantizers": 2, "quantize_dropout_cutoff_index": -1}, r"\[0, 2\)"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED)
def test_options_that_are_refused_name_the_alternative(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**PLAIN, **options})


@pytest.mark.parametrize("kind", [VectorQuantize, ResidualVQ, GroupedResidualVQ, SimVQ, ResidualSimVQ])
def test_no_keyword_is_ignored(kind):
    options = PLAIN if kind in (VectorQuantize, SimVQ) else STACK
    with pytest.raises(TypeError, match="no_such_option"):
        kind(**options, no_such_option=1)


@pytest.mark.parametrize(
    ("options", "x", "call", "message"),
    [
        ({}, (4, 16, 8), {}, "16 channels last"),
        ({"accept_image_fmap": True}, (4, 16, 8), {}, r"\(B, C, H, W\)"),
        ({"channel_last": False}, (4, 8, 16), {}, "16 channels after the batch"),
        ({}, (4, 5, 16), {"mask": torch.ones(4, 6, dtype=torch.bool)}, r"mask must have shape \(4, 5\)"),
        ({}, (4, 5, 16), {"mask": torch.ones(4, 5, dtype=torch.bool), "lens": torch.ones(4)}, "both given"),
        ({}, (4, 5, 16), {"lens": torch.ones(3, dtype=torch.int64)}, r"lens must be \(4,\)"),
        ({}, (4, 5, 16), {"topk": 0}, "topk must be at least 1"),
        ({"heads": 2}, (4, 5, 16), {"topk": 2}, "heads=1"),
        ({"commitment_use_cross_entropy_loss": True}, (4, 5, 16), {"topk": 2}, "eval"),
        ({}, (4, 5, 16), {"ema_update_weight": torch.ones(3)}, r"\(24,\) or \(1, 24\)"),
    ],
)
def test_calls_that_are_refused(options, x, call, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantize(**PLAIN, **options)(torch.randn(x), **call)
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        VectorQuantize(**PLAIN)(torch.randn(4, 5, 16), mask=torch.ones(4, 5))


def test_beams_and_an_in_place_optimizer():
    options = {**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    stack = ResidualVQ(**STACK, **options, beam_size=2)
    with pytest.raises(ValueError, match="beam_size=1 with eval_beam_size"):
        stack(torch.randn(4, 5, 16))
    assert stack.eval()(torch.randn(4, 5, 16))[1].shape == (4, 5, 3)


def test_k_means_before_a_trace():
    vq = VectorQuantize(**PLAIN, kmeans_init=True).eval()
    with pytest.raises(Exception, match="kmeans_init has had no batch yet"):
        torch.export.export(vq, (torch.randn(4, 16, 16),))
