"""ResidualVQ and GroupedResidualVQ beside vector-quantize-pytorch's."""

import inspect

import pytest
import torch

from fastvq.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ, candidates

SHAPE = (4, 16, 16)
STACK = {"dim": 16, "codebook_size": 24, "num_quantizers": 3}
LEARNED = {"learnable_codebook": True, "ema_update": False}
MIXED = {"codebook_size": (24, 16, 30), "num_quantizers": None}
MASKED = {"mask": (4, 16)}
GROUPS = {"groups": 2}

# name: keywords of the constructor, of the call ("mask" is a shape to draw one in, "x" the input's)
CASES = {
    "rotation trick": ({}, {}),
    "straight through": ({"rotation_trick": False}, {}),
    "gradients by way of the residual": ({"quant_grad_frac": 0.3}, {}),
    "straight through and by way of the residual": ({"quant_grad_frac": 0.3, "rotation_trick": False}, {}),
    "rows": ({}, {"x": (64, 16)}),
    "projection": ({"codebook_dim": 6}, {}),
    "mask": ({}, MASKED),
    "mask, projection": ({"codebook_dim": 6}, MASKED),
    "mask keeps the input": ({"return_zeros_for_masked_padding": False}, MASKED),
    "cosine": ({"use_cosine_sim": True}, {}),
    "shared": ({"shared_codebook": True}, {}),
    "several sizes": (MIXED, {"return_all_codes": True}),
    "all codes": ({}, {"return_all_codes": True}),
    "square image": ({"accept_image_fmap": True}, {"x": (2, 16, 16, 16)}),
    "dropout": ({"quantize_dropout": True}, {}),
    "dropout by a seed": ({"quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 2}),
    "dropout in pairs": (
        {
            "quantize_dropout": True,
            "quantize_dropout_multiple_of": 2,
            "quantize_dropout_cutoff_index": 1,
            "num_quantizers": 5,
        },
        {},
    ),
    "learned": (LEARNED, {}),
    "learned, gradients by way of the residual": ({**LEARNED, "quant_grad_frac": 0.5}, {}),
    "learned, frozen": (LEARNED, {"freeze_codebook": True}),
    "learned in place": ({**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.3)}, {}),
    "DiVeQ": ({"diveq": True, "threshold_ema_dead_code": 0.01}, {}),
    "DiVeQ of every stage": ({"directional_reparam": True, "threshold_ema_dead_code": 0.01}, {}),
    "expiry": ({"threshold_ema_dead_code": 1}, {}),
    "expiry, masked": ({"threshold_ema_dead_code": 1}, MASKED),
    "expiry, shared": ({"threshold_ema_dead_code": 1, "shared_codebook": True}, {}),
    "k-means": ({"kmeans_init": True, "codebook_size": 8}, {"x": (8, 32, 16)}),
    "sampled": ({"stochastic_sample_codes": True}, {}),
    "sampled and shared": (
        {"stochastic_sample_codes": True, "shared_codebook": True, "sample_codebook_temp": 0.1},
        {},
    ),
    "sampled, temperature in the call": ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.3}),
    "implicit": ({"implicit_neural_codebook": True}, {"return_all_codes": True}),
    "implicit, another network": (
        {"implicit_neural_codebook": True, "mlp_kwargs": {"depth": 2, "dim_hidden": 8}},
        MASKED,
    ),
    "orthogonal": ({"orthogonal_reg_weight": 1.0}, {}),
}
BEAMS = {
    "beams": ({"beam_size": 3}, {}),
    "beams in the call": ({}, {"beam_size": 2}),
    "masked beams": ({"beam_size": 3}, MASKED),
    "shared beams": ({"beam_size": 2, "shared_codebook": True}, {}),
    "weighted beams": ({"beam_size": 3, "eval_beam_size": 5, "beam_score_quantizer_weights": [1.0, 0.5, 0.25]}, {}),
    "beams and dropout": ({"beam_size": 2, "quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 2}),
    "cosine beams": ({"beam_size": 3, "use_cosine_sim": True}, {}),
}
GROUPED = {
    "groups": ({}, {}),
    "groups, projection": ({"codebook_dim": 4}, {}),
    "groups, mask": ({}, MASKED),
    "groups, mask keeps the input": ({"return_zeros_for_masked_padding": False}, MASKED),
    "groups, cosine": ({"use_cosine_sim": True}, {}),
    "groups, square image": ({"accept_image_fmap": True}, {"x": (2, 16, 8, 8)}),
    "groups, all codes": ({}, {"return_all_codes": True}),
    "groups, cosine, all codes": ({"use_cosine_sim": True}, {"return_all_codes": True}),
    "groups, dropout": ({"quantize_dropout": True}, {}),
    "groups, cosine, dropout": ({"quantize_dropout": True, "use_cosine_sim": True}, {}),
    "groups, shared": ({"shared_codebook": True}, {}),
    "groups, beams": ({"beam_size": 2}, {}),
}
# 24 codes of 6 to 16 channels that rows of that number of stages use; in groups gradients pass a Linear besides.
PROJECTED = 4


def run(pair, name, options, call, steps, *, sync, kind="ResidualVQ", skip=()):
    call = dict(call)
    shape, mask = call.pop("x", SHAPE), call.pop("mask", None)
    both = pair(kind, **{**STACK, **options})
    generator = torch.Generator().manual_seed(1)
    tolerance = 32 * torch.finfo(torch.float32).eps * (PROJECTED if "projection" in name else 1)
    for seed in range(steps):
        if sync:
            both.sync()
        x = torch.randn(shape, generator=generator)
        if mask is not None:
            call["mask"] = torch.rand(mask, generator=generator) > 0.3
        both.step(x, seed, skip=skip, tolerance=tolerance, **call)
    both.sync()
    both.peer.eval(), both.ours.eval()
    call.pop("rand_quantize_dropout_fixed_seed", None)
    return both, both.peer(x, **call), both.ours(x, **call)


def compare_eval(both, theirs, mine):
    assert torch.equal(theirs[1], mine[1])
    for number in (0, 2):
        both.close("eval", theirs[number], mine[number])
    for other, own in zip(theirs[3:], mine[3:], strict=True):
        for each, part in zip(other, own, strict=True):
            both.close("all codes", each, part)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_from_the_same_state(pair, name):
    both, theirs, mine = run(pair, name, *CASES[name], steps=20, sync=True)
    if CASES[name][0].get("diveq"):  # the peer adds its noise in eval mode too; ours is what the indices decode to
        assert torch.equal(mine[0], both.ours.get_output_from_indices(mine[1]))
        return
    compare_eval(both, theirs, mine)
    if "mask" not in CASES[name][1]:
        both.close("decoded", *(m.get_output_from_indices(theirs[1]) for m in (both.peer, both.ours)))
    both.close("codes", *(m.get_codes_from_indices(theirs[1]) for m in (both.peer, both.ours)))
    for book, own in zip(both.peer.codebooks, both.ours.codebooks, strict=True):
        assert torch.equal(book, own)


@pytest.mark.parametrize(
    "name", ["rotation trick", "straight through", "mask, projection", "several sizes", "learned"]
)
def test_fifty_free_running_steps(pair, name):
    run(pair, name, *CASES[name], steps=50, sync=False)


@pytest.mark.parametrize("name", BEAMS)
def test_beams(pair, name):
    """The peer updates the first stage only; the others are updated as by their indices."""
    options, call = BEAMS[name]
    skip = ("layers",) if options.get("shared_codebook") else ("layers.1", "layers.2")
    both, theirs, mine = run(pair, name, options, call, steps=10, sync=True, skip=skip)
    compare_eval(both, theirs, mine)
    assert bool((mine[2] > 0).all())
    both.ours.train()
    other = ResidualVQ(**{**STACK, **options})
    other.load_state_dict(both.ours.state_dict())
    x = torch.randn(SHAPE)
    before = [book.clone() for book in both.ours.codebooks]
    _, indices, _ = both.ours(x, beam_size=2, rand_quantize_dropout_fixed_seed=2)
    residual = x
    if not (options.get("shared_codebook") or options.get("use_cosine_sim")):
        for stage, layer in enumerate(other.layers):
            if bool((indices[..., stage] < 0).any()):
                break
            layer.update_indices(residual, indices[..., stage])
            residual = residual - before[stage][indices[..., stage]]
        for key, value in other.state_dict().items():
            both.close(key, value, both.ours.state_dict()[key])


def test_beams_leave_less_error():
    torch.manual_seed(0)
    stack, x = ResidualVQ(dim=16, codebook_size=24, num_quantizers=4).eval(), torch.randn(SHAPE) / 8
    errors = [float((stack(x, beam_size=size)[0] - x).square().mean()) for size in (1, 4)]
    assert errors[1] < errors[0]


def test_beams_of_an_implicit_codebook():
    """Which the peer cannot search: two beams of one stage are the greedy choice, and of more leave no more error."""
    torch.manual_seed(0)
    stack = ResidualVQ(**STACK, implicit_neural_codebook=True).eval()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        indices = stack(x, beam_size=24)[1]
        assert torch.equal(stack.get_output_from_indices(indices), stack(x, beam_size=24)[0])
    # One beam that keeps all 24 codes of the first stage finds the best pair of the first two stages.
    pairs = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    pairs = torch.nn.functional.pad(pairs, (0, 1), value=-1).unsqueeze(0)
    with torch.no_grad():
        first, second, _ = stack.get_codes_from_indices(pairs)
        left = torch.cdist(x.flatten(0, 1), first[0]).square()
        rest = torch.cdist(x.flatten(0, 1), (first + second)[0]).square()
        two = ResidualVQ(**{**STACK, "num_quantizers": 2}, implicit_neural_codebook=True).eval()
        two.load_state_dict({k: v for k, v in stack.state_dict().items() if not k.startswith(("layers.2", "mlps.1"))})
        found = two(x, beam_size=24)[1].flatten(0, 1)
    assert torch.equal(found, pairs[0, (left + rest).argmin(-1), :2])


@pytest.mark.parametrize("name", GROUPED)
def test_groups(pair, name):
    options, call = GROUPED[name]
    # With beams the peer updates the first stage only.
    skip = ("rvqs.0.layers.1", "rvqs.0.layers.2", "rvqs.1.layers.1", "rvqs.1.layers.2") if "beam" in name else ()
    options = {**GROUPS, **options}
    both, theirs, mine = run(pair, name, options, call, steps=10, sync=True, kind="GroupedResidualVQ", skip=skip)
    compare_eval(both, theirs, mine)
    assert torch.equal(both.peer.codebooks, both.ours.codebooks)
    both.close("codes", *(m.get_codes_from_indices(theirs[1]) for m in (both.peer, both.ours)))
    if "mask" not in call and "accept_image_fmap" not in options:
        both.close("decoded", *(m.get_output_from_indices(theirs[1]) for m in (both.peer, both.ours)))


def test_groups_are_their_stacks():
    """One search over all groups does what each group's own does, in training too."""
    torch.manual_seed(0)
    options = {**STACK, "codebook_dim": 5, **GROUPS}
    together, apart = GroupedResidualVQ(**options), GroupedResidualVQ(**options)
    apart.load_state_dict(together.state_dict())
    x = torch.randn(SHAPE)
    rows = [x.clone().requires_grad_() for _ in range(2)]
    quantized, indices, loss = together(rows[0])
    parts = [rvq(chunk) for rvq, chunk in zip(apart.rvqs, rows[1].chunk(2, -1), strict=True)]
    (quantized.sum() + loss.sum()).backward()
    sum(part[0].sum() + part[2].sum() for part in parts).backward()
    assert torch.equal(indices, torch.stack([part[1] for part in parts]))
    torch.testing.assert_close(quantized, torch.cat([part[0] for part in parts], -1))
    torch.testing.assert_close(rows[0].grad, rows[1].grad)
    for key, value in together.state_dict().items():
        torch.testing.assert_close(value, apart.state_dict()[key])


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}])
def test_images_of_any_shape_with_projections(options):
    """Which the peer's residual stacks do not take."""
    for kind, more in ((ResidualVQ, {}), (GroupedResidualVQ, GROUPS)):
        module = kind(**STACK, **more, **options, codebook_dim=5, accept_image_fmap=True)
        x = torch.randn(2, 16, 3, 5)
        quantized, indices, loss = module(x)
        assert quantized.shape == x.shape
        assert indices.shape == (2, 2, 3, 5, 3)[not more :]
        assert loss.shape == (2, 3)[not more :]
        quantized, indices, _ = module.eval()(x)
        decoded = module.get_output_from_indices(indices)
        torch.testing.assert_close(decoded if more else decoded.movedim(-1, 1), quantized)


