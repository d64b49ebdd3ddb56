"""The animated GIF: length, speed, and a body that is in the picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvq.models.errors import UserError
from fastvq.models.motion.skeleton import JOINT_NAMES, REST_DIRECTIONS, forward_kinematics
from fastvq.models.rendering.gif import write_gif
from fastvq.models.rendering.scene import NOSE, Scene, Track, nose


def standing(frames: int) -> np.ndarray:
    """(T, 22, 3) a body in its rest pose that glides 2 m sideways."""
    root = np.stack([np.linspace(0, 2, frames), np.full(frames, 0.9), np.zeros(frames)], axis=-1)
    rotations = np.broadcast_to(np.eye(3), (frames, 22, 3, 3))
    return forward_kinematics(0.25 * REST_DIRECTIONS, rotations, root).astype(np.float32)


def test_a_gif_lasts_as_long_as_the_motion(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    tracks = [Track("Original", standing(45)), Track("Reconstruction", standing(40))]
    write_gif(path, Scene("a", 30.0, tracks), size=64)
    with Image.open(path) as image:
        assert image.size == (128, 64)
        assert image.info["loop"] == 0
        seconds = 0.0
        for index in range(image.n_frames):
            image.seek(index)
            seconds += image.info["duration"] / 1000
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 16)}
            # Blue, orange and grey limbs on white: a camera that lost the body would show the floor alone.
            assert any(blue > red + 80 for red, _, blue in colours)
            assert any(red > blue + 80 for red, _, blue in colours)
    # 45 frames at 30 per second; identical neighbours may be merged, never dropped.
    assert seconds == pytest.approx(1.5)


def test_a_title_stands_above_the_bodies_in_as_many_lines_as_it_needs(tmp_path: Path) -> None:
    heights = []
    for name, title in (("none", " "), ("short", "a person waves"), ("long", "a person waves " * 9)):
        path = tmp_path / f"{name}.gif"
        write_gif(path, Scene("a", 30.0, [Track("", standing(3))]), size=160, title=title)
        with Image.open(path) as image:
            heights.append(image.height)
            picture = np.array(image.convert("L"))
        assert picture.shape[1] == 160
        head = picture[: len(picture) - 160]
        assert name == "none" or (head < 128).any(), "the title has no ink"
        assert name == "none" or (head[:, -4:] > 200).all(), "a line runs out of the picture"
    assert heights[0] == 160
    assert heights[0] < heights[1] < heights[2]


def test_a_gif_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_gif(tmp_path / "file" / "a.gif", Scene("a", 30.0, [Track("", standing(3))]), size=32)


def test_a_nose_tells_which_way_a_body_looks(tmp_path: Path) -> None:
    body = standing(1)
    turned = body @ np.array([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]], dtype=np.float32)  # half a turn
    head = JOINT_NAMES.index("head")
    ahead = nose(body)[0] - body[0, head]
    assert np.linalg.norm(ahead) == pytest.approx(NOSE, rel=1e-5)
    assert ahead[2] > 0.9 * NOSE  # the rest pose looks along +z
    np.testing.assert_allclose(nose(turned)[0] - turned[0, head], ahead * [-1, 1, -1], atol=1e-6)
    assert np.isfinite(nose(np.zeros((1, 22, 3)))).all()
    pale = []
    for name, track in (("facing", [body, turned]), ("from behind", [turned, body])):
        # The camera stands before the first frame's body; the second frame is what is looked at.
        path = tmp_path / f"{name}.gif"
        write_gif(path, Scene("a", 1.0, [Track("", np.concatenate(track))]), size=320)
        with Image.open(path) as image:
            for index in (0, image.n_frames - 1):
                image.seek(index)
                picture = np.array(image.convert("RGB")).astype(int)
                pale.append(int((np.abs(picture - [150, 157, 166]).max(axis=-1) < 5).sum()))
    assert pale[0] > 2 * pale[1]
    assert pale[2] > 2 * pale[3]
