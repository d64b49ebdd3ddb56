"""Descriptions of HumanML3D."""

import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.humanml3d_texts import Caption, caption_lines, read_captions


def test_lines_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\n\nhe turns#he/PRON turn/VERB#1.5#3.25\nonly text\n"
        "odd#x/X#nan#nan\n"
    )
    assert read_captions(path) == (
        Caption("a man walks.", ("a/DET", "man/NOUN", "walk/VERB"), 0.0, 0.0),
        Caption("he turns", ("he/PRON", "turn/VERB"), 1.5, 3.25),
        Caption("only text"),
        Caption("odd", ("x/X",)),
    )


def test_parts_are_frames():
    assert Caption("whole").frames(20, 90) == slice(0, 90)
    assert Caption("part", start=1.5, end=3.25).frames(20, 90) == slice(30, 65)
    assert Caption("part", start=1.5, end=30).frames(20, 90) == slice(30, 90)


def test_written_captions_are_read_again(tmp_path):
    captions = (Caption("A man\nwalks, slowly.", (), 0.0, 2.5), Caption("He's there", ("he/PRON", "there/ADV")))
    path = tmp_path / "a.txt"
    path.write_text(caption_lines(captions, "a"))
    first, second = read_captions(path)
    assert first == Caption("A man walks, slowly.", ("a/OTHER", "man/OTHER", "walks/OTHER", "slowly/OTHER"), 0.0, 2.5)
    assert second == captions[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a#b/C#soon#0", "line 1: 'soon' is no time in seconds"),
        ("a#b/C#-1#0", "line 1: '-1' is no time in seconds"),
        ("a#b/C#3#inf", "'inf' is no time"),
        ("a#b/C#3#2", "from 3 s cannot end at 2 s: correct it"),
    ],
)
def test_wrong_times_are_named(tmp_path, line, message):
    path = tmp_path / "a.txt"
    path.write_text(line)
    with pytest.raises(UserError, match=message):
        read_captions(path)
