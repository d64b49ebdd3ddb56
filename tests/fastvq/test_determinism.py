"""The same bits over twenty runs and any number of threads: indices, sums, state and gradients."""

import hashlib

import pytest
import torch

from fastvq import CodebookRules, GroupedVQ, ResidualVQ
from fastvq import functional as F

RULES = CodebookRules(init=None, dead=None)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def digest(*tensors):
    """A hash of the bits of tensors."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().contiguous().numpy().tobytes())
    return result.hexdigest()


def quantizer_run(make):
    """One training step from the same start: everything that it computes."""
    torch.manual_seed(0)
    module = make().train()
    x = torch.randn(2, 700, module.dim, requires_grad=True)
    quantized, indices, loss = module(x)
    ((quantized * torch.randn_like(quantized)).sum() + loss).backward()
    return digest(quantized, indices, loss, x.grad, *module.state_dict().values())


def learned_run():
    """Gradients of learned codebooks, which are sums over rows."""
    torch.manual_seed(0)
    x = torch.randn(3, 1500, 24, requires_grad=True)
    codebook = torch.randn(3, 50, 24, requires_grad=True)
    indices, distances = F.nearest(x, codebook)
    codes = F.lookup(indices.unsqueeze(-1), codebook.unsqueeze(1))
    (distances.sum() + (codes * x.detach().cos()).sum()).backward()
    return digest(indices, distances, x.grad, codebook.grad)


def sums_run():
    """Sums of many rows in few codes, of which one takes half."""
    torch.manual_seed(0)
    x, indices = torch.randn(1, 20000, 33), torch.randint(-1, 40, (1, 20000))
    indices[:, ::2] = 3
    return digest(*F.segment_sum(x, indices, 40))


RUNS = {
    "groups": lambda: quantizer_run(lambda: GroupedVQ(64, 100, groups=8, rules=RULES)),
    "one codebook": lambda: quantizer_run(lambda: GroupedVQ(96, 130, groups=1, rules=RULES)),
    "stages": lambda: quantizer_run(lambda: ResidualVQ(48, 70, num_quantizers=3, rules=RULES)),
    "learned": learned_run,
    "sums": sums_run,
}


@pytest.mark.parametrize("name", RUNS)
def test_the_same_bits(name, threads):
    found = set()
    for run in range(20):
        threads((1, 2, 3, 5)[run % 4])
        found.add(RUNS[name]())
    assert len(found) == 1
