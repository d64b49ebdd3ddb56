import pytest

from fastvq.models.editing.parts import PARTS, named_parts, part
from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import CATEGORIES, MIRRORED_CATEGORIES


def names(which):
    return {CATEGORIES[index].name for index in PARTS[which].nonzero()[0].tolist()}


def test_a_limb_has_every_category_of_its_points_and_the_trunk_has_the_rest():
    assert {"L-elbow", "L-hand vs R-hand", "L-hand vs R-knee", "L-wrist vs neck"} <= names("left arm")
    assert not {"R-elbow", "L-knee", "neck vs pelvis", "L-shoulder vs R-shoulder"} & names("left arm")
    assert {"R-knee", "R-hip vs R-knee", "R-foot vs R-hip", "L-hand vs R-knee"} <= names("right leg")
    limbs = PARTS["arms"] | PARTS["legs"]
    assert not (limbs & PARTS["trunk"]).any()
    assert (limbs | PARTS["trunk"] == PARTS["body"]).all()
    assert {"neck vs pelvis", "L-shoulder vs R-shoulder"} <= names("trunk")
    assert PARTS["body"].sum() == 70
    assert (PARTS["arms"] == PARTS["left arm"] | PARTS["right arm"]).all()


def test_sides_are_alike():
    for limb in ("arm", "leg"):
        assert (PARTS[f"left {limb}"][MIRRORED_CATEGORIES] == PARTS[f"right {limb}"]).all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a person waves with the left hand", ["left arm"]),
        ("a person turns to the left and waves with his right hand", ["right arm"]),
        ("raises both hands", ["arms"]),
        ("lifts the left or right foot", ["legs"]),
        ("Kicks with the RIGHT leg and holds an elbow", ["right leg", "arms"]),
        ("the left arm and the trunk", ["left arm", "trunk"]),
        ("raises the left hand and then both arms", ["arms"]),
        ("a person walks forward and turns left", ["body"]),
        ("a handsome man turns his back", ["body"]),
    ],
)
def test_the_parts_that_a_text_is_about(text, found):
    assert named_parts(text) == found


def test_a_part_by_its_name():
    assert (part(" Left  arm") == PARTS["left arm"]).all()
    with pytest.raises(UserError, match=r"no part 'left am': did you mean 'left arm'\? The parts are left"):
        part("left am")
    with pytest.raises(UserError, match=r"there is no part 'xyz': The parts are"):
        part("xyz")
