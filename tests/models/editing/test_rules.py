import re

import pytest

from fastvq.models.editing.rules import RULES, Edit, check_agree, named, rule
from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import CATEGORY_OF_CODE, CODE_NAMES, MIRRORED_CODES, PHRASES, code_named


def test_a_rule_asks_for_one_code_of_a_category():
    for name, codes in RULES.items():
        categories = [CATEGORY_OF_CODE[code] for code in codes]
        assert len(set(categories)) == len(categories) > 0, name


def test_rules_of_the_two_sides_are_mirror_images():
    sides = [name for name in RULES if "left" in name]
    assert len(sides) >= 10
    for name in sides:
        mirrored = {int(MIRRORED_CODES[code]) for code in RULES[name]}
        assert mirrored == set(RULES[name.replace("left", "right")]), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raise the right hand", "right hand above the neck"),
        ("lower the left hand", "left hand below the left shoulder"),
        ("bend the left knee", "left knee bent at 80 to 90 degrees"),
        ("straighten the right elbow", "right elbow straight"),
        ("hands together", "left hand within 0.1 m of the right hand"),
        ("hands apart", "left hand more than 0.9 m from the right hand"),
    ],
)
def test_a_rule_says_what_its_name_says(name, said):
    assert said in [str(PHRASES[code]) for code in RULES[name]]


def test_words_and_spans_of_a_rule():
    codes = RULES["raise the right hand"]
    assert rule("Raise right  hand") == Edit("Raise right  hand", codes)
    assert rule("raise the right hand from frame 20 to 40").frames == (20, 40)
    assert rule("raise the right hand from 20 to frame 40").codes == codes
    assert rule("raise the right hand", (3, 9)).frames == (3, 9)
    assert rule("raise the right hand from frame 20 to 40", (3, 9)).frames == (20, 40)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("L-knee=9", "L-knee 9"),
        ("left knee = bent at 85 degrees", "L-knee 8"),
        ("the left knee bent at 85 degrees", "L-knee 8"),
        ("R-hand vs R-hip=above", "R-hand vs R-hip above"),
        ("right hand=0.25 m from the left knee", "R-hand vs L-knee 2"),
    ],
)
def test_codes_by_name(text, name):
    (code,) = named(text).codes
    assert CODE_NAMES[code] == name
    assert named(f"{text} from frame 4 to 8") == Edit(f"{text} from frame 4 to 8", (code,), (4, 8))


def test_unknown_names_are_answered_with_close_ones():
    with pytest.raises(UserError, match=r"no rule 'rise right hand': close are 'raise the right hand'"):
        rule("rise right hand")
    with pytest.raises(UserError, match=r"no rule 'fly': the rules are .*'hands apart'"):
        rule("fly")
    close = "no pose code is named 'left nee straight': close are 'left knee straight'"
    with pytest.raises(UserError, match=re.escape(close)):
        named("left nee=straight")
    with pytest.raises(UserError, match="no pose code is named 'L-knee 99': close are 'L-knee 9'"):
        named("L-knee=99")
    with pytest.raises(UserError, match="no pose code is named 'zzz'"):
        named("zzz")


def test_edits_must_not_contradict_each_other_in_a_frame():
    bend, straighten = rule("bend the left knee", (0, 20)), rule("straighten the left knee", (16, 40))
    with pytest.raises(UserError, match=r"different angle codes of 'L-knee' in frames 16 to 20: 'left knee bent"):
        check_agree([bend, straighten], 40)
    with pytest.raises(UserError, match="in frames 0 to 20"):
        check_agree([bend, rule("straighten the left knee")], 40)
    check_agree([bend, rule("straighten the left knee", (20, 40)), rule("bend the right knee")], 40)
    check_agree([bend, named("left knee bent at 85 degrees")], 40)
    assert code_named("left knee straight") in straighten.codes
