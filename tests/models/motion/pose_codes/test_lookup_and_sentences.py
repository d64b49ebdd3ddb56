"""Codes by name and by words, and frames in words."""

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.mirror import mirror
from fastvq.models.motion.pose_codes import CODE_NAMES, PHRASES, PoseParser, code_named, find_codes, sentences
from fastvq.models.motion.pose_codes.sentences import AT_EASE, standing
from fastvq.models.motion.skeleton import MIRROR_ORDER


def said(*patterns: str) -> list[str]:
    return [str(PHRASES[code]) for code in find_codes(*patterns)]


def test_every_code_is_found_by_its_name_and_by_its_phrase():
    assert len(set(map(str, PHRASES))) == 392
    for code, (name, phrase) in enumerate(zip(CODE_NAMES, PHRASES, strict=True)):
        assert code_named(name) == code_named(name.upper()) == code_named(str(phrase)) == code


def test_names_turned_round_mean_the_same():
    for one, other in [
        ("left hand above the right hand", "right hand below left hand"),
        ("left hand above the neck", "neck below the left hand"),
        ("left hand above the neck", "left wrist above the neck"),
        ("left hand in front of the torso", "torso behind left hand"),
        ("left hand within 0.1 m of the right knee", "right knee within 0.1 m of the left hand"),
        ("neck to the left of the pelvis", "pelvis to the right of the neck"),
        ("L-hand vs R-hand behind", "right hand in front of the left hand"),
    ]:
        assert code_named(one) == code_named(other)


@pytest.mark.parametrize(
    ("number", "phrase"),
    [
        ("right knee bent at 90 degrees", "right knee bent at 80 to 90 degrees"),
        ("right knee bent at 90°", "right knee bent at 80 to 90 degrees"),
        ("right knee bent at 90.5 degrees", "right knee bent at 90 to 100 degrees"),
        ("left elbow bent at 175 degrees", "left elbow straight"),
        ("left elbow bent at 0 degrees", "left elbow bent at 0 to 10 degrees"),
        ("left hand 0.25 m from the right foot", "left hand 0.2 to 0.3 m from the right foot"),
        ("left hand 0.05 m from the right foot", "left hand within 0.1 m of the right foot"),
        ("left hand 2 m from the right foot", "left hand more than 0.9 m from the right foot"),
    ],
)
def test_numbers_mean_the_bin_in_which_they_lie(number: str, phrase: str):
    assert code_named(number) == code_named(phrase)
    assert find_codes(number).tolist() == [code_named(phrase)]


def test_patterns_are_runs_of_whole_words():
    assert said("above neck") == [
        "left ankle above the neck",
        "right ankle above the neck",
        "left hand above the neck",
        "right hand above the neck",
    ]
    assert said("left hand", "above the neck") == said("LEFT HAND ABOVE NECK") == ["left hand above the neck"]
    assert all("left hand" in phrase for phrase in said("left hand", "torso"))
    assert len(find_codes("left hand", "torso")) == 3
    assert len(find_codes("left knee bent")) == 17
    assert len(find_codes("L-hand vs R-hand")) == 10 + 3 * 4
    # "hand" is no part of "hands", "left elbow ... right hand" no "left hand".
    assert not any("between the hands" in phrase for phrase in said("hand", "above"))
    assert not set(find_codes("left hand")) & {code_named("R-hand vs L-elbow 3")}


def test_unknown_words_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="called by 'left hnad above neck': the nearest is 'left hand above"):
        find_codes("left hnad above neck")
    with pytest.raises(UserError, match=r"no pose code is named 'left hand': .*; find_codes takes parts of names"):
        code_named("left hand")
    with pytest.raises(UserError, match="by 'left hand' and 'pelvis'"):
        find_codes("left hand", "pelvis")
    for nothing in ((), ("",), ("the",)):
        with pytest.raises(UserError, match="needs words to look for"):
            find_codes(*nothing)


def test_a_sentence_says_what_is_seen(stand):
    pose = stand(
        {
            "left_elbow": (0.2, 1.62, 0.1),
            "left_wrist": (0.2, 1.86, 0.1),
            "right_knee": (-0.1, 0.86, 0.42),
            "right_ankle": (-0.1, 0.45, 0.39),
            "right_foot": (-0.1, 0.4, 0.55),
        }
    )
    (sentence,) = sentences(PoseParser().parse(pose[None]))
    for part in ("left hand above the neck", "right knee bent at 80 to 90 degrees", "right foot off the ground"):
        assert part in sentence
    assert "right hand above" not in sentence
    assert "left knee bent" not in sentence
    (mirrored,) = sentences(PoseParser().parse(mirror(pose)[None]))
    for part in ("right hand above the neck", "left knee bent at 80 to 90 degrees", "left foot off the ground"):
        assert part in mirrored
    assert "left hand above" not in mirrored


def test_a_person_at_ease_is_no_news(stand):
    assert sentences(PoseParser().parse(np.stack([stand({}), standing()]))) == [AT_EASE] * 2
    np.testing.assert_allclose(standing()[list(MIRROR_ORDER)] * [-1, 1, 1], standing(), atol=1e-12)


def test_everything_says_all_seventy_facts(stand):
    codes = PoseParser().parse(stand({"left_hand": (0.3, 1.2, 0.4)})[None])
    (sentence,) = sentences(codes, everything=True)
    for code in codes.indices[0]:
        phrase = PHRASES[code]
        assert f"{phrase.subject} {phrase.relation}" in sentence
        assert phrase.other in sentence


def test_facts_of_one_kind_are_told_together(stand):
    (sentence,) = sentences(PoseParser().parse(stand({"left_hand": (0.2, 1.9, 0)})[None]))
    assert sentence.startswith("left hand above the neck, the ")
    assert sentence.count("left hand above") == 1