def test_coarse_indices_decode():
    stack, x = ResidualVQ(**STACK).eval(), torch.randn(SHAPE)
    indices = stack(x)[1]
    codes = stack.codebooks[0][indices[..., 0]] + stack.codebooks[1][indices[..., 1]]
    assert torch.equal(stack.get_output_from_indices(indices[..., :2]), codes)


def test_blocks_of_an_implicit_codebook_make_no_difference(pair, monkeypatch):
    monkeypatch.setattr(candidates, "BLOCK", 1)
    monkeypatch.setattr("fastvq.compat.vector_quantize_pytorch.implicit.BLOCK", 5 * 24 * 16 * 2)
    run(pair, "implicit", *CASES["implicit"], steps=3, sync=True)


@pytest.mark.parametrize("beam", [1, 2])
def test_no_codes_for_every_row_of_an_implicit_codebook(monkeypatch, largest_tensor, beam):
    """Where a block of codes made for rows is 2^12 entries."""
    monkeypatch.setattr("fastvq.compat.vector_quantize_pytorch.implicit.BLOCK", 2**12)
    stack = ResidualVQ(dim=8, codebook_size=64, num_quantizers=3, implicit_neural_codebook=True)
    x = torch.randn(2, 256, 8, requires_grad=True)
    with largest_tensor() as seen:
        quantized, _, loss = stack(x, beam_size=beam)
        (quantized.sum() + loss.sum()).backward()
    assert seen.largest <= 2**14 < 512 * 64


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_signatures_are_the_peers(peer, kind):
    """``freeze_codebook`` may also be None, for what the constructor says; ``stages_taken`` is ours."""
    mine, theirs = {"ResidualVQ": ResidualVQ, "GroupedResidualVQ": GroupedResidualVQ}[kind], getattr(peer, kind)
    ours, others = (inspect.signature(f).parameters for f in (mine, theirs))
    assert {n for n in others if n != "vq_kwargs"} == {n for n in ours if n != "vq_kwargs"}
    same = {n: p.default for n, p in others.items() if n != "mlp_kwargs"}
    assert same == {n: p.default for n, p in ours.items() if n != "mlp_kwargs"}
    ours, others = (inspect.signature(f.forward).parameters for f in (mine, theirs))
    assert [n for n in ours if n != "stages_taken"] == list(others)
    defaults = {n: p.default for n, p in others.items() if n != "freeze_codebook"}
    assert defaults.items() <= {n: p.default for n, p in ours.items()}.items()


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_attributes_are_the_peers(pair, kind):
    both = pair(kind, **STACK, **(GROUPS if kind == "GroupedResidualVQ" else {}))
    assert {n for n in dir(both.peer) if not n.startswith("_")} <= set(dir(both.ours))
