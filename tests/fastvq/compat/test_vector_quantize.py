"""VectorQuantize beside vector-quantize-pytorch's: the same keywords, results, gradients and state."""

import inspect

import pytest
import torch
from torch import nn

from fastvq.compat.vector_quantize_pytorch import LossBreakdown, VectorQuantize, candidates

SHAPE = (4, 16, 16)
TOLERANCE = 32 * torch.finfo(torch.float32).eps  # as conftest's
PLAIN = {"dim": 16, "codebook_size": 24}
LEARNED = {"learnable_codebook": True, "ema_update": False}
MASKED = {"mask": (4, 16)}

# name: keywords of the constructor, of the call ("mask" is a shape to draw one in, "x" the input's)
FREE_RUNNING = {
    "rotation trick": ({}, {}),
    "straight through": ({"rotation_trick": False}, {}),
    "decay": ({"decay": 0.99, "eps": 1e-3}, {}),
    "one channel": ({"dim": 1, "codebook_size": 4}, {"x": (4, 8, 1)}),
    "cosine": ({"use_cosine_sim": True}, {}),
    "heads": ({"heads": 2, "codebook_dim": 8}, {}),
    "separate heads": ({"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True}, {}),
    "projected separate heads": ({"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}, {}),
    "cosine heads": ({"heads": 4, "codebook_dim": 4, "use_cosine_sim": True}, {}),
    "projection": ({"codebook_dim": 6}, {}),
    "layer norm": ({"codebook_dim": 6, "layernorm_after_project_in": True}, {}),
    "mask": ({}, MASKED),
    "mask keeps the input": ({"return_zeros_for_masked_padding": False}, MASKED),
    "channels first": ({"channel_last": False}, {"x": (4, 16, 9)}),
    "image": ({"accept_image_fmap": True}, {"x": (4, 16, 3, 4)}),
    "image heads": ({"accept_image_fmap": True, "heads": 2, "codebook_dim": 8}, {"x": (4, 16, 3, 4)}),
    "volume": ({"accept_3d_fmap": True}, {"x": (4, 16, 2, 3, 4)}),
    "one token": ({}, {"x": (16, 16)}),
    "learned": (LEARNED, {}),
    "learned, synchronous": ({**LEARNED, "sync_update_v": 0.3, "rotation_trick": False}, {}),
    "learned in place": ({**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.3)}, {}),
    "bridge": ({"vq_bridge": nn.Linear(16, 16)}, {}),
    "no gradients to the input": ({**LEARNED, "route_gradients_to_input": False}, {}),
    "DiVeQ": ({"directional_reparam": True, "threshold_ema_dead_code": 1e-9}, {}),
    "DiVeQ, variance": (
        {"directional_reparam": True, "threshold_ema_dead_code": 1e-9, "directional_reparam_variance": 0.1},
        {},
    ),
    "frozen": ({"freeze_codebook": True}, {}),
    "frozen in the call": ({}, {"freeze_codebook": True}),
    "averages by hand": ({"manual_ema_update": True}, {}),
    "no averages in the call": ({}, {"ema_update": False}),
    "weighted averages": ({}, {"ema_update_weight": torch.linspace(0, 1, 24)}),
    "weights from counts": ({}, {"ema_update_weight": lambda sums, counts: (counts > 0).float()}),
    "no commitment": ({"commitment_weight": 0.0}, {}),
    "orthogonal": ({"orthogonal_reg_weight": 1.0}, {}),
    "some orthogonal": ({"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 10}, {}),
    "active orthogonal": (
        {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True, "codebook_size": 60},
        {},
    ),
    # The peer forms gradients of scores from codes that it has moved by then; frozen ones show the right gradient.
    "cross-entropy": ({"commitment_use_cross_entropy_loss": True, "freeze_codebook": True}, {}),
    "cross-entropy heads": (
        {"commitment_use_cross_entropy_loss": True, "freeze_codebook": True, "heads": 2, "codebook_dim": 8},
        MASKED,
    ),
    "diversity": (
        {"codebook_diversity_loss_weight": 1.0, "codebook_diversity_temperature": 2.0, "freeze_codebook": True},
        {},
    ),
    "diversity heads": (
        {"codebook_diversity_loss_weight": 1.0, "freeze_codebook": True, "heads": 2, "codebook_dim": 8},
        {},
    ),
    "sampled": ({"stochastic_sample_codes": True, "sample_codebook_temp": 0.7}, {}),
    "sampled, temperature in the call": ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.2}),
    "Gumbel": (
        {
            "straight_through": True,
            "rotation_trick": False,
            "route_gradients_to_input": False,
            "stochastic_sample_codes": True,
            "freeze_codebook": True,
        },
        {},
    ),
    "k nearest": ({}, {"topk": 3}),
    "k nearest, masked": ({}, {"topk": 3, **MASKED}),
    "k nearest of an image": ({"accept_image_fmap": True}, {"x": (4, 16, 3, 4), "topk": 2}),
    "k nearest of one token": ({}, {"x": (16, 16), "topk": 2}),
}


def run(pair, options, call, steps, *, sync=False, skip=(), tolerance=None):
    """Steps both on centred data; returns the pair."""
    call = dict(call)
    shape, mask = call.pop("x", SHAPE), call.pop("mask", None)
    both = pair("VectorQuantize", **{**PLAIN, **options})
    generator = torch.Generator().manual_seed(1)
    for seed in range(steps):
        if sync:
            both.sync()
        x = torch.randn(shape, generator=generator)
        if mask is not None:
            call["mask"] = torch.rand(mask, generator=generator) > 0.3
        more = {} if tolerance is None else {"tolerance": tolerance}
        both.step(x, seed, skip=skip, **more, **call)
    return both


@pytest.mark.parametrize("name", FREE_RUNNING)
def test_fifty_free_running_steps(pair, name):
    """Outputs, losses, gradients and state, and then outputs in eval mode."""
    both = run(pair, *FREE_RUNNING[name], steps=50)
    both.peer.eval(), both.ours.eval()
    call = {key: value for key, value in FREE_RUNNING[name][1].items() if key in ("topk",)}
    x = torch.randn(FREE_RUNNING[name][1].get("x", SHAPE))
    for mine, theirs in zip(both.ours(x, **call), both.peer(x, **call), strict=True):
        assert mine.dtype == theirs.dtype
        both.close("eval", theirs, mine)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"threshold_ema_dead_code": 1}, {}),
        ({"threshold_ema_dead_code": 1}, MASKED),
        ({"threshold_ema_dead_code": 3}, {"x": (1, 8, 16)}),  # more dead codes than rows
        ({"threshold_ema_dead_code": 1, "use_cosine_sim": True}, {}),
        ({"threshold_ema_dead_code": 1, "heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True}, {}),
        ({"threshold_ema_dead_code": 1, **LEARNED}, {}),
        ({"kmeans_init": True, "kmeans_iters": 3}, MASKED),
        ({"kmeans_init": True, "use_cosine_sim": True}, {}),
        ({"kmeans_init": True, "heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True}, {}),
        ({"affine_param": True}, MASKED),
        ({"affine_param": True, **LEARNED, "affine_param_batch_decay": 0.5, "affine_param_codebook_decay": 0.5}, {}),
    ],
)
def test_from_one_seed_the_same_rows_are_drawn(pair, options, call):
    """Expiry, k-means and affine statistics, re-synchronised at every step."""
    run(pair, options, call, steps=12, sync="affine_param" not in options, skip=("_codebook.codebook_",))


def test_k_means_without_as_many_rows_as_codes(pair):
    with pytest.warns(UserWarning, match="8 rows for 24 codes"):
        run(pair, {"kmeans_init": True}, {"x": (1, 8, 16)}, steps=1)


def test_offset_data_where_the_peer_rounds(pair):
    """Rows whose two nearest codes differ by more than the peer's float32 rounding take the same code; ours is the
    float64 one everywhere."""
    both = pair("VectorQuantize", **PLAIN)
    x = torch.randn(SHAPE) + 30.0
    for module in (both.peer, both.ours):
        module._codebook.embed.copy_(torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(2)) + 30.0)
    distances = torch.cdist(x.double(), both.ours.codebook.double())
    nearest, second = distances.square().topk(2, largest=False).values.unbind(-1)
    # |x|^2 + |c|^2 - 2 x.c cancels terms of 16 * 30^2 each, over 16 products.
    rounding = 16 * torch.finfo(torch.float32).eps * 4 * 16 * 30.0**2
    clear = second - nearest > rounding
    assert 0.5 < clear.float().mean() < 1.0
    both.step(x, 0, keep=clear)
    both.sync()
    both.ours.eval()
    assert torch.equal(both.ours(x)[1], torch.cdist(x.double(), both.ours.codebook.double()).argmin(-1))


def test_accumulated_updates(pair):
    both = run(pair, {}, {"accum_ema_update": True}, steps=3)
    assert torch.equal(both.ours._codebook.cluster_size, torch.ones(1, 24))
    both.step(torch.randn(SHAPE), 3)
    assert not torch.equal(both.ours._codebook.cluster_size, torch.ones(1, 24))


def test_gradients_of_scores_are_of_the_codes_that_were_scored():
    """The peer's, with moving averages, are of the codes after their step."""
    x = torch.randn(SHAPE)
    options = {**PLAIN, "commitment_use_cross_entropy_loss": True}
    gradients = []
    for freeze in (False, True):
        torch.manual_seed(0)
        vq, rows = VectorQuantize(**options, freeze_codebook=freeze), x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(vq(rows)[2], rows)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("heads", [1, 2])
def test_loss_on_given_indices(pair, heads):
    both = pair("VectorQuantize", **PLAIN, heads=heads, codebook_dim=16 // heads, freeze_codebook=True)
    x, indices = torch.randn(SHAPE), torch.randint(-1, 24, (4, 16, heads)).squeeze(-1)
    rows = [x.clone().requires_grad_() for _ in range(2)]
    results = [module(own, indices=indices) for module, own in zip((both.peer, both.ours), rows, strict=True)]
    both.close("cross-entropy", results[0][1], results[1][1])
    assert results[1][0].shape == SHAPE
    for _, loss in results:
        loss.backward()
    # Softmax weights are exponentials of scores of up to 8, so that their relative error is 8 times the scores'.
    both.close("gradient", rows[0].grad, rows[1].grad, 8 * TOLERANCE)


def test_loss_breakdown(pair):
    options = {"orthogonal_reg_weight": 0.5, "codebook_diversity_loss_weight": 0.1, "commitment_weight": 0.25}
    both = pair("VectorQuantize", **PLAIN, **options)
    x = torch.randn(SHAPE)
    mine, theirs = (module(x, return_loss_breakdown=True) for module in (both.ours, both.peer))
    assert isinstance(mine[3], LossBreakdown)
    assert mine[3]._fields == theirs[3]._fields
    for name, part, other in zip(mine[3]._fields, mine[3], theirs[3], strict=True):
        both.close(name, other, part)
    total = 0.25 * mine[3].commitment + 0.1 * mine[3].codebook_diversity + 0.5 * mine[3].orthogonal_reg
    torch.testing.assert_close(mine[2], total)


def test_lengths_are_a_mask():
    vq, x = VectorQuantize(**PLAIN).eval(), torch.randn(SHAPE)
    lens = torch.tensor([0, 16, 5, 1])
    mask = torch.arange(16) < lens[:, None]
    for mine, theirs in zip(vq(x, lens=lens), vq(x, mask=mask), strict=True):
        assert torch.equal(mine, theirs)
    assert bool((vq(x, lens=lens)[1] == -1).eq(~mask).all())
    first = VectorQuantize(**PLAIN, channel_last=False).eval()
    first.load_state_dict(vq.state_dict())
    assert torch.equal(first(x.mT, lens=lens)[1], vq(x, lens=lens)[1])


def test_signatures_are_the_peers(peer):
    for mine, theirs in (
        (VectorQuantize, peer.VectorQuantize),
        (VectorQuantize.forward, peer.VectorQuantize.forward),
    ):
        ours, others = (inspect.signature(f).parameters for f in (mine, theirs))
        assert list(ours) == list(others)
        assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in others.items()}
        assert [p.kind for p in ours.values()] == [p.kind for p in others.values()]


def test_attributes_are_the_peers(pair):
    """What the peer's module has in public, ours has too."""
    options = {"affine_param": True, **LEARNED}
    both = pair("VectorQuantize", **PLAIN, **options)
    internal = {"in_place_codebook_optimizer"}
    for mine, theirs in ((both.ours, both.peer), (both.ours._codebook, both.peer._codebook)):
        names = {n for n in dir(theirs) if not n.startswith("_")} - internal
        known = {"gumbel_sample", "sample_fn", "replace_sample_fn", "kmeans_all_reduce_fn", "all_reduce_fn"}
        known |= {"has_dead_code_replacement", "replace", "track_cluster_size_and_embed_avg", "update_codebook"}
        known |= {"update_with_decay", "affine_param"}
        assert {n for n in names if not hasattr(mine, n)} <= known


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4, 9)),
        ({"accept_image_fmap": True}, (4, 3, 5)),
        ({"channel_last": False}, (4, 9)),
        ({"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True}, (4, 9, 2)),
        (
            {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "accept_image_fmap": True},
            (4, 3, 5, 2),
        ),
    ],
)
def test_codes_from_indices(pair, options, shape):
    both = pair("VectorQuantize", **PLAIN, **options)
    indices = torch.randint(0, 24, shape)
    assert torch.equal(both.ours.get_codes_from_indices(indices), both.peer.get_codes_from_indices(indices))
    assert torch.equal(both.ours.get_output_from_indices(indices), both.peer.get_output_from_indices(indices))
    assert torch.equal(both.ours.codebook, both.peer.codebook)


