"""Units of files that do not say theirs, told from the leg."""

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.features263 import joints_from_ric, joints_to_features
from fastvq.models.motion.layout263 import HUMANML3D, KIT_ML, KIT_UNIT
from fastvq.models.motion.leg_units import leg_length, metres_per_unit, scale_features


@pytest.mark.parametrize(
    ("leg", "unit", "words"),
    [
        (0.78, 1.0, ""),
        (480.0, KIT_UNIT, r"taken as millimetres of KIT-ML's model \(0\.0015625 m\) and converted to 0\.75 m"),
        (780.0, 0.001, r"the leg measures 780 units, taken as millimetres \(0\.001 m\) and converted to 0\.78 m"),
        (78.0, 0.01, "taken as centimetres"),
    ],
)
def test_the_unit_is_told_and_named(leg, unit, words):
    found, note = metres_per_unit([leg, leg, 1e6], KIT_ML)
    assert found == unit
    if words:
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(note)
    else:
        assert note == ""


@pytest.mark.parametrize("leg", [0.0, 0.2, 3.0, 30.0, 5000.0])
def test_what_is_no_leg_is_refused_with_the_remedy(leg):
    with pytest.raises(UserError, match=r"is no leg in metres.*: give the scale \(--scale\) in metres per unit"):
        metres_per_unit([leg], HUMANML3D)
    assert metres_per_unit([leg], HUMANML3D, scale=0.3) == (0.3, "")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e300, 1e4, 1e-7])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(UserError, match="scale must be a positive number of metres per unit, 1e-06 to 1000, got "):
        metres_per_unit([1.0], KIT_ML, scale=scale)


def test_the_leg_is_thigh_and_shank():
    joints = np.zeros((3, 22, 3))
    joints[:, 5, 1], joints[:, 8, 1] = -0.4, -0.75
    assert leg_length(joints, HUMANML3D) == pytest.approx(0.75)


def test_scaled_features_are_those_of_the_scaled_body():
    joints = np.cumsum(np.random.default_rng(0).normal(size=(20, 21, 3)), axis=0)
    features = joints_to_features(joints, KIT_ML).astype(np.float64)
    scaled = scale_features(features, 640.0, KIT_ML)
    expected = joints_to_features(joints * 640, KIT_ML)
    # Only contacts depend on the unit.
    np.testing.assert_allclose(scaled[:, :-4], expected[:, :-4], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scaled[:, -4:], features[:, -4:])
    np.testing.assert_allclose(
        joints_from_ric(scaled, KIT_ML), 640 * joints_from_ric(features, KIT_ML), rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("given", [np.ones((2, 251), dtype=np.int64), [[1] * 251] * 2])
def test_integers_are_scaled_as_float32(given):
    scaled = scale_features(given, 0.5, KIT_ML)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled[:, :4], [[1, 0.5, 0.5, 0.5]] * 2)
    np.testing.assert_array_equal(given, np.ones((2, 251)))
