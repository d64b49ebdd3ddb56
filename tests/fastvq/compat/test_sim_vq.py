"""SimVQ and ResidualSimVQ beside vector-quantize-pytorch's."""

import inspect

import pytest
import torch
from torch import nn

from fastvq.compat.vector_quantize_pytorch import ResidualSimVQ, SimVQ

PLAIN = {"dim": 16, "codebook_size": 24}
STACK = {**PLAIN, "num_quantizers": 3}
MAP = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
IMAGE = {"x": (4, 16, 5, 3)}

# name: class, keywords of the constructor, of the call ("x" is the input's shape)
CASES = {
    "rotation trick": ("SimVQ", {}, {}),
    "straight through": ("SimVQ", {"rotation_trick": False}, {}),
    "channels first": ("SimVQ", {"channel_first": True, "frozen_codebook_dim": 8}, IMAGE),
    "weights": ("SimVQ", {"commitment_weight": 0.5, "input_to_quantize_commit_loss_weight": 0.1}, {}),
    "another map": (
        "SimVQ",
        {"codebook_transform": MAP},
        {},
    ),
    "another start": ("SimVQ", {"init_fn": lambda codes: codes * 3}, {"x": (8, 16)}),
    "stack": ("ResidualSimVQ", {}, {"return_all_codes": True}),
    "stack, channels first": (
        "ResidualSimVQ",
        {"channel_first": True},
        {**IMAGE, "return_all_codes": True},
    ),
    "stack, straight through": ("ResidualSimVQ", {"rotation_trick": False, "frozen_codebook_dim": 8}, {}),
    "stack, dropout": ("ResidualSimVQ", {"quantize_dropout": True}, {}),
    "stack, dropout by a seed": (
        "ResidualSimVQ",
        {"quantize_dropout": True, "num_quantizers": 5, "quantize_dropout_multiple_of": 2},
        {"rand_quantize_dropout_fixed_seed": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fifty_free_running_steps(pair, name):
    kind, options, call = CASES[name]
    call = dict(call)
    shape = call.pop("x", (4, 16, 16))
    both = pair(kind, **{**(STACK if kind == "ResidualSimVQ" else PLAIN), **options})
    generator = torch.Generator().manual_seed(1)
    for seed in range(50):
        x = torch.randn(shape, generator=generator) / 4
        both.step(x, seed, **call)
    both.peer.eval(), both.ours.eval()
    call.pop("rand_quantize_dropout_fixed_seed", None)
    theirs, mine = both.peer(x, **call), both.ours(x, **call)
    assert torch.equal(theirs[1], mine[1])
    for number in (0, *range(2, len(theirs))):
        both.close("eval", theirs[number], mine[number])
    both.sync()
    decode = "indices_to_codes" if kind == "SimVQ" else "get_output_from_indices"
    if len(shape) > 2:
        both.close("decoded", getattr(both.peer, decode)(theirs[1]), getattr(both.ours, decode)(theirs[1]))
        both.close("decoded", mine[0], getattr(both.ours, decode)(theirs[1]))


@pytest.mark.parametrize("kind", ["SimVQ", "ResidualSimVQ"])
def test_signatures_are_the_peers(peer, kind):
    """The peer's ``init_fn`` is a function that does nothing where ours is None."""
    mine, theirs = {"SimVQ": SimVQ, "ResidualSimVQ": ResidualSimVQ}[kind], getattr(peer, kind)
    for ours, others in ((mine, theirs), (mine.forward, theirs.forward)):
        own, other = (inspect.signature(f).parameters for f in (ours, others))
        assert list(own) == list(other)
        assert {n: p.default for n, p in own.items() if n != "init_fn"} == {
            n: p.default for n, p in other.items() if n != "init_fn"
        }


def test_a_row_that_is_not_finite():
    """It gets NaN and index -1, and spoils neither the loss nor the gradients."""
    for module in (SimVQ(**PLAIN), ResidualSimVQ(**STACK)):
        x = torch.randn(4, 5, 16)
        x[1, 2, 3] = float("inf")
        x.requires_grad_()
        quantized, indices, loss = module(x)
        (quantized[0].sum() + loss.sum()).backward()
        assert bool(quantized[1, 2].isnan().all())
        assert bool(indices[1, 2].eq(-1).all())
        assert int(indices.eq(-1).sum()) == indices[0, 0].numel()
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters())
        assert bool(x.grad[0].isfinite().all())


def test_codes_come_from_the_map():
    module = SimVQ(**PLAIN)
    assert torch.equal(module.codebook, module.code_transform(module.frozen_codebook))
    stack = ResidualSimVQ(**STACK)
    assert stack.codebooks.shape == (3, 24, 16)
    assert (stack.codebook_size, stack.codebook_dim) == (24, 16)
    coarse = stack.get_output_from_indices(torch.zeros(2, 5, 1, dtype=torch.int64))
    assert torch.equal(coarse, stack.layers[0].codebook[0].expand(2, 5, 16))