@pytest.mark.parametrize(
    "options",
    [
        {"codebook_dim": 6, "accept_image_fmap": True},
        {"codebook_dim": 6, "heads": 2, "accept_image_fmap": True},
        {"codebook_dim": 6, "heads": 2, "separate_codebook_per_head": True, "accept_image_fmap": True},
    ],
)
def test_indices_decode_to_what_was_quantized(options):
    """Where the peer's projection meets an axis that is not the channels'."""
    vq, x = VectorQuantize(**PLAIN, **options).eval(), torch.randn(2, 16, 3, 4)
    quantized, indices, _ = vq(x)
    torch.testing.assert_close(vq.get_output_from_indices(indices), quantized)


def test_updates_by_hand(pair):
    both = pair("VectorQuantize", **PLAIN, threshold_ema_dead_code=0.5)
    both.ours.codebook = both.peer.codebook = torch.randn(24, 16)
    x, indices = torch.randn(SHAPE), torch.randint(0, 24, (4, 16))
    for name in ("update_indices", "update_ema_indices"):
        for module in (both.peer, both.ours):
            torch.manual_seed(3)
            getattr(module, name)(x, indices)
            module.expire_codes_(x)
        for key, value in both.peer.state_dict().items():
            both.close(key, value, both.ours.state_dict()[key])
    for module in (both.peer, both.ours):
        module._codebook.cluster_size.fill_(2.0)
        module._codebook.embed_avg.copy_(x.view(1, -1, 16)[:, :24])
        module._codebook.update_ema()
    both.close("embed", both.peer.codebook, both.ours.codebook)


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"heads": 2, "separate_codebook_per_head": True}])
def test_the_codebook_called_itself(pair, options):
    both = pair("VectorQuantize", **{**PLAIN, "codebook_dim": 8, **options})
    x = torch.nn.functional.normalize(torch.randn((2, 4, 9, 8) if "heads" in options else (4, 9, 8)), dim=-1)
    theirs, mine = both.peer._codebook(x), both.ours._codebook(x)
    assert torch.equal(theirs[1], mine[1])
    both.close("codes", theirs[0], mine[0])
    both.close("scores", theirs[2], mine[2])
    for key, value in both.peer.state_dict().items():
        both.close(key, value, both.ours.state_dict()[key])


