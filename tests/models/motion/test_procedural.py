"""Procedural motions: exact bones, planted feet, ballistic flight, and captions that tell the truth."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import canonicalise, joints_to_rotations
from fastvq.models.motion.procedural import ACTIONS, ProceduralMotion, generate_clips, generate_motions
from fastvq.models.motion.procedural_scene import GRAVITY
from fastvq.models.motion.procedural_steps import smooth_below
from fastvq.models.motion.rotation import yaw_angle
from fastvq.models.motion.skeleton import (
    NUM_JOINTS,
    bone_lengths,
    forward_kinematics,
    global_rotations,
)
from fastvq.models.motion.transform import smooth_runs

BALLS = (10, 11)


@pytest.fixture(scope="module")
def motions() -> list[ProceduralMotion]:
    return generate_motions(210, seed=1)


def of(motions: list[ProceduralMotion], *actions: str) -> list[ProceduralMotion]:
    chosen = [motion for motion in motions if motion.spec.action in actions]
    assert chosen
    return chosen


def joints_of(motion: ProceduralMotion) -> np.ndarray:
    return motion.clip.joints.astype(np.float64)


def stretches(flags: np.ndarray) -> Iterator[slice]:
    """Maximal runs of true flags."""
    start = 0
    for value, group in groupby(flags.tolist()):
        length = len(list(group))
        if value:
            yield slice(start, start + length)
        start += length


def yaw_of(motion: ProceduralMotion) -> np.ndarray:
    return np.unwrap(yaw_angle(motion.clip.rotations[:, 0].astype(np.float64)))


def test_a_seed_gives_the_same_motions_and_another_gives_others():
    first, again = generate_clips(9, seed=4), generate_clips(9, seed=4)
    for a, b in zip(first, again, strict=True):
        assert (a.name, a.text, a.split) == (b.name, b.text, b.split)
        np.testing.assert_array_equal(a.joints, b.joints)
    longer = generate_clips(12, seed=4)
    np.testing.assert_array_equal(longer[8].joints, first[8].joints)
    assert [clip.text for clip in generate_clips(9, seed=5)] != [clip.text for clip in first]


def test_the_draws_are_fixed_for_good():
    """Written down once: a change of numpy or of the order of draws would show here."""
    specs = [motion.spec for motion in generate_motions(3, seed=0)]
    assert [spec.caption() for spec in specs] == [
        "an energetic person walks quickly forward and turns left",
        "a person turns quickly to the left",
        "a person runs quickly forward",
    ]
    np.testing.assert_allclose([spec.height for spec in specs], [1.918517, 1.797612, 1.694858], atol=1e-6)


def test_clips_have_what_the_rest_of_the_house_expects(motions: list[ProceduralMotion]):
    assert len({motion.clip.name for motion in motions}) == len(motions)
    for motion in motions:
        clip = motion.clip
        assert clip.fps == 30.0
        assert clip.joints.shape == (clip.frames, NUM_JOINTS, 3)
        assert clip.joints.dtype == clip.rotations.dtype == np.float32
        assert clip.rotations.shape == (clip.frames, NUM_JOINTS, 3, 3)
        assert motion.contacts.shape == (clip.frames, 2)
        assert 2.0 <= clip.seconds <= 8.0 + 1e-9
        assert np.isfinite(clip.joints).all()
        assert clip.text == motion.spec.caption()


def test_a_tenth_of_the_clips_tests_and_every_action_is_among_them(motions: list[ProceduralMotion]):
    tests = [motion for motion in motions if motion.clip.split == "test"]
    assert len(tests) == 21
    assert {motion.spec.action for motion in tests} == set(ACTIONS)
    assert {motion.clip.split for motion in motions} == {"train", "test"}


def test_held_out_captions_are_shown_in_the_test_split_only(motions: list[ProceduralMotion]):
    again = generate_motions(len(motions), seed=0, fps=5.0, held_out="captions")
    train = {motion.clip.text for motion in again if motion.clip.split == "train"}
    test = {motion.clip.text for motion in again if motion.clip.split == "test"}
    assert not train & test
    assert {motion.spec.action for motion in again if motion.clip.split == "test"} == set(ACTIONS)
    assert {motion.spec.side for motion in again if motion.clip.split == "test"} == {"left", "right", None}
    assert 0.05 < sum(motion.clip.split == "test" for motion in again) / len(again) < 0.2
    with pytest.raises(UserError, match="held_out must be clips or captions, got 'words'"):
        generate_clips(1, seed=0, held_out="words")


def test_bodies_differ_in_height(motions: list[ProceduralMotion]):
    heights = [motion.spec.height for motion in motions]
    assert min(heights) < 1.6
    assert max(heights) > 1.9
    for motion in motions:
        # The head joint lies about 0.17 m below the crown of a body of 1.75 m.
        top = joints_of(motion)[..., 15, 1].max() - joints_of(motion)[..., 1].min()
        assert motion.spec.action == "jump" or 0.75 < top / motion.spec.height < 1.0


def test_bones_keep_their_lengths(motions: list[ProceduralMotion]):
    for motion in motions:
        lengths = bone_lengths(joints_of(motion))
        assert np.ptp(lengths, axis=0).max() < 1e-5, motion.clip.name


def test_rotations_and_offsets_pose_the_same_joints(motions: list[ProceduralMotion]):
    for motion in motions:
        joints = joints_of(motion)
        posed = forward_kinematics(motion.offsets, motion.clip.rotations.astype(np.float64), joints[:, 0])
        np.testing.assert_allclose(posed, joints, atol=1e-5)


def test_feet_that_stand_do_not_slide(motions: list[ProceduralMotion]):
    for motion in motions:
        joints = joints_of(motion)
        for side, ball in enumerate(BALLS):
            for stand in stretches(motion.contacts[:, side]):
                path = joints[stand, ball]
                assert np.linalg.norm(path - path[0], axis=-1).max() < 1e-4, motion.clip.name


def test_low_slow_feet_hardly_slide_whatever_the_contacts_say(motions: list[ProceduralMotion]):
    """The same by looking at the motion alone: balls within 5 mm of the floor in both frames."""
    for motion in motions:
        balls = joints_of(motion)[:, BALLS]
        low = (balls[1:, :, 1] < 0.005) & (balls[:-1, :, 1] < 0.005)
        moved = np.linalg.norm(np.diff(balls[..., [0, 2]], axis=0), axis=-1)
        assert moved[low].max() < 0.01, motion.clip.name


def test_nothing_goes_through_the_floor(motions: list[ProceduralMotion]):
    for motion in motions:
        lowest = joints_of(motion)[..., 1].min()
        assert abs(lowest) < 1e-5, motion.clip.name


def test_knees_bend_backward_and_elbows_forward_only(motions: list[ProceduralMotion]):
    for motion in motions:
        joints, turned = joints_of(motion), global_rotations(motion.clip.rotations.astype(np.float64))
        for upper, middle, lower, hinge in (
            (1, 4, 7, (1.0, 0.0, 0.0)),
            (2, 5, 8, (1.0, 0.0, 0.0)),
            (16, 18, 20, (0.0, -1.0, 0.0)),
            (17, 19, 21, (0.0, 1.0, 0.0)),
        ):
            first, second = joints[:, middle] - joints[:, upper], joints[:, lower] - joints[:, middle]
            # Positive where the second bone is turned about the limb's own hinge the way it bends.
            axis = turned[:, upper] @ np.asarray(hinge)
            bend = np.sum(np.cross(first, second) * axis, axis=-1)
            assert bend.min() > -1e-6, motion.clip.name
        for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
            # The knee lies on the side of the line from hip to ankle to which the pelvis faces.
            ahead = turned[:, 0, :, 2] + 0.0
            middle = 0.5 * (joints[:, hip] + joints[:, ankle])
            line = joints[:, ankle] - joints[:, hip]
            ahead -= np.sum(ahead * line, axis=-1, keepdims=True) / np.sum(line**2, -1, keepdims=True) * line
            assert np.sum((joints[:, knee] - middle) * ahead, axis=-1).min() > -0.02, motion.clip.name


def test_no_joint_moves_faster_than_people_do(motions: list[ProceduralMotion]):
    for motion in motions:
        assert smooth_runs(motion.clip.joints, 30, max_joint_speed=12.0).faults == 0, motion.clip.name


def test_motions_begin_at_the_origin_facing_ahead(motions: list[ProceduralMotion]):
    for motion in motions:
        moved, _ = canonicalise(motion.clip.joints, motion.clip.rotations)
        if motion.spec.action not in ("walk", "run"):
            assert np.abs(moved - joints_of(motion)).max() < 0.15, motion.clip.name


def test_walks_go_where_they_say_as_fast_as_they_say(motions: list[ProceduralMotion]):
    speeds: dict[tuple[str, str], list[float]] = {}
    for motion in of(motions, "walk"):
        step = np.diff(joints_of(motion)[:, 0], axis=0)[:, [0, 2]] * 30
        yaw = yaw_of(motion)[:-1]
        ahead = step[:, 0] * np.sin(yaw) + step[:, 1] * np.cos(yaw)
        left = step[:, 0] * np.cos(yaw) - step[:, 1] * np.sin(yaw)
        direction = motion.spec.direction
        along = {"forward": ahead, "backward": -ahead, "left": left, "right": -left}[direction]
        across = left if direction in ("forward", "backward") else ahead
        assert along.mean() > 3 * abs(across.mean()), motion.clip.text
        kind = "sideways" if direction in ("left", "right") else direction
        speeds.setdefault((kind, motion.spec.speed), []).append(float(np.percentile(along, 70)))
        assert motion.contacts.any(axis=1).all(), "walking has no flight"
    for slow, fast in (("slow", "normal"), ("normal", "fast")):
        for kind in ("forward", "backward", "sideways"):
            if (kind, slow) in speeds and (kind, fast) in speeds:
                assert max(speeds[kind, slow]) < min(speeds[kind, fast]), (kind, slow, fast)


def test_turns_go_to_the_side_and_as_far_as_they_say(motions: list[ProceduralMotion]):
    turning = [m for m in of(motions, "walk", "run", "turn") if m.spec.side]
    for motion in turning:
        yaw = yaw_of(motion)
        turned = np.degrees(yaw[-1] - yaw[0])
        sign = 1 if motion.spec.side == "left" else -1
        # The hips swing by up to 20 degrees around the path that the feet follow.
        assert abs(sign * turned - motion.spec.degrees) < 40, motion.clip.text
        assert sign * turned > 20
    for motion in of(motions, "walk", "run"):
        if not motion.spec.side:
            assert np.ptp(yaw_of(motion)) < np.radians(45), motion.clip.text
    assert len(turning) > 40


def test_turning_on_the_spot_stays_on_the_spot(motions: list[ProceduralMotion]):
    for motion in of(motions, "turn"):
        assert np.linalg.norm(joints_of(motion)[:, 0, [0, 2]], axis=-1).max() < 0.15


def test_runners_fly_and_fall_freely(motions: list[ProceduralMotion]):
    for motion in of(motions, "run"):
        flying = ~motion.contacts.any(axis=1)
        assert 0.2 < flying.mean() < 0.5, motion.clip.text
        speed = np.linalg.norm(np.diff(joints_of(motion)[:, 0, [0, 2]], axis=0), axis=-1) * 30
        assert 1.8 < speed.mean() < 4.2
        assert_ballistic(joints_of(motion)[:, 0, 1], flying)


def test_jumpers_leave_the_floor_as_often_as_they_say_and_fall_freely(motions: list[ProceduralMotion]):
    heights: dict[str, list[float]] = {"slow": [], "normal": [], "fast": []}
    for motion in of(motions, "jump"):
        joints, flying = joints_of(motion), ~motion.contacts.any(axis=1)
        flights = list(stretches(flying))
        assert len(flights) == motion.spec.count, motion.clip.text
        assert_ballistic(joints[:, 0, 1], flying)
        rise = [joints[air, 0, 1].max() - joints[air.start, 0, 1] for air in flights]
        heights[motion.spec.speed] += rise
        carried = joints[-1, 0, 2] - joints[0, 0, 2]
        assert (carried > 0.2 * motion.spec.count) if motion.spec.direction == "forward" else abs(carried) < 0.05
    assert max(heights["slow"]) < min(heights["normal"])
    assert max(heights["normal"]) < min(heights["fast"])


def assert_ballistic(height: np.ndarray, flying: np.ndarray) -> None:
    """Second differences of the pelvis' height are gravity's wherever three frames lie in one flight."""
    inner = flying[:-2] & flying[1:-1] & flying[2:]
    fall = np.diff(height, 2)[inner] * 30**2
    # float32 heights below 2 m: three roundings of 1e-7 m, times 900.
    np.testing.assert_allclose(fall, -GRAVITY, atol=4e-4)


def test_hands_reach_where_they_say(motions: list[ProceduralMotion]):
    for motion in of(motions, "reach"):
        joints, turned = joints_of(motion), global_rotations(motion.clip.rotations.astype(np.float64))
        wrist, other, shoulder = (20, 21, 16) if motion.spec.side == "left" else (21, 20, 17)
        local = np.einsum("tji,tj->ti", turned[:, 0], joints[:, wrist] - joints[:, shoulder])
        scale = motion.spec.height / 1.75
        direction = motion.spec.direction
        if direction == "up":
            assert joints[:, wrist, 1].max() > joints[:, 15, 1].max() + 0.1 * scale
        elif direction == "forward":
            assert local[:, 2].max() > 0.35 * scale
        elif direction == "side":
            assert (local[:, 0] * (1 if motion.spec.side == "left" else -1)).max() > 0.35 * scale
        else:
            assert joints[:, wrist, 1].min() < 0.35 * scale
        path = [np.ptp(joints[:, hand], axis=0).sum() for hand in (wrist, other)]
        assert direction == "down" or path[0] > 1.5 * path[1], motion.clip.text


def test_the_waving_hand_is_up_and_moves_at_its_speed(motions: list[ProceduralMotion]):
    beats: dict[str, list[float]] = {"slow": [], "normal": [], "fast": []}
    for motion in of(motions, "wave"):
        joints = joints_of(motion)
        wrist, other = (20, 21) if motion.spec.side == "left" else (21, 20)
        middle = slice(len(joints) // 3, 2 * len(joints) // 3)
        assert joints[middle, wrist, 1].min() > joints[middle, 9, 1].max(), motion.clip.text
        assert joints[:, other, 1].max() < joints[:, 9, 1].min(), motion.clip.text
        # Turning points of the hand's sideways way, per second.
        side = np.diff(joints[middle, wrist, 0] - joints[middle, 9, 0])
        turns = np.sum(side[1:] * side[:-1] < 0)
        beats[motion.spec.speed].append(turns / (len(side) / 30) / 2)
    assert np.mean(beats["slow"]) < np.mean(beats["normal"]) < np.mean(beats["fast"])


def test_squats_go_down_as_often_as_they_say_on_flat_feet(motions: list[ProceduralMotion]):
    for motion in of(motions, "squat"):
        joints = joints_of(motion)
        height = joints[:, 0, 1]
        low = height < 0.5 * (height.min() + height.max())
        assert len(list(stretches(low))) == motion.spec.count, motion.clip.text
        assert np.ptp(height) > 0.2
        assert motion.contacts.all()
        ankles = joints[:, (7, 8), 1]
        assert np.ptp(ankles) < 1e-4


def test_captions_name_style_count_and_side():
    base = generate_motions(1, seed=0)[0].spec
    spec = replace(base, action="jump", style="energetic", speed="fast", direction="up", count=3)
    assert spec.caption() == "an energetic person jumps powerfully up three times"
    spec = replace(base, action="walk", style="neutral", speed="fast", direction="forward", side="left", degrees=90.0)
    assert spec.caption() == "a person walks quickly forward and turns left"
    spec = replace(base, action="turn", style="tired", speed="normal", side="right", degrees=180.0, count=1)
    assert spec.caption() == "a tired person turns around to the right"


def test_every_caption_is_a_plain_sentence(motions: list[ProceduralMotion]):
    for motion in motions:
        assert re.fullmatch(r"an? [a-z ]+", motion.clip.text)
        assert f" {motion.spec.action}" in motion.clip.text
        assert "  " not in motion.clip.text


def test_inferred_rotations_are_finite_and_steady(motions: list[ProceduralMotion]):
    """No joint flips by inverse kinematics: arms overhead and deep squats included."""
    for motion in motions[:70]:
        rotations = joints_to_rotations(motion.clip.joints)
        step = np.swapaxes(rotations[:-1], -1, -2) @ rotations[1:]
        angle = np.arccos(np.clip((np.trace(step, axis1=-2, axis2=-1) - 1) / 2, -1, 1))
        assert angle.max() < np.radians(45), motion.clip.name


def test_other_frame_rates_show_the_same_motion():
    for slow, fast in zip(generate_clips(7, seed=3, fps=20), generate_clips(7, seed=3, fps=60), strict=True):
        assert (slow.fps, fast.fps) == (20, 60)
        assert slow.text == fast.text
        # The limit on the pelvis' height is smoothed over whole frames, so the rates agree but for it.
        difference = np.abs(fast.joints[::3][: slow.frames] - slow.joints[: len(fast.joints[::3])])
        assert difference.max() < 0.06


def test_mistakes_are_named():
    assert generate_clips(0, seed=0) == []
    with pytest.raises(UserError, match="count and seed of procedural motions must be 0 or more, got -1 and 0"):
        generate_clips(-1, seed=0)
    with pytest.raises(UserError, match="got 1 and -3"):
        generate_clips(1, seed=-3)
    with pytest.raises(UserError, match="at least 5 frames per second, got 1"):
        generate_clips(1, seed=0, fps=1)


def test_smoothing_from_below_never_exceeds_the_curve():
    values = np.random.default_rng(0).normal(size=200)
    smooth = smooth_below(values, 5)
    assert (smooth <= values + 1e-12).all()
    assert np.abs(np.diff(smooth)).max() < np.abs(np.diff(values)).max() / 2
