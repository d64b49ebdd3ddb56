"""The player and the report: one file each, well formed, escaped, and carrying the joints that they show."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import PHRASES, PoseParser, sentences
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.rendering.axes import COLOURS, log_ticks, nice_ticks, number_text
from fastvq.models.rendering.bars import Factor, bar_chart, factor_chart, stack_chart
from fastvq.models.rendering.charts import Series, line_chart
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.report import Curves, Metric, Report, Usage, flatten, group_perplexity, write_report
from fastvq.models.rendering.scene import CodeTrack, Scene, Track, pack_joints, scene_payload, unpack_joints

VOID = {"meta", "br", "input", "img", "hr", "link"}
NASTY = '</script><script>alert("x")</script><!-- & \' " é'


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes, text and data scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, object] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self._script = values.get("id")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.data[self._script] = json.loads(data)
        elif "script" not in self.open and "style" not in self.open:
            self.text += data

    def ids(self) -> set[str | None]:
        return {values["id"] for _, values in self.attributes if "id" in values}


def walk(frames: int = 30, *, seed: int = 0, reach: float = 3.0) -> np.ndarray:
    """(T, 22, 3) random bodies that move ``reach`` metres."""
    generator = np.random.default_rng(seed)
    body = generator.uniform(-0.5, 0.5, (1, 22, 3)) + np.array([0, 0.9, 0])
    way = np.linspace(0, reach, frames)[:, None, None] * np.array([1.0, 0.0, 0.3])
    return (body + way + generator.normal(0, 0.01, (frames, 22, 3))).astype(np.float32)


def scene(name: str = "walk_01", **changes: object) -> Scene:
    tracks = (Track("Original", walk()), Track("Reconstruction", walk(seed=1)))
    return Scene(**{"name": name, "fps": 30.0, "tracks": tracks, "caption": "walks", "note": "31.2 mm", **changes})


def report(**changes: object) -> Report:
    steps = range(1, 1001)
    values = {
        "title": "Motion tokenizer",
        "summary": "width 64",
        "metrics": [Metric("Joint error", "31.2 mm", "smaller is better", headline=True)],
        "scenes": [scene("a"), scene("b", caption=NASTY)],
        "curves": [Curves("Loss", "smooth-L1", [Series("all", steps, [1 / step for step in steps])])],
        "usage": Usage(np.ones((64, 32), dtype=np.int64), "the held-out clips"),
        "config": {"model": {"width": 64}, "compile": False, "milestones": (1, 2), "grad_clip": None},
        "environment": {"torch": "2.13.0"},
        "command": "fastvq demo --out 'a b'",
        "notes": [NASTY],
    }
    return Report(**{**values, **changes})


@pytest.mark.parametrize("frames", [1, 2, 31])
@pytest.mark.parametrize("reach", [0.0, 3.0, 120.0])
def test_packed_joints_come_back_within_a_millimetre(frames: int, reach: float) -> None:
    joints = walk(frames, reach=reach)
    packed = json.loads(json.dumps(pack_joints(joints)))
    back = unpack_joints(packed)
    assert back.shape == joints.shape
    assert back.dtype == np.float32
    # Half a step, and what float32 keeps of a coordinate of that size.
    bound = packed["scale"] / 2 + np.abs(joints).max() * 2.0**-23
    assert np.abs(back - joints).max() <= bound <= 1e-3


def test_a_body_that_is_one_point_packs() -> None:
    joints = np.full((2, 22, 3), 1.5, dtype=np.float32)
    np.testing.assert_array_equal(unpack_joints(pack_joints(joints)), joints)


@pytest.mark.parametrize("shape", [(0, 22, 3), (4, 21, 3), (22, 3)])
def test_joints_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(T, 22, 3\)"):
        pack_joints(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_joints_that_are_not_finite_are_refused(value: float) -> None:
    joints = walk()
    joints[3, 4, 1] = value
    with pytest.raises(ValueError, match="finite"):
        pack_joints(joints)


def test_the_player_page_carries_its_clips(tmp_path: Path) -> None:
    clips = [scene("first"), scene(NASTY, tracks=[Track(NASTY, walk(7, seed=3))])]
    path = tmp_path / "deep" / "player.html"
    write_player(path, clips, title=NASTY)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    loaded = page.data["scenes"]
    assert isinstance(loaded, list)
    assert [entry["name"] for entry in loaded] == ["first", NASTY]
    for entry, clip in zip(loaded, clips, strict=True):
        assert entry["fps"] == 30.0
        for packed, track in zip(entry["tracks"], clip.tracks, strict=True):
            assert np.abs(unpack_joints(packed) - track.joints).max() < 1e-3
    assert NASTY in page.text
    assert list(tmp_path.glob("deep/*")) == [path]


def test_the_player_page_can_name_the_pose_codes_of_every_frame(tmp_path: Path) -> None:
    joints = generate_clips(7, seed=0, fps=20.0)[4].joints
    codes = PoseParser().parse(joints)[::4]
    coded = scene("reach", codes=CodeTrack(codes, 4, "written by the generator"))
    write_player(tmp_path / "player.html", [scene(), coded], title="motions")
    page = Page((tmp_path / "player.html").read_text(encoding="utf-8"))
    plain, found = page.data["scenes"]
    assert plain["codes"] is None
    assert (found["codes"]["moments"], found["codes"]["frames"]) == (len(codes), 4)
    wording = page.data["pose-code-wording"]
    bins = np.frombuffer(base64.b64decode(found["codes"]["data"]), np.uint8).reshape(-1, 70)
    assert sorted(wording["order"]) == list(range(70))
    for moment in range(0, len(codes), 5):
        active = [wording["starts"][category] + int(bins[moment, category]) for category in wording["order"]]
        assert sorted(active) == codes.indices[moment].tolist()
        # What is marked as telling is what the sentence of the frame tells.
        (sentence,) = sentences(codes[moment])
        told = [code for code in active if wording["telling"][code]]
        assert bool(told) == (sentence != "close to standing at ease")
        assert all(PHRASES[code].relation in sentence and PHRASES[code].subject in sentence for code in told)
    # Without codes the page does not carry the words.
    write_player(tmp_path / "plain.html", [scene()], title="motions")
    assert "pose-code-wording" not in Page((tmp_path / "plain.html").read_text(encoding="utf-8")).data


def test_the_legend_names_what_stands_behind(tmp_path: Path) -> None:
    tracks = (Track("Base", walk()), Track("Refined", walk(seed=1)))
    write_player(tmp_path / "two.html", [scene(tracks=tracks)], title="motions")
    assert "base, behind refined" in Page((tmp_path / "two.html").read_text(encoding="utf-8")).text
    write_player(tmp_path / "one.html", [scene(tracks=tracks[:1])], title="motions")
    assert "behind" not in Page((tmp_path / "one.html").read_text(encoding="utf-8")).text


def test_a_player_needs_a_scene(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_player(tmp_path / "player.html", [], title="none")


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_player(tmp_path / "file" / "player.html", [scene()], title="t")


def test_the_report_has_every_section_and_its_motions(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report())
    page = Page(path.read_text(encoding="utf-8"))
    sections = {"results", "motions", "training", "usage", "configuration", "environment", "command"}
    assert sections <= page.ids()
    for text in ("31.2 mm", "Original and reconstruction", "model.width", "2.13.0", "fastvq demo --out 'a b'", NASTY):
        assert text in page.text
    joints = unpack_joints(page.data["scene-1"][0]["tracks"][1])
    assert np.abs(joints - walk(seed=1)).max() < 1e-3


def test_nothing_in_the_report_comes_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report())
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not [tag for tag, values in page.attributes if {"src", "href", "srcset"} & set(values)]
    assert not re.search(r"https?://|@import|url\(", text)
    policies = [values["content"] for _, values in page.attributes if "http-equiv" in values]
    assert policies
    assert str(policies[0]).startswith("default-src 'none'")


def test_a_report_without_motions_or_training_is_still_a_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report(scenes=[], curves=[], usage=None))
    page = Page(path.read_text(encoding="utf-8"))
    assert "usage" not in page.ids()
    assert "There was no clip to show." in page.text


def test_bars_stand_for_every_group() -> None:
    counts = np.zeros((64, 16), dtype=np.int64)
    counts[:, 0] = 5
    counts[3] = 5
    svg = bar_chart(group_perplexity(counts), x_label="group", y_label="perplexity", limit=16, limit_label="16 codes")
    assert svg.count('class="bar"') == 64
    assert re.search(r"group 3: 16(\.0)?<", svg)
    assert "group 4: 1<" in svg


def test_perplexity_of_a_group() -> None:
    counts = np.array([[4, 4, 4, 4], [9, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(group_perplexity(counts), [4, 1, 0, 2], rtol=1e-12)


def test_a_line_leaves_a_gap_where_a_value_cannot_be_shown() -> None:
    svg = line_chart(
        [Series("loss", range(5), [1.0, 0.5, float("nan"), 0.0, 0.1])], x_label="s", y_label="l", log=True
    )
    line = re.search(r'class="line".* d="([^"]*)"', svg)
    assert line is not None
    assert re.findall("[ML]", line[1]) == ["M", "L", "M"]


def test_a_long_line_keeps_its_course_with_few_points() -> None:
    svg = line_chart([Series("loss", range(5000), [2.0] * 5000)], x_label="s", y_label="l")
    line = re.search(r' d="(M[^"]*L[^"]*)"', svg)
    assert line is not None
    heights = {point.split(" ")[1] for point in re.split("[ML]", line[1])[1:]}
    assert len(re.findall("[ML]", line[1])) == 240
    assert len(heights) == 1


@pytest.mark.parametrize("values", [[], [float("nan")], [0.0, -1.0]])
def test_a_chart_of_nothing_says_so(values: list[float]) -> None:
    series = [Series("loss", range(len(values)), values)]
    assert "Nothing was recorded" in line_chart(series, x_label="s", y_label="l", log=True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (-3, 900), (1e-5, 2e-5), (5, 5)])
def test_ticks_span_their_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.01, 10), (0.3, 0.4), (1, 1), (2e-6, 900)])
def test_log_ticks_span_their_values(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert ticks[0] <= low * 1.001
    assert ticks[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 12


@pytest.mark.parametrize(
    ("value", "text"), [(1234.0, "1,234"), (0.01234, "0.0123"), (0, "0"), (3.14159, "3.14"), (5e-6, "5.00e-06")]
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert number_text(value) == text


def test_nested_settings_become_one_level() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_the_scene_knows_left_from_right() -> None:
    payload = scene_payload(scene())
    assert payload["sides"][1:3] == [1, 2]
    assert payload["frames"] == 30


def test_factors_lie_on_their_side_of_one() -> None:
    svg = factor_chart({"a": [Factor("slow", 4.0, 2.0, 8.0), Factor("fast", 0.25, 0.2, 0.3)]}, x_label="times")
    bars = re.findall(r'<rect class="(bar[^"]*)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    (kind, one, width), (worse, left, other) = [(name, float(x), float(wide)) for name, x, wide in bars]
    assert (kind, worse) == ("bar", "bar worse")
    assert left + other == pytest.approx(one, abs=0.2)
    assert width == pytest.approx(other, abs=0.2)
    assert "Nothing was recorded" in factor_chart({}, x_label="times")


def test_a_long_name_is_cut_but_whole_on_hover() -> None:
    name = "a name that is far longer than any chart has room for"
    svg = factor_chart({"a": [Factor(name, 2.0, 1.5, 2.5)]}, x_label="times")
    assert f">{name}<" not in svg
    assert f"<title>{name}: 2" in svg
    assert 'text-anchor="end">a name' in svg


def test_stacks_share_a_scale() -> None:
    stacks = {"one": {"x": 30.0, "y": 10.0}, "two": {"y": 20.0}}
    svg = stack_chart(stacks, x_label="ms", colours={"y": 1, "x": 0}, notes={"two": "half as long"})
    parts = re.findall(r"width=\"([\d.]+)\" height=\"20\"><title>([^<]*)<", svg)
    assert [title for _, title in parts] == ["one, y: 10", "one, x: 30", "two, y: 20"]
    widths = [float(width) for width, _ in parts]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.3)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.3)
    assert "half as long" in svg
    assert "Nothing was recorded" in stack_chart({"one": {}}, x_label="ms", colours={})


def test_limits_are_dashed_and_marks_are_kept() -> None:
    roof = Series("roof", [1, 1000], [5, 5], limit=True)
    points = Series("points", [1, 10, 1000], [1, 2, 4], joined=False, marks=True, colour=COLOURS)
    svg = line_chart([roof, points], x_label="x", y_label="y", log=True, log_x=True)
    assert svg.count('class="mark"') == 3
    assert svg.count('class="limit"') == 1
    assert 'class="line"' not in svg
    assert re.findall(r'class="key (\w+)"', svg) == ["dashed", "diamond"]
