"""Parsing against the formulas, one value at a time, and how it treats headings, noise and bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import joints_to_rotations
from fastvq.models.motion.pose_codes import CATEGORIES, CATEGORY_SLICES, CODE_NAMES, PoseParser, code_named, measure
from fastvq.models.motion.rotation import yaw_angle, yaw_matrix
from fastvq.models.motion.skeleton import JOINT_NAMES


def points_of(joints: np.ndarray) -> dict[str, np.ndarray]:
    points = dict(zip(JOINT_NAMES, np.float64(joints), strict=True))
    for side in ("left", "right"):
        wrist, elbow = points[f"{side}_wrist"], points[f"{side}_elbow"]
        points[f"{side}_knuckle"] = wrist + 0.1367 * (wrist - elbow) / math.dist(wrist, elbow)
        points[f"{side}_hand"] = 0.5 * (wrist + points[f"{side}_knuckle"])
    points["torso"] = (points["pelvis"] + points["neck"] + points["spine3"]) / 3
    return points


def values_of(joints: np.ndarray, *, compat: bool) -> list[float]:
    """The 70 values of one frame, straight from the published formulas."""
    turn = np.diag([-1.0, 1.0, -1.0]) if compat else yaw_matrix(-yaw_angle(joints_to_rotations(joints[None])[0, 0]))
    points = {name: turn @ place for name, place in points_of(joints).items()}
    lowest = min(place[1] for place in points.values())
    values = []
    for category in CATEGORIES:
        places = [points[name] for name in category.points]
        kind = category.kind.name
        if kind == "angle":
            one, other = places[0] - places[1], places[2] - places[1]
            # Half-angle form: no acos.
            one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
            values.append(2 * math.degrees(math.atan2(np.linalg.norm(one - other), np.linalg.norm(one + other))))
        elif kind == "distance":
            values.append(math.dist(*places))
        elif kind == "slope":
            x, y, z = places[1] - places[0]
            values.append(math.degrees(math.atan2(math.hypot(x, z), abs(y))))
        elif kind == "ground":
            values.append(places[0][1] - lowest)
        else:
            axis = ("sideways", "height", "depth").index(kind)
            values.append(places[0][axis] - places[1][axis])
    return values


def random_bodies(stand, frames: int) -> np.ndarray:
    """Bodies with displaced joints that stand, lean and lie, facing anywhere."""
    rng = np.random.default_rng(3)
    joints = stand({}) + rng.normal(scale=0.25, size=(frames, 22, 3))
    tilt = yaw_matrix(rng.uniform(-1.2, 1.2, frames))[:, :, [1, 0, 2]][:, [1, 0, 2]]
    turn = yaw_matrix(rng.uniform(-np.pi, np.pi, frames)) @ tilt
    return np.einsum("tij,tnj->tni", turn, joints) + rng.normal(size=(frames, 1, 3))


@pytest.mark.parametrize("compat", [False, True])
def test_values_are_those_of_the_formulas(stand, compat: bool):
    joints = random_bodies(stand, 300)
    values = measure(joints, como_compat=compat)
    expected = np.array([values_of(frame, compat=compat) for frame in joints])
    # acos loses half of the digits at straight angles: sqrt(2^-52) radians are 1e-6 degrees.
    np.testing.assert_allclose(values, expected, atol=1e-6)
    bins = [[c.bin_of(v) for c, v in zip(CATEGORIES, row, strict=True)] for row in values]
    codes = PoseParser(como_compat=compat).parse(joints)
    np.testing.assert_array_equal(codes.bins, bins)
    assert (np.ptp(codes.bins, axis=0) > 0).all()


def placed(stand, category, value: float) -> np.ndarray:
    """(22, 3) a body facing +z in which a category takes a value, by moving its outermost point alone."""
    body = dict(zip(JOINT_NAMES, stand({}), strict=True)) | points_of(stand({}))
    kind, points = category.kind.name, category.points
    if kind == "angle":
        bone = body[points[0]] - body[points[1]]
        bone /= np.linalg.norm(bone)
        aside = np.cross(bone, [1.0, 0.0, 0.0])
        aside /= np.linalg.norm(aside)
        turned = math.cos(math.radians(value)) * bone + math.sin(math.radians(value)) * aside
        return stand({points[2]: tuple(body[points[1]] + 0.3 * turned)})
    if kind == "ground":
        x, _, z = body[points[0]]
        return stand({points[0]: (x, value, z)})
    # Heading and torso hang on hips, pelvis and spine, which stay; so the moving end is the other.
    still, moving = points[::-1] if points[1] in ("pelvis", "torso", "left_hip", "right_hip", "neck") else points
    sign = -1 if moving == points[1] else 1
    offset = {
        "distance": np.array([0.0, 0.6, 0.8]) * value,
        "sideways": np.array([sign * value, 0.3, 0.2]),
        "height": np.array([0.3, sign * value, 0.2]),
        "depth": np.array([0.2, 0.3, sign * value]),
        "slope": 0.4 * np.array([0.0, -math.cos(math.radians(value)), math.sin(math.radians(value))]),
    }[kind]
    return stand({moving: tuple(body[still] + offset)})


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda c: f"{c.kind.name} {c.name}")
def test_every_code_of_every_category_is_read_from_a_body_put_so(stand, category):
    kind = category.kind
    top = 180.0 if kind.name == "angle" else 90.0 if kind.name == "slope" else kind.thresholds[-1] + 0.1
    low = 0.0 if kind.name not in ("sideways", "height", "depth") else kind.thresholds[0] - 0.1
    edges = [low, *kind.thresholds, top]
    for index, (below, above) in enumerate(pairwise(edges)):
        # Just inside both ends of the bin, and in its middle.
        inside = 0.02 * (above - below)
        frames = np.stack([placed(stand, category, v) for v in (below + inside, (below + above) / 2, above - inside)])
        codes = PoseParser().parse(frames)
        assert codes.bins[:, category.index].tolist() == [index] * 3
        assert codes.k_hot[:, category.start + index].all()
        assert all(CODE_NAMES[category.start + index] in codes.names(frame) for frame in range(3))


def test_seventy_codes_one_of_each_category_in_procedural_clips(procedural):
    for motion in procedural:
        k_hot = PoseParser().parse(motion.clip.joints).k_hot
        assert k_hot.shape == (motion.clip.frames, 392)
        assert all((k_hot[:, codes].sum(axis=1) == 1).all() for codes in CATEGORY_SLICES)


@pytest.mark.parametrize("compat", [False, True])
def test_seventy_codes_one_of_each_category_in_every_recording(recordings, compat: bool):
    parser = PoseParser(como_compat=compat)
    for joints in recordings.values():
        k_hot = parser.parse(joints).k_hot
        assert (k_hot.sum(axis=1) == 70).all()
        assert all((k_hot[:, codes].sum(axis=1) == 1).all() for codes in CATEGORY_SLICES)


def test_frames_do_not_depend_on_each_other(stand):
    joints = random_bodies(stand, 4099)
    whole = PoseParser().parse(joints)
    some = [0, 1, 2046, 2047, 2048, 2049, 4095, 4096, 4097, 4098]
    for frame in some:
        np.testing.assert_array_equal(PoseParser().parse(joints[frame : frame + 1]).indices[0], whole.indices[frame])


def test_layout_and_dtype_do_not_matter(stand):
    joints = random_bodies(stand, 31).astype(np.float32)
    expected = PoseParser().parse(joints).indices
    for same in (
        joints.astype(np.float64),
        np.asfortranarray(joints),
        np.repeat(joints, 2, axis=0)[::2],
        torch.from_numpy(joints),
    ):
        np.testing.assert_array_equal(PoseParser().parse(same).indices, expected)


def test_where_a_body_stands_and_faces_does_not_matter(stand):
    joints = random_bodies(stand, 200)
    values = measure(joints)
    for angle in (0.3, 1.7, np.pi, -2.5):
        moved = joints @ yaw_matrix(angle).T + [3.0, 0.0, -5.0]
        np.testing.assert_allclose(measure(moved), values, atol=1e-5)


def test_compat_leaves_headings_and_turns_by_half_a_circle(stand):
    joints = random_bodies(stand, 50)
    facing = joints - joints[:, :1]
    yaw = yaw_angle(joints_to_rotations(facing)[:, 0])
    away = np.einsum("tij,tnj->tni", yaw_matrix(np.pi - yaw), facing)
    np.testing.assert_allclose(measure(away, como_compat=True), measure(joints), atol=1e-5)
    assert PoseParser().como_compat is False


def test_compat_calls_left_what_the_default_calls_right(stand):
    pose = stand({"left_hand": (0.7, 1.2, 0.5)})[None]
    left, right = code_named("left hand to the left of the left shoulder"), code_named("left hand behind the torso")
    ours, theirs = PoseParser().parse(pose), PoseParser(como_compat=True).parse(pose)
    assert ours.has(left).all()
    assert not theirs.has(left).any()
    assert theirs.has(right).all()
    assert not ours.has(right).any()


def test_head_down_and_without_hips_there_is_no_heading(stand):
    """Nothing is turned, so that left stays +x."""
    upside_down = stand({"left_hand": (0.7, 1.2, 0.5)}) * [1, -1, -1]
    no_hips = stand({"left_hip": (0, 0.9, 0), "right_hip": (0, 0.9, 0), "left_hand": (0.7, 1.2, 0.5)})
    turned_over = stand({"left_hand": (0.7, 1.2, 0.5)}) * [-1, -1, 1]
    for joints, expected in ((upside_down, 2), (no_hips, 2), (turned_over, 0)):
        column = CATEGORIES[CODE_CATEGORY]
        assert column.name == "L-hand vs L-shoulder"
        codes = PoseParser().parse(joints[None])
        assert codes.bins[0, CODE_CATEGORY] == expected


CODE_CATEGORY = next(c.index for c in CATEGORIES if (c.kind.name, c.name) == ("sideways", "L-hand vs L-shoulder"))


def test_joints_in_one_place_still_have_codes():
    codes = PoseParser().parse(np.zeros((2, 22, 3)))
    assert (codes.k_hot.sum(axis=1) == 70).all()
    assert codes.has(code_named("line between the hands slanted")).all()
    assert codes.has(code_named("left hand within 0.1 m of the right hand")).all()


def test_noise_is_seeded_and_bounded(stand):
    joints = random_bodies(stand, 500)
    plain, values = PoseParser().parse(joints), measure(joints)
    noisy = PoseParser().parse(joints, noise=np.random.default_rng(1))
    again = PoseParser().parse(joints, noise=np.random.default_rng(1))
    other = PoseParser().parse(joints, noise=np.random.default_rng(2))
    np.testing.assert_array_equal(noisy.indices, again.indices)
    assert (noisy.indices != other.indices).any()
    assert (noisy.k_hot.sum(axis=1) == 70).all()
    for c in CATEGORIES:
        lowest = [c.bin_of(v) for v in values[:, c.index] - c.kind.noise]
        highest = [c.bin_of(v) for v in values[:, c.index] + c.kind.noise]
        assert (lowest <= noisy.bins[:, c.index]).all()
        assert (noisy.bins[:, c.index] <= highest).all()
        # Noise that reaches a threshold crosses it in about half of the frames, from either side.
        near = np.array(highest) > np.array(lowest)
        changed = noisy.bins[near, c.index] != plain.bins[near, c.index]
        assert near.sum() < 30 or 0.05 < changed.mean() < 0.6


def test_noise_without_a_generator_is_refused(stand):
    with pytest.raises(UserError, match=r"noise must be a generator, such as numpy.random.default_rng\(0\).* got 7"):
        PoseParser().parse(stand({})[None], noise=7)


def test_noise_goes_through_the_frames_in_order(stand):
    joints = random_bodies(stand, 2100)
    whole = PoseParser().parse(joints, noise=np.random.default_rng(4))
    first = PoseParser().parse(joints[:2050], noise=np.random.default_rng(4))
    np.testing.assert_array_equal(first.indices, whole.indices[:2050])


def spoilt(joints: np.ndarray, frame: int, joint: int, value: float) -> np.ndarray:
    joints[frame, joint, 1] = value
    return joints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j[:, :21], r"joints must be \(frames, 22, 3\).*got shape \(4, 21, 3\): load the motion with"),
        (lambda j: j[0], r"got shape \(22, 3\)"),
        (lambda j: j[None], r"got shape \(1, 4, 22, 3\)"),
        (lambda j: j[:0], "joints hold no frames: a clip needs at least one"),
        (lambda j: spoilt(j, 2, 20, np.nan), "NaN or infinity, first at frame 2, left_wrist: cut such"),
        (lambda j: spoilt(j, 0, 0, -np.inf), "NaN or infinity, first at frame 0, pelvis"),
        (lambda j: j * 1000, "must be in metres, but thigh and shin together are 820.* long"),
        (lambda j: j * 100, "must be in metres, but thigh and shin together are 82.* long"),
        (lambda j: j.astype(complex), "must be real numbers .* got an array of complex128"),
        (lambda j: j.astype(object), "must be real numbers .* got an array of object"),
        (lambda j: [[1, 2], [3]], "must be a numeric array"),
        (lambda j: torch.from_numpy(j).requires_grad_(), "must be a numeric array"),
    ],
)
def test_bad_input_is_one_sentence(stand, change, message: str):
    joints = np.repeat(stand({})[None], 4, axis=0)
    with pytest.raises(UserError, match=message) as caught:
        PoseParser().parse(change(joints))
    assert "\n" not in str(caught.value)
