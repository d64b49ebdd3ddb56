"""Bodies put into poses read as what one sees, on both sides, wherever they face; and so do recordings."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.motion.mirror import mirror, mirror_text
from fastvq.models.motion.pose_codes import CATEGORIES, CATEGORY_OF_CODE, PoseParser, code_named, sentences
from fastvq.models.motion.procedural import generate_motions
from fastvq.models.motion.procedural_body import hanging_arm, make_body
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.skeleton import NUM_JOINTS, forward_kinematics

# What is moved away from standing straight, on the left side, and what one then sees.
POSES: dict[str, tuple[dict, list[str]]] = {
    "standing": (
        {},
        [
            "left knee bent at 175 degrees",
            "left shoulder level with the right shoulder",
            "left elbow level with the right elbow",
            "left hand level with the right hand",
            "left knee level with the right knee",
            "left ankle below the neck",
            "left hip above the left knee",
            "left hand below the left shoulder",
            "left foot below the left hip",
            "left hand below the neck",
            "left hand level with the left hip",
            "neck sideways in line with the pelvis",
            "neck neither in front of nor behind the pelvis",
            "left hand sideways in line with the left shoulder",
            "left hand neither in front of nor behind the torso",
            "left thigh vertical",
            "left shin vertical",
            "left upper arm vertical",
            "left forearm vertical",
            "trunk vertical",
            "line from the pelvis to the left shoulder slanted",
            "line between the hands horizontal",
            "line between the feet horizontal",
            "left foot on the ground",
            "left knee off the ground",
            "left hand to the left of the right hand",
        ],
    ),
    "hand raised": (
        {"left_elbow": (0.25, 1.58, 0), "left_wrist": (0.25, 1.83, 0)},
        [
            "left hand above the neck",
            "left hand above the left shoulder",
            "left hand above the right hand",
            "left hand above the left hip",
            "left elbow above the right elbow",
            "left hand more than 0.9 m from the left foot",
            "left hand more than 0.9 m from the right foot",
            "left hand more than 0.9 m from the left knee",
            "left hand more than 0.9 m from the right knee",
            "right elbow 0.85 m from the left hand",
        ],
    ),
    "hand at the left foot": (
        {"left_hand": (0.1, 0.05, 0.1)},
        [
            "left hand within 0.1 m of the left foot",
            "left hand below the left hip",
            "left hand below the left shoulder",
            "right hand above the left hand",
            "left hand more than 0.9 m from the left shoulder",
        ],
    ),
    "hand at the right foot": (
        {"left_hand": (-0.1, 0.05, 0.1)},
        ["left hand within 0.1 m of the right foot", "left hand to the right of the left shoulder"],
    ),
    "hand on the left knee": ({"left_hand": (0.1, 0.45, 0.05)}, ["left hand within 0.1 m of the left knee"]),
    "hand on the right knee": ({"left_hand": (-0.1, 0.45, 0.05)}, ["left hand within 0.1 m of the right knee"]),
    "hand on the left shoulder": (
        {"left_hand": (0.18, 1.4, 0.05)},
        ["left hand within 0.1 m of the left shoulder", "left hand level with the left shoulder"],
    ),
    "hand on the right shoulder": (
        {"left_hand": (-0.18, 1.4, 0.05)},
        ["left hand within 0.1 m of the right shoulder", "left hand 0.6 m from the right hand"],
    ),
    "hand at the right elbow": ({"left_hand": (-0.2, 1.13, 0.05)}, ["left hand within 0.1 m of the right elbow"]),
    "hands together in front": (
        {"left_hand": (0.02, 1.1, 0.3), "right_hand": (-0.02, 1.1, 0.3)},
        [
            "left hand within 0.1 m of the right hand",
            "left hand in front of the torso",
            "left hand sideways in line with the right hand",
            "left elbow within 0.1 m of the right elbow",
        ],
    ),
    "arms crossed": (
        {"left_hand": (-0.2, 1.1, 0.3), "right_hand": (0.2, 1.1, 0.3)},
        ["left hand to the right of the right hand", "right hand to the left of the right shoulder"],
    ),
    "arm stretched sideways": (
        {"left_elbow": (0.46, 1.4, 0), "left_wrist": (0.71, 1.4, 0)},
        [
            "left hand to the left of the left shoulder",
            "left hand more than 0.9 m from the right hand",
            "left upper arm horizontal",
            "left forearm horizontal",
            "left elbow straight",
        ],
    ),
    "arms spread": (
        {
            "left_elbow": (0.46, 1.4, 0),
            "left_wrist": (0.71, 1.4, 0),
            "right_elbow": (-0.46, 1.4, 0),
            "right_wrist": (-0.71, 1.4, 0),
        },
        ["left elbow more than 0.9 m from the right elbow", "line between the hands horizontal"],
    ),
    "one hand over the other": (
        {"left_hand": (0, 1.5, 0.3), "right_hand": (0, 0.8, 0.3)},
        ["line between the hands vertical", "left hand above the right hand"],
    ),
    "hand behind the back": (
        {"left_hand": (0.1, 0.95, -0.3)},
        [
            "left hand behind the torso",
            "right hand in front of the left hand",
            "left elbow behind the right elbow",
        ],
    ),
    "punch": (
        {"left_elbow": (0.15, 1.35, 0.25), "left_wrist": (0.1, 1.33, 0.5)},
        ["left hand in front of the right hand", "left elbow in front of the right elbow"],
    ),
    "forearm forward": ({"left_wrist": (0.2, 1.15, 0.25)}, ["left elbow bent at 85 degrees"]),
    "shoulder shrugged": ({"left_shoulder": (0.18, 1.58, 0)}, ["left shoulder above the right shoulder"]),
    "shoulder dropped": ({"left_shoulder": (0.18, 1.2, 0)}, ["left shoulder below the right shoulder"]),
    "shoulder forward": ({"left_shoulder": (0.15, 1.4, 0.2)}, ["left shoulder in front of the right shoulder"]),
    "shoulder over the pelvis": (
        {"left_shoulder": (0, 1.4, 0)},
        ["line from the pelvis to the left shoulder vertical"],
    ),
    "shoulder beside the pelvis": (
        {"left_shoulder": (0.4, 0.96, 0)},
        ["line from the pelvis to the left shoulder horizontal"],
    ),
    "knee raised": (
        {"left_knee": (0.1, 0.87, 0.42), "left_ankle": (0.1, 0.45, 0.39), "left_foot": (0.1, 0.4, 0.54)},
        [
            "left knee above the right knee",
            "left knee in front of the right knee",
            "left knee bent at 85 degrees",
            "left thigh horizontal",
            "left shin vertical",
            "left hip level with the left knee",
            "left knee off the ground",
            "left foot off the ground",
            "left foot in front of the torso",
        ],
    ),
    "high kick": (
        {"left_knee": (0.1, 1.1, 0.35), "left_ankle": (0.1, 1.65, 0.5), "left_foot": (0.1, 1.75, 0.5)},
        [
            "left ankle above the neck",
            "left foot above the left hip",
            "left hip below the left knee",
            "left foot more than 0.9 m from the right foot",
        ],
    ),
    "kneeling": (
        {"left_knee": (0.1, 0.05, 0), "left_ankle": (0.1, 0.05, -0.4), "left_foot": (0.1, 0, -0.5)},
        ["left knee on the ground", "left shin horizontal", "left foot behind the torso", "left foot on the ground"],
    ),
    "leg aside": ({"left_foot": (0.6, 0, 0.1)}, ["left foot to the left of the left hip"]),
    "legs crossed": ({"left_foot": (-0.3, 0, 0.1)}, ["left foot to the right of the left hip"]),
    "feet together": ({"left_foot": (-0.05, 0, 0.1)}, ["left foot within 0.1 m of the right foot"]),
    "foot over foot": ({"left_foot": (-0.1, 0.5, 0.1)}, ["line between the feet vertical"]),
    "knees together": ({"left_knee": (-0.03, 0.45, 0)}, ["left knee within 0.1 m of the right knee"]),
    "leaning to the left": ({"neck": (0.3, 1.4, 0)}, ["neck to the left of the pelvis"]),
    "leaning forward": ({"neck": (0, 1.3, 0.4)}, ["neck in front of the pelvis", "trunk slanted"]),
    "leaning back": ({"neck": (0, 1.3, -0.4)}, ["neck behind the pelvis"]),
    "bowing": ({"neck": (0, 0.97, 0.5)}, ["trunk horizontal"]),
}


@pytest.mark.parametrize("angle", [0.0, 0.65, np.pi])
@pytest.mark.parametrize("name", POSES)
def test_a_pose_reads_as_what_one_sees_on_both_sides(stand, name: str, angle: float):
    moves, seen = POSES[name]
    left = stand(moves)
    for joints, phrases in ((left, seen), (mirror(left), [mirror_text(phrase) for phrase in seen])):
        turned = (joints @ yaw_matrix(angle).T + [1.0, 0.0, -2.0])[None]
        codes = PoseParser().parse(turned)
        facts = sentences(codes, everything=True)[0]
        for phrase in phrases:
            assert codes.has(code_named(phrase)).all(), (phrase, facts)


def test_the_poses_above_speak_of_every_category_and_both_sides():
    seen = [phrase for _, phrases in POSES.values() for phrase in phrases]
    codes = [code_named(phrase) for phrase in (*seen, *map(mirror_text, seen))]
    assert set(CATEGORY_OF_CODE[codes].tolist()) == set(range(len(CATEGORIES)))


def test_a_side_is_not_taken_for_the_other(stand):
    codes = PoseParser().parse(stand({"left_hand": (0.25, 1.9, 0.1)})[None])
    assert codes.has(code_named("left hand above the neck")).all()
    assert codes.has(code_named("right hand below the neck")).all()
    assert not codes.has(code_named("right hand above the neck")).any()


@pytest.mark.parametrize(("side", "other", "sign"), [("left", "right", 1), ("right", "left", -1)])
def test_a_skeleton_posed_by_rotations_reads_as_posed(side: str, other: str, sign: int):
    body = make_body(1.75)
    rotations = np.broadcast_to(np.eye(3), (1, NUM_JOINTS, 3, 3)).copy()
    for index, shoulder in enumerate((16, 17)):
        rotations[:, shoulder] = hanging_arm(index, np.zeros(1), 0.1)
    arm, hip, knee = (16, 1, 4) if side == "left" else (17, 2, 5)
    # In the rest pose arms point sideways: a quarter turn about z lifts one. A hip turned about x swings the thigh.
    rotations[:, arm] = Rotation.from_euler("z", sign * 80, degrees=True).as_matrix()
    rotations[:, hip] = Rotation.from_euler("x", -85, degrees=True).as_matrix()
    rotations[:, knee] = Rotation.from_euler("x", 85, degrees=True).as_matrix()
    rotations[:, 0] = yaw_matrix(2.1)
    joints = forward_kinematics(body.offsets, rotations, np.array([[0.0, body.stand, 0.0]]))
    codes = PoseParser().parse(joints)
    for phrase in (
        f"{side} hand above the neck",
        f"{side} hand above the {other} hand",
        f"{side} elbow straight",
        f"{side} knee bent at 95 degrees",
        f"{side} thigh horizontal",
        f"{side} shin vertical",
        f"{side} knee in front of the {other} knee",
        f"{side} foot off the ground",
        f"{other} foot on the ground",
        f"{other} hand below the {other} shoulder",
        f"{other} knee straight",
    ):
        assert codes.has(code_named(phrase)).all(), (phrase, sentences(codes))


def test_procedural_bodies_reach_up_with_the_hand_that_the_caption_names():
    raised = {"left": 0, "right": 0}
    for motion in generate_motions(420, seed=2, fps=5):
        if (motion.spec.action, motion.spec.direction) != ("reach", "up"):
            continue
        side = motion.spec.side
        other = "right" if side == "left" else "left"
        codes = PoseParser().parse(motion.clip.joints)
        assert codes.has(code_named(f"{side} hand above the neck")).any()
        assert not codes.has(code_named(f"{other} hand above the neck")).any()
        raised[side] += 1
    assert min(raised.values()) >= 2


@pytest.mark.parametrize(
    ("label", "seen", "unseen"),
    [
        ("kickLFront1Reps", "left hip level with the left knee", "right hip level with the right knee"),
        ("kickLFront1Reps", "left foot off the ground", None),
        ("kickLFront1Reps", "left foot in front of the torso", None),
        ("grabHighR", "right upper arm horizontal", "left upper arm horizontal"),
        ("depositFloorR", "right hand below the right hip", None),
        ("squat1Reps", "left knee bent at 85 degrees", None),
        ("squat1Reps", "right knee bent at 85 degrees", None),
        ("lieDownFloor", "trunk horizontal", None),
    ],
)
def test_recordings_read_as_their_label_in_every_take(recordings, labels, label, seen, unseen):
    for name in labels[label]:
        codes = PoseParser().parse(recordings[name])
        assert codes.has(code_named(seen)).any(), name
        assert unseen is None or not codes.has(code_named(unseen)).any(), name
