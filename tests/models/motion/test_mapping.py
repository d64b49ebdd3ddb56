"""Skeletons of many name families onto SMPL-22."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.mapping import map_skeleton, read_mapping_file, split_name
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.motion.source import SourceSkeleton

END = "<end>"


def build(rows, lengths=None):
    """A skeleton from (name, parent) rows; END makes an End Site. Bones are 0.1 long unless ``lengths`` says so."""
    names, parents, ends, offsets = [], [], [], []
    for number, (name, parent) in enumerate(rows):
        ends.append(name == END)
        names.append(f"end site of {parent}" if name == END else name)
        parents.append(names.index(parent) if parent else -1)
        # Distinct directions, so that no two joints coincide by chance.
        direction = np.array([np.sin(number), np.cos(number), 0.1 * number])
        length = (lengths or {}).get(name, 0.1)
        offsets.append(direction / np.linalg.norm(direction) * length)
    return SourceSkeleton(tuple(names), tuple(parents), np.array(offsets), tuple(ends))


def body(trunk, arm, leg, side):
    """Rows of a body: ``trunk`` from pelvis to head, limbs named by a function of (part, side)."""
    rows = [(trunk[0], None), *((name, above) for above, name in itertools.pairwise(trunk))]
    chest = trunk[-3]
    for hand in ("left", "right"):
        for parts, start in ((arm, chest), (leg, trunk[0])):
            above = start
            for part in parts:
                name = part if part == END else side(part, hand)
                rows.append((name, above))
                above = name
    return rows


FAMILIES = {
    "mixamo": body(
        [f"mixamorig:{name}" for name in ("Hips", "Spine", "Spine1", "Spine2", "Neck", "Head")],
        ["Shoulder", "Arm", "ForeArm", "Hand"],
        ["UpLeg", "Leg", "Foot", "ToeBase"],
        lambda part, hand: f"mixamorig:{hand.capitalize()}{part}",
    ),
    "smpl": body(
        ["Pelvis", "Spine1", "Spine2", "Spine3", "Neck", "Head"],
        ["Collar", "Shoulder", "Elbow", "Wrist", "Hand"],
        ["Hip", "Knee", "Ankle", "Foot"],
        lambda part, hand: f"{hand[0].upper()}_{part}",
    ),
    "blender": body(
        ["pelvis", "spine", "spine.001", "spine.002", "neck", "head"],
        ["shoulder", "upper_arm", "forearm", "hand"],
        ["thigh", "shin", "foot", "toe"],
        lambda part, hand: f"{part}.{hand[0].upper()}",
    ),
    "unreal": body(
        ["pelvis", "spine_01", "spine_02", "spine_03", "neck_01", "head"],
        ["clavicle", "upperarm", "lowerarm", "hand"],
        ["thigh", "calf", "foot", "ball"],
        lambda part, hand: f"{part}_{hand[0]}",
    ),
    "biped": body(
        ["Bip01 Pelvis", "Bip01 Spine", "Bip01 Spine1", "Bip01 Spine2", "Bip01 Neck", "Bip01 Head"],
        ["Clavicle", "UpperArm", "Forearm", "Hand"],
        ["Thigh", "Calf", "Foot", "Toe0"],
        lambda part, hand: f"Bip01 {hand[0].upper()} {part}",
    ),
    "poser": body(
        ["hip", "abdomen", "waist", "chest", "neck", "head"],
        ["Collar", "Shldr", "ForeArm", "Hand"],
        ["Thigh", "Shin", "Foot", "Toe"],
        lambda part, hand: f"{hand[0]}{part}",
    ),
    "motion builder": body(
        ["Hips", "Chest", "Chest2", "Chest3", "Neck", "Head"],
        ["Collar", "Shoulder", "Elbow", "Wrist"],
        ["Hip", "Knee", "Ankle", "Toe"],
        lambda part, hand: f"{hand.capitalize()}{part}",
    ),
    "maya": body(
        [f"m_avg_{name}" for name in ("Pelvis", "Spine1", "Spine2", "Spine3", "Neck", "Head")],
        ["Collar", "Shoulder", "Elbow", "Wrist"],
        ["Hip", "Knee", "Ankle", "Foot"],
        lambda part, hand: f"m_avg_{hand[0].upper()}_{part}",
    ),
    "glued": body(
        ["pelvis", "spine1", "spine2", "spine3", "neck", "head"],
        ["clavicle", "humerus", "radius", "wrist"],
        ["femur", "tibia", "foot", "toes"],
        lambda part, hand: f"{hand[0]}{part}",
    ),
}
# The order in which ``body`` lists joints: trunk, then left arm, left leg, right arm, right leg.
TRUNK = ("pelvis", "spine1", "spine2", "spine3", "neck", "head")
ARM, LEG = ("collar", "shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "foot")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_joint_of_a_known_family_is_taken_directly(family):
    rows = FAMILIES[family]
    report = map_skeleton(build(rows)).report
    smpl = list(TRUNK)
    for hand in ("left", "right"):
        smpl += [f"{hand}_{part}" for part in ARM] + [f"{hand}_{part}" for part in LEG]
    # SMPL's rig goes on beyond the wrist.
    names = [name for name, _ in rows if family != "smpl" or not name.endswith("_Hand")]
    assert report.sources == dict(zip(smpl, names, strict=True))
    assert list(report.sources) == list(JOINT_NAMES)
    assert report.interpolated == () == report.end_sites


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixamorig:LeftForeArm", ("l", "forearm")),
        ("upper_arm.L", ("l", "upperarm")),
        ("Bip001 R Thigh", ("r", "thigh")),
        ("lfemur", ("l", "femur")),
        ("lowerback", ("", "lowerback")),
        ("leg", ("", "leg")),
        ("spine.001", ("", "spine1")),
        ("rightupleg", ("r", "upleg")),
        ("J_Bip_L_UpperLeg", ("l", "upperleg")),
        ("DEF-thigh.R", ("r", "thigh")),
        ("L", ("", "l")),
        ("", ("", "")),
    ],
)
def test_split_name(name, expected):
    assert split_name(name) == expected


def without(family, *names):
    """A family without some joints; their children hang from the parents of what was removed."""
    rows = list(FAMILIES[family])
    for name in names:
        parent = dict(rows)[name]
        rows = [(child, parent if above == name else above) for child, above in rows if child != name]
    return rows


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (
            ("Spine1",),
            {
                "spine1": "mixamorig:Spine",
                "spine2": "interpolated between mixamorig:Spine and mixamorig:Spine2 (50 %)",
                "spine3": "mixamorig:Spine2",
            },
        ),
        (
            ("Spine", "Spine2"),
            {
                "spine1": "interpolated between mixamorig:Hips and mixamorig:Spine1 (50 %)",
                "spine2": "mixamorig:Spine1",
                "spine3": "interpolated between mixamorig:Spine1 and mixamorig:Neck (50 %)",
            },
        ),
        (
            ("Spine", "Spine1", "Spine2"),
            {f"spine{i}": f"interpolated between mixamorig:Hips and mixamorig:Neck ({25 * i} %)" for i in (1, 2, 3)},
        ),
        (("Neck",), {"neck": "interpolated between mixamorig:Spine2 and mixamorig:Head (50 %)"}),
        (
            ("LeftShoulder",),
            {"left_collar": "interpolated between mixamorig:Spine2 and mixamorig:LeftArm (40 %)"},
        ),
    ],
)
def test_missing_joints_of_the_trunk_are_interpolated_and_reported(removed, words):
    report = map_skeleton(build(without("mixamo", *(f"mixamorig:{name}" for name in removed)))).report
    assert {name: report.sources[name] for name in words} == words
    assert set(report.interpolated) == {name for name, source in words.items() if " between " in source}


def test_interpolated_joints_lie_between_their_neighbours():
    skeleton = build(without("mixamo", "mixamorig:Spine1"))
    positions = np.random.default_rng(0).normal(size=(5, len(skeleton.names), 3))
    joints = map_skeleton(skeleton).apply(positions)
    spine, chest = (skeleton.names.index(f"mixamorig:{name}") for name in ("Spine", "Spine2"))
    np.testing.assert_allclose(joints[:, 6], (positions[:, spine] + positions[:, chest]) / 2, atol=1e-15)
    np.testing.assert_array_equal(joints[:, 3], positions[:, spine])


@pytest.mark.parametrize("end", [END, "{}_end", "{}Nub"])
def test_end_sites_stand_for_wrists_and_toes(end):
    rows = without("blender", "hand.L", "hand.R", "toe.L", "toe.R", "head")
    for above in ("forearm.L", "forearm.R", "foot.L", "foot.R", "neck"):
        rows.append((END if end == END else end.format(above), above))
    report = map_skeleton(build(rows)).report
    ends = {name: report.sources[name] for name in report.end_sites}
    assert ends == {
        "left_wrist": "end site of forearm.L",
        "right_wrist": "end site of forearm.R",
        "left_foot": "end site of foot.L",
        "right_foot": "end site of foot.R",
        "head": "end site of neck",
    }


def test_five_spine_joints_give_the_three_that_are_spread_best():
    rows = body(
        ["Hips", "Spine", "Spine1", "Spine2", "Spine3", "Spine4", "Neck", "Head"],
        ["Shoulder", "Arm", "ForeArm", "Hand"],
        ["UpLeg", "Leg", "Foot", "ToeBase"],
        lambda part, hand: f"{hand.capitalize()}{part}",
    )
    # Spine and Spine1 lie at 1/20 and 2/20 of the way up, Spine2, 3 and 4 at 5/20, 10/20 and 15/20.
    lengths = {"Spine": 0.1, "Spine1": 0.1, "Spine2": 0.3, "Spine3": 0.5, "Spine4": 0.5, "Neck": 0.5}
    report = map_skeleton(build(rows, lengths)).report
    assert [report.sources[f"spine{i}"] for i in (1, 2, 3)] == ["Spine2", "Spine3", "Spine4"]
    assert report.unused == ("Spine", "Spine1")


def test_helpers_that_coincide_with_the_pelvis_are_no_spine():
    rows = [("Hips", None), ("LowerBack", "Hips")]
    for name, above in FAMILIES["mixamo"][1:]:
        plain, parent = name.removeprefix("mixamorig:"), above.removeprefix("mixamorig:")
        rows.append((plain, "LowerBack" if plain == "Spine" else parent))
    report = map_skeleton(build(rows, {"LowerBack": 0.0})).report
    assert [report.sources[f"spine{i}"] for i in (1, 2, 3)] == ["Spine", "Spine1", "Spine2"]
    assert report.unused == ("LowerBack",)


def test_conversions_of_the_cmu_skeleton_are_mapped_like_the_original():
    rows = [("Hips", None), ("LowerBack", "Hips"), ("Spine", "LowerBack"), ("Spine1", "Spine"), ("Neck", "Spine1")]
    rows += [("Neck1", "Neck"), ("Head", "Neck1")]
    for side in ("Left", "Right"):
        rows += [(f"{side}Shoulder", "Spine1"), (f"{side}Arm", f"{side}Shoulder"), (f"{side}ForeArm", f"{side}Arm")]
        rows += [(f"{side}Hand", f"{side}ForeArm"), (f"{side[0]}HipJoint", "Hips")]
        rows += [
            (f"{side}UpLeg", f"{side[0]}HipJoint"),
            (f"{side}Leg", f"{side}UpLeg"),
            (f"{side}Foot", f"{side}Leg"),
        ]
        rows += [(f"{side}ToeBase", f"{side}Foot")]
    skeleton = build(rows, {"LowerBack": 0.0, "LHipJoint": 0.0, "RHipJoint": 0.0})
    # Both collars begin where the neck does, at the end of the thorax.
    offsets = skeleton.offsets.copy()
    for side in ("Left", "Right"):
        offsets[skeleton.names.index(f"{side}Shoulder")] = offsets[skeleton.names.index("Neck")]
    sources = map_skeleton(replace(skeleton, offsets=offsets)).report.sources
    assert [sources[name] for name in TRUNK] == ["Hips", "Spine", "Spine1", "Neck", "Neck1", "Head"]
    assert sources["left_collar"] == "interpolated between Neck and LeftArm (40 %)"
    assert sources["left_hip"] == "LeftUpLeg"


def test_numbered_trunks_are_understood_by_where_the_limbs_branch_off():
    rigify = {"pelvis": "spine", "spine": "spine.001", "spine.001": "spine.002", "spine.002": "spine.003"}
    rigify |= {"neck": "spine.004", "head": "spine.005"}
    rows = [(rigify.get(name, name), rigify.get(above, above)) for name, above in FAMILIES["blender"]]
    sources = map_skeleton(build(rows)).report.sources
    assert [sources[name] for name in TRUNK] == [f"spine{n}" for n in ("", ".001", ".002", ".003", ".004", ".005")]


def test_a_skeleton_that_lacks_joints_is_refused_with_their_names():
    rows = without("mixamo", "mixamorig:LeftUpLeg", "mixamorig:RightUpLeg", "mixamorig:RightForeArm")
    with pytest.raises(
        UserError, match=r"take\.bvh: the skeleton lacks left_hip, right_hip, right_elbow \(it has "
    ) as caught:
        map_skeleton(build(rows), where="take.bvh")
    assert "give a mapping file (JSON: {SMPL name: source name})" in str(caught.value)


def test_a_mapping_file_overrides_names(tmp_path):
    rows = [
        (name.replace("mixamorig:LeftUpLeg", "bone7"), above and above.replace("mixamorig:LeftUpLeg", "bone7"))
        for name, above in FAMILIES["mixamo"]
    ]
    rows.append((END, "mixamorig:Head"))
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"L_hip": "bone7", "head": "end site of mixamorig:Head"}))
    overrides = read_mapping_file(file)
    assert overrides == {"left_hip": "bone7", "head": "end site of mixamorig:Head"}
    sources = map_skeleton(build(rows), overrides=overrides).report.sources
    assert sources["left_hip"] == "bone7"
    assert sources["head"] == "end site of mixamorig:Head"
    assert sources["right_hip"] == "mixamorig:RightUpLeg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "must be a JSON object"),
        ('{"left_hip": 3}', "must be a JSON object"),
        ('{"tail": "Tail"}', "tail is no SMPL joint"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_mapping_file_is_refused(tmp_path, content, message):
    file = tmp_path / "map.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_mapping_file(file)


def test_an_override_by_an_unknown_joint_is_refused():
    with pytest.raises(UserError, match="takes left_hip from 'Nowhere', which the skeleton lacks: it has mixamorig"):
        map_skeleton(build(FAMILIES["mixamo"]), overrides={"left_hip": "Nowhere"})
