"""Codes from logits: what temperature, top-k, top-p and guidance do, and whose random numbers they are."""

import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.sampling import Sampling, draw, guide, uniforms

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64).log()
MANY = 20_000


def shares(sampling: Sampling) -> torch.Tensor:
    """How often each code comes up over evenly spread numbers."""
    numbers = (torch.arange(MANY, dtype=torch.float64) + 0.5) / MANY
    codes = draw(LOGITS.expand(MANY, -1), numbers, sampling)
    return torch.bincount(codes, minlength=4) / MANY


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (Sampling(temperature=1e-310), [1, 0, 0, 0]),
        (Sampling(temperature=1e308), [0.25] * 4),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_k=9), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=0.01), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.99), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
    ],
    ids=str,
)
def test_codes_come_up_as_often_as_their_probability_says(sampling, expected):
    # Evenly spread numbers hit each step of the distribution to within one of them.
    assert shares(sampling).tolist() == pytest.approx(expected, abs=1.5 / MANY)


def test_what_cannot_be_is_never_drawn_not_even_by_the_largest_number():
    logits = torch.tensor([[0.1, -torch.inf, 0.3]], dtype=torch.float64)
    for number in (0.0, 0.5, 1 - 2**-53):
        assert draw(logits, torch.tensor([number], dtype=torch.float64), Sampling()).item() in (0, 2)


def test_guidance_goes_from_the_logits_without_text_through_those_with_it():
    c, u = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])
    assert guide(c, u, 0).tolist() == [1, 1]
    assert guide(c, u, 1).tolist() == [2, 1]
    assert guide(c, u, 4).tolist() == [5, 1]


def test_a_sample_has_its_own_numbers_whatever_it_is_drawn_with():
    both = uniforms(3, [0, 1], 5, 2)
    assert both.shape == (2, 5, 2)
    assert bool(((both >= 0) & (both < 1)).all())
    assert torch.equal(uniforms(3, [1], 5, 2)[0], both[1])
    assert torch.equal(uniforms(3, [1], 9, 2)[0, :5], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(uniforms(4, [0], 5, 2)[0], both[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"guidance": float("nan")},
        {"guidance": 1e39},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
    ids=str,
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
