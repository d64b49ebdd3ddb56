"""What is read off motions against what the procedural generator was asked to show."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from fastvq.models.errors import UserError
from fastvq.models.evaluation.attributes import Attributes, asked, attribute_accuracy, interval, read_attributes
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.mirror import mirror
from fastvq.models.motion.pose_codes.sentences import standing
from fastvq.models.motion.procedural import MotionSpec, ProceduralMotion, generate_motions
from fastvq.models.motion.rotation import yaw_matrix

FPS = 20.0


@pytest.fixture(scope="module")
def motions() -> list[ProceduralMotion]:
    return generate_motions(1000, seed=11, fps=FPS)


def through_features(joints: np.ndarray) -> np.ndarray:
    form = format_of(263)
    return form.to_joints(form._features(joints))


def test_captions_say_what_their_specs_do(motions: list[ProceduralMotion]) -> None:
    for motion in motions:
        spec: MotionSpec = motion.spec
        named = None if spec.speed == "normal" else spec.speed
        assert asked(motion.clip.text) == Attributes(spec.action, spec.direction, spec.side, named)
    assert asked(" A person  WALKS forward. ") == Attributes("walk", "forward")


@pytest.mark.parametrize(
    "text", ["", "a person", "a person dances", "walk forward", "a person walks forward happily"]
)
def test_other_sentences_ask_for_nothing_that_is_judged(text: str) -> None:
    assert asked(text) is None


@pytest.mark.parametrize("form", ["joints", "263 features"])
def test_the_generator_s_own_motions_are_read_right(motions: list[ProceduralMotion], form: str) -> None:
    joints = [motion.clip.joints for motion in motions]
    if form != "joints":
        joints = [through_features(each) for each in joints]
    found = attribute_accuracy([motion.clip.text for motion in motions], joints, FPS)
    assert found["count"] == 1000
    assert min(found[f"{name}_count"] for name in ("direction", "side", "speed")) > 400
    for name in ("action", "direction", "side"):
        assert found[name] >= 0.999, name
    assert found["speed"] >= 0.99
    # Without being told the action, and with the paces that captions leave unsaid.
    for motion, each in zip(motions[:300], joints, strict=False):
        shown = read_attributes(each, FPS)
        assert (shown.action, shown.direction) == (motion.spec.action, motion.spec.direction)


def test_shaking_joints_change_little(motions: list[ProceduralMotion]) -> None:
    draw = np.random.default_rng(0)
    shaken = []
    for motion in motions[:200]:
        noise = draw.normal(size=motion.clip.joints.shape)
        noise = gaussian_filter1d(noise, 2.0, axis=0)
        shaken.append(motion.clip.joints + 0.02 * noise / noise.std())
    found = attribute_accuracy([motion.clip.text for motion in motions[:200]], shaken, FPS)
    assert min(found[name] for name in ("action", "direction", "side")) >= 0.98


def test_the_mirror_image_goes_the_other_way_and_the_world_does_not_matter(motions: list[ProceduralMotion]) -> None:
    other = {"left": "right", "right": "left"}
    turn = yaw_matrix(np.array(2.1))
    for motion in motions[:70]:
        joints = motion.clip.joints
        shown = read_attributes(joints, FPS)
        expected = dataclasses.replace(
            shown,
            side=other.get(shown.side or "", shown.side),
            direction=other.get(shown.direction or "", shown.direction),
        )
        assert read_attributes(mirror(joints), FPS) == expected
        moved = joints @ turn.T + np.array([3.0, 0.4, -2.0])
        assert read_attributes(moved, FPS) == shown


def test_a_body_that_stands_shows_nothing() -> None:
    still = np.repeat(standing()[None], 60, axis=0)
    assert read_attributes(still, FPS) == Attributes()
    for action in ("walk", "turn", "run", "jump", "reach", "wave", "squat"):
        assert read_attributes(still, FPS, action) == Attributes()


def test_a_wrong_motion_counts_as_wrong(motions: list[ProceduralMotion]) -> None:
    """Every motion beside the caption of the next: actions take turns, so none fits."""
    captions = [motion.clip.text for motion in motions[1:200]]
    found = attribute_accuracy(captions, [motion.clip.joints for motion in motions[:199]], FPS)
    assert found["action"] == 0.0
    assert found["all"] == 0.0
    assert attribute_accuracy(["a person dances"], [motions[0].clip.joints], FPS) == {"count": 0, "captions": 0}


def test_a_motion_too_short_to_read_does_nothing_that_was_asked(motions: list[ProceduralMotion]) -> None:
    walk = next(motion.clip for motion in motions if "walks" in motion.clip.text)
    found = attribute_accuracy([walk.text] * 2, [walk.joints, walk.joints[:2]], FPS)
    assert found["action"] == 0.5


def test_intervals_have_a_width_at_both_ends() -> None:
    # Figures of Wilson's formula, as statsmodels' proportion_confint gives them.
    assert interval([True] * 44) == pytest.approx((0.9197, 1.0), abs=1e-3)
    assert interval([False] * 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert interval([True] * 30 + [False] * 70) == pytest.approx((0.2189, 0.3959), abs=1e-3)


@pytest.mark.parametrize(
    ("joints", "fps", "action", "complaint"),
    [
        (np.zeros((3, 22, 3)), 20.0, None, "4 frames at least, got 3"),
        (np.zeros((9, 21, 3)), 20.0, None, "SMPL's body joints, got shape"),
        (np.full((9, 22, 3), np.nan), 20.0, None, "NaN or infinity"),
        (np.zeros((9, 22, 3)), 0.0, None, "fps must be above 0, got 0"),
        (np.zeros((9, 22, 3)), 20.0, "dance", "an action is one of walk"),
    ],
)
def test_what_cannot_be_read_is_refused(joints: np.ndarray, fps: float, action: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_attributes(joints, fps, action)