def test_an_optimizer_stepped_by_hand(pair):
    options = {**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.3)}
    both = pair("VectorQuantize", **PLAIN, **options, manual_in_place_optimizer_update=True)
    x = torch.randn(SHAPE)
    before = both.ours.codebook.clone()
    for module in (both.peer, both.ours):
        module(x)
    assert torch.equal(before, both.ours.codebook)
    for module in (both.peer, both.ours):
        module.update_in_place_optimizer()
    both.close("embed", both.peer.codebook, both.ours.codebook)
    assert not torch.equal(before, both.ours.codebook)


SCORED = ("cross-entropy heads", "diversity", "diversity heads", "sampled", "Gumbel")


@pytest.mark.parametrize("name", SCORED)
def test_blocks_of_scores_make_no_difference(pair, monkeypatch, name):
    """A block of five rows at a time, against the peer's whole matrix."""
    monkeypatch.setattr(candidates, "BLOCK", 5 * 24)
    run(pair, *FREE_RUNNING[name], steps=5)


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"stochastic_sample_codes": True}, LEARNED])
def test_a_function_that_makes_codes_for_every_row(pair, options):
    both = pair("VectorQuantize", **PLAIN, **options)
    for seed in range(5):
        both.sync()
        x = torch.randn(SHAPE)
        shift = x.roll(1, 0)[None, :, :, None] / 8

        def transform(codes, shift=shift):
            return codes[:, None, None] + shift

        # The peer's distances are of x - c + 1e-6.
        both.step(x, seed, codebook_transform_fn=transform, tolerance=8 * TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cosine_sim": True, "threshold_ema_dead_code": 1, "kmeans_init": True},
        {"stochastic_sample_codes": True, "commitment_use_cross_entropy_loss": True},
        {"codebook_diversity_loss_weight": 1.0, "orthogonal_reg_weight": 1.0},
        {"straight_through": True, "rotation_trick": False, "route_gradients_to_input": False},
        {**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.3)},
    ],
)
def test_no_tensor_of_rows_by_codes(monkeypatch, largest_tensor, options):
    """In the forward and the backward pass, where a block of scores is 2^12 entries."""
    monkeypatch.setattr(candidates, "BLOCK", 2**12)
    vq = VectorQuantize(dim=8, codebook_size=256, **options)
    x = torch.randn(2, 256, 8, requires_grad=True)
    with largest_tensor() as seen:
        quantized, _, loss = vq(x)
        (quantized.sum() + loss).backward()
    assert seen.largest <= 2**13 < 512 * 256
