"""LFQ's entropies: equal to those of the table of all rows and codes, which is never made."""

import pytest
import torch
from torch.nn import functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq import LFQ, CodeEntropy, ResidualLFQ, bit_entropy


class Largest(TorchDispatchMode):
    """Notes the most elements that a tensor made inside has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def dense(z, codes, temperature, diversity):
    """The loss by its definition: the softmax of all distances, in float64."""
    prob = (-(z[:, None] - codes[None]).square().sum(-1) / temperature).softmax(-1)
    mean = prob.mean(0)
    per_row = -torch.xlogy(prob, prob.clamp_min(1e-300)).sum(-1).mean()
    return per_row - diversity * -torch.xlogy(mean, mean.clamp_min(1e-300)).sum()


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.01, 3.0])
def test_entropy_by_its_definition(bits, spherical, temperature):
    torch.manual_seed(0)
    entropy = CodeEntropy(weight=0.7, diversity=1.3, temperature=temperature)
    lfq = LFQ(bits, 2**bits, entropy=entropy, spherical=spherical)
    x = torch.randn(60, bits, dtype=torch.float64, requires_grad=True)
    loss = lfq(x).loss
    z = nnf.normalize(x, dim=-1) if spherical else x
    codes = lfq.decode(torch.arange(2**bits)).double()
    if spherical:
        codes = codes.sign() / bits**0.5  # decode is float32
    expected = 0.7 * dense(z, codes, temperature, 1.3)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*torch.autograd.grad(loss, x), *torch.autograd.grad(expected, x))


def test_groups_bound_the_entropy_from_above():
    torch.manual_seed(0)
    x = torch.randn(300, 12)
    losses = [LFQ(12, 2**12, entropy=CodeEntropy(weight=1.0, groups=g))(x).loss for g in (1, 2, 3, 12)]
    assert losses == sorted(losses, reverse=True)  # more entropy, less loss
    z = 0.1 * torch.randn(1, 12)  # of one row the mean is a product, and the groups' sum exact
    one = [LFQ(12, 2**12, entropy=CodeEntropy(weight=1.0, groups=g))(z).loss for g in (1, 3)]
    torch.testing.assert_close(one[0], one[1])


def test_no_table_of_rows_by_codes():
    """1,000 rows and 2^16 codes: the table would have 65 million entries."""
    torch.manual_seed(0)
    lfq = LFQ(16, 2**16, commitment_weight=0.25)
    x = torch.randn(1000, 16, requires_grad=True)
    with Largest() as largest:
        out = lfq(x)
        (out.loss + out.quantized.sum()).backward()
    assert largest.numel <= 1000 * 2**8


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_entropies_of_any_number_of_rows(rows):
    logits = torch.randn(rows, 5, dtype=torch.float64)
    mean = bit_entropy.mean_probabilities(logits, torch.ones(rows, dtype=torch.bool))
    assert mean.shape == (32,)
    torch.testing.assert_close(mean.sum(), torch.tensor(float(rows > 0), dtype=torch.float64))
    assert bit_entropy.conditional_entropy(logits).shape == (rows,)


def test_certain_bits_have_no_entropy_and_even_ones_log_two():
    logits = torch.tensor([[0.0, 0.0], [400.0, -400.0], [1e30, 0.0]], requires_grad=True)
    found = bit_entropy.conditional_entropy(logits)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 1.0]) * torch.tensor(2.0).log())
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert (grad == 0).all()
    torch.autograd.gradcheck(
        bit_entropy.conditional_entropy, torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    )
    torch.autograd.gradcheck(
        bit_entropy.mean_probabilities, torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    )


def test_commitment_pulls_towards_the_signs():
    x = torch.tensor([[0.5, -2.0]], requires_grad=True)
    lfq = LFQ(2, 4, entropy=CodeEntropy(weight=0.0), commitment_weight=3.0)
    out = lfq(x)
    torch.testing.assert_close(out.loss, torch.tensor(3.0 * (0.25 + 1.0) / 2))
    (grad,) = torch.autograd.grad(out.loss, x)
    torch.testing.assert_close(grad, torch.tensor([[-1.5, -3.0]]))
    assert out.indices.item() == 2  # the first channel is the most significant bit


def test_residual_codes_halve():
    x = torch.tensor([[1.3, -0.2]])
    out = ResidualLFQ(2, 4, num_quantizers=3)(x)
    assert out.quantized.tolist() == [[1.25, -0.25]]
    assert out.indices.tolist() == [[2, 3, 1]]


def test_training_spreads_the_codes():
    """Rows that all start on one code come to use most of them."""
    torch.manual_seed(0)
    entropy = CodeEntropy(weight=1.0, temperature=1.0, diversity=2.0)
    lfq = LFQ(8, 16, entropy=entropy)
    with torch.no_grad():
        lfq.project_in.bias.fill_(3.0)
    x = torch.randn(256, 8)
    assert lfq.encode(x).unique().numel() < 4
    optimizer = torch.optim.Adam(lfq.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        lfq(x).loss.backward()
        optimizer.step()
    assert lfq.encode(x).unique().numel() >= 12
