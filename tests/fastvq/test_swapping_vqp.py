"""Modules of vector-quantize-pytorch, swapped: the same outputs, losses, gradients and averages."""

import copy

import pytest
import torch

import fastvq

vqp = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")

MAKERS = {
    "plain": lambda: vqp.VectorQuantize(dim=8, codebook_size=16),
    "cosine": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True),
    "projected": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, codebook_dim=4),
    "heads": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, heads=2),
    "separate heads": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, heads=2, separate_codebook_per_head=True),
    "learned": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, learnable_codebook=True, ema_update=False),
    "straight through": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, rotation_trick=False),
    "diversity": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, codebook_diversity_loss_weight=0.1),
    "cross entropy": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, commitment_use_cross_entropy_loss=True),
    "affine": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, affine_param=True),
    "dead": lambda: vqp.VectorQuantize(dim=8, codebook_size=16, threshold_ema_dead_code=2),
    "residual": lambda: vqp.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3),
    "shared": lambda: vqp.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, shared_codebook=True),
    "implicit": lambda: vqp.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2, implicit_neural_codebook=True),
    "beam": lambda: vqp.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, beam_size=2),
    "grouped": lambda: vqp.GroupedResidualVQ(dim=8, codebook_size=16, num_quantizers=2, groups=2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_training_goes_on_as_it_did(name):
    torch.manual_seed(0)
    original = MAKERS[name]()
    with torch.no_grad():
        for key, value in original.state_dict().items():
            if key.endswith(("embed", "embed_avg")):
                value.copy_(
                    torch.nn.functional.normalize(torch.randn(value.shape), dim=-1)
                    if name == "cosine"
                    else torch.randn(value.shape)
                )
                if key.endswith("embed_avg"):
                    value.copy_(original.state_dict()[key.removesuffix("_avg")])
    swapped = copy.deepcopy(original)
    report = fastvq.swap(swapped)
    assert report.swapped
    for step in range(12):
        x = torch.randn(3, 20, 8)
        results = []
        for module in (swapped, original):
            torch.manual_seed(step)
            rows = x.clone().requires_grad_()
            out = module(rows)
            (out[0].square().sum() + out[2].sum()).backward()
            results.append((*out, rows.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for key, value in original.state_dict().items():
            torch.testing.assert_close(swapped.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    original.eval(), swapped.eval()
    for ours, theirs in zip(swapped(x), original(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert fastvq.unswap(swapped) == len(report.swapped)
    assert [type(m) for m in swapped.modules()] == [type(m) for m in original.modules()]
    for ours, theirs in zip(swapped(x), original(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_masks_and_given_indices():
    torch.manual_seed(0)
    for options in ({}, {"heads": 2}, {"heads": 2, "separate_codebook_per_head": True}):
        original = vqp.VectorQuantize(dim=8, codebook_size=16, **options)
        swapped = copy.deepcopy(original)
        fastvq.swap(swapped)
        x, mask = torch.randn(3, 20, 8), torch.rand(3, 20) < 0.6
        if "heads" in options:
            original.eval(), swapped.eval()  # there masks and heads do not go together in training
        for ours, theirs in zip(swapped(x, mask=mask), original(x, mask=mask), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for key, value in original.state_dict().items():
            torch.testing.assert_close(swapped.state_dict()[key], value, rtol=1e-4, atol=1e-5)
        if not options:
            indices = torch.randint(16, (3, 20))
            for ours, theirs in zip(swapped(x, indices=indices), original(x, indices=indices), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_scalar_quantizers_are_left():
    report = fastvq.swap(vqp.FSQ(levels=[5, 5]))
    assert report.swapped == []
    assert "no codebook to search" in str(report)
