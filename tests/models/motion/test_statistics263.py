"""Mean and standard deviations of 263 features."""

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.layout263 import HUMANML3D, KIT_ML
from fastvq.models.motion.statistics263 import evaluator_std, feature_statistics


def clips(width=263):
    draw = np.random.default_rng(3)
    return [draw.normal(2.0, np.linspace(0.1, 3, width), size=(frames, width)) for frames in (40, 7, 101)]


@pytest.mark.parametrize("layout", [HUMANML3D, KIT_ML], ids=lambda layout: layout.name)
def test_deviations_are_averaged_within_every_kind(layout):
    given = clips(layout.width)
    mean, std = feature_statistics(given, layout)
    joined = np.concatenate(given)
    np.testing.assert_allclose(mean, joined.mean(axis=0), rtol=1e-6)
    assert (mean.dtype, std.dtype) == (np.float32, np.float32)
    for columns in layout.slices.values():
        np.testing.assert_allclose(std[columns], joined.std(axis=0)[columns].mean(), rtol=1e-6)
    assert len(np.unique(std)) == 7


def test_what_does_not_vary_gets_one():
    given = clips()
    for clip in given:
        clip[:, HUMANML3D.slices["contact"]] = 1.0
    assert set(feature_statistics(given)[1][259:]) == {1.0}


def test_evaluators_weigh_root_and_contacts_up():
    std = np.ones(263)
    biased = evaluator_std(std)
    assert set(biased[[0, 1, 2, 3, 259, 260, 261, 262]]) == {0.2}
    assert set(biased[4:259]) == {1.0}
    assert set(std) == {1.0}
    with pytest.raises(UserError, match="bias must be positive"):
        evaluator_std(std, bias=0)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least one clip"):
        feature_statistics([])
    with pytest.raises(UserError, match=r"\(frames, 263\).*got \(3, 251\)"):
        feature_statistics([*clips(), np.zeros((3, 251))])
