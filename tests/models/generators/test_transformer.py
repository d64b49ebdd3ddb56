"""Transformer blocks with a cache: the same numbers as without one."""

import pytest
import torch
from torch import nn

from fastvq.models.generators.transformer import Cache, Transformer

# A few hundred roundings of float64, each at most 2^-53 of values near 1.
CLOSE = 1e-13


@pytest.fixture(name="model")
def model_fixture() -> Transformer:
    model = Transformer(24, 3, 4, dropout=0.1).double().eval()
    for parameter in model.parameters():  # so that norms and biases take part
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 1, 3), (9,)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_going_on_from_a_cache_is_the_same_as_all_at_once(model, chunks, masked):
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    mask = torch.ones(3, 9, dtype=torch.bool)
    if masked:
        mask[0, 1:3] = mask[2, 2:4] = False
    whole = model(x, mask if masked else None)
    cache, found, start = Cache(3, 11, model), [], 0
    for count in chunks if not masked else (4, 1, 1, 3):
        first = mask[:, :count] if masked and start == 0 else None
        found.append(model(x[:, start : start + count], first, cache=cache))
        start += count
    torch.testing.assert_close(torch.cat(found, dim=1)[mask], whole[mask], rtol=CLOSE, atol=CLOSE)
    with torch.no_grad():  # torch's fused path
        torch.testing.assert_close(model(x, mask if masked else None)[mask], whole[mask], rtol=CLOSE, atol=CLOSE)


def test_a_causal_model_sees_nothing_that_comes_later(model):
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    other = x.clone()
    other[:, 4:, 0] += 1
    torch.testing.assert_close(model(x)[:, :4], model(other)[:, :4], rtol=CLOSE, atol=CLOSE)
    assert not torch.allclose(model(x)[:, 4:], model(other)[:, 4:])


def test_a_model_that_is_not_causal_sees_all_that_is_real():
    model = Transformer(24, 2, 4, causal=False).double().eval()
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False, False]])
    later, hidden = x.clone(), x.clone()
    later[:, 3, 0] += 1  # one channel: adding to all would vanish in the LayerNorm
    hidden[:, 5, 0] += 1
    assert not torch.allclose(model(x, mask)[:, :3], model(later, mask)[:, :3])
    torch.testing.assert_close(model(hidden, mask)[:, :4], model(x, mask)[:, :4], rtol=CLOSE, atol=CLOSE)
