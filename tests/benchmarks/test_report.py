"""The page of benchmarks: well formed, escaped, from nowhere else, and with ratios of one run only."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastvq.benchmarks import measured, plots, report
from fastvq.benchmarks.rows import COLUMNS, SCHEMA
from fastvq.benchmarks.shapes import Shape
from fastvq.models.errors import UserError

VOID = {"meta", "br", "input", "img", "hr", "link"}
NASTY = '</script><script>alert("x")</script><!-- & \' " é'
RESULTS = sorted((Path(report.__file__).resolve().parent / "results" / "cpu").glob("*.csv"))


class Page(HTMLParser):
    """Checks that tags nest, and collects elements and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def having(self, kind: str) -> list[dict[str, str | None]]:
        return [values for _, values in self.elements if kind in (values.get("class") or "").split()]

    def sections(self) -> set[str | None]:
        return {values.get("id") for tag, values in self.elements if tag == "section"}


def row(**changes: object) -> dict[str, str]:
    """A row of ours at a small shape; changes by column."""
    values = dict.fromkeys(COLUMNS, "") | {
        "schema": SCHEMA, "op": "nearest", "pass": "search", "shape": "a", "G": 1, "N": 4096, "K": 512, "D": 64,
        "Q": 1, "dtype": "float32", "precision": "exact", "impl": "cpu", "reps": 9, "median_ms": 2.0, "p20_ms": 1.9,
        "p80_ms": 2.2, "floor_ms": 1.0, "floor_kind": "float32 multiply-adds", "mismatch_rows": 0, "gate": "pass",
        "device": "a processor", "dirty": "false", "commit": "abc", "utc": "2026-01-01T00:00:00Z", "run_id": "run1",
    }  # fmt: skip
    return {name: str(value) for name, value in (values | {key.rstrip("_"): v for key, v in changes.items()}).items()}


def peer(**changes: object) -> dict[str, str]:
    return row(**{"impl": "", "precision": "", "peer": "faiss", "peer_version": "1.9", "median_ms": 8.0} | changes)


def written(tmp_path: Path, rows, runs=None) -> Page:
    path = tmp_path / "deep" / "page.html"
    report.write_page(rows, path, runs)
    assert list(path.parent.iterdir()) == [path]
    return Page(path)


def test_the_committed_rows_make_a_page_that_needs_nothing_else(tmp_path, capsys):
    path = tmp_path / "page.html"
    assert report.main([*map(str, RESULTS), "--out", str(path)]) == 0
    page = Page(path)
    assert {"peers", "ratios", "roofline", "scaling", "training", "rows", "sources", "reading"} <= page.sections()
    assert not [tag for tag, values in page.elements if {"src", "href", "srcset"} & set(values)]
    assert not re.search(r"https?://|@import|url\(", page.source)
    assert "vector-quantize-pytorch" in page.text
    assert "python -m benchmarks.scaling" in page.text
    assert str(path) in capsys.readouterr().out


def test_hostile_names_are_text(tmp_path):
    fields = (
        "op",
        "pass",
        "shape",
        "dtype",
        "peer",
        "peer_version",
        "floor_kind",
        "device",
        "torch",
        "commit",
        "run_id",
    )
    hostile = dict.fromkeys(fields, NASTY)
    ours = row(**{name: text for name, text in hostile.items() if not name.startswith("peer")} | {"impl": NASTY})
    runs = {NASTY: {"command": NASTY, "losses": {NASTY: {NASTY: {"steps": [1, 2], "loss": [2.0, 1.0]}}}}}
    page = written(tmp_path, [ours, peer(**hostile)], runs)
    assert page.text.count(NASTY) > 10
    assert [tag for tag, _ in page.elements].count("script") == 1
    step = {"op": "motion-vqvae", "pass_": "train-step", "shape": NASTY}
    section = {**step, "pass_": f"train-step:{NASTY}", "median_ms": 0.5}
    scale = {"pass_": "scale:N", "peak_mib": 3.0, "shape": NASTY}
    page = written(tmp_path, [row(**step), row(**section), row(**scale), row(**scale, N=8192)])
    assert {"memory", "scaling", "training"} <= page.sections()
    assert [tag for tag, _ in page.elements].count("script") == 1


@pytest.mark.parametrize("column", ["median_ms", "run_id", "G"])
def test_a_missing_column_is_one_sentence(tmp_path, column):
    path = tmp_path / "page.html"
    broken = row()
    del broken[column]
    with pytest.raises(
        ValueError, match=rf"row 2 lacks {column}: give rows with all columns of schema fastvq-bench/1"
    ):
        report.write_page([row(), broken], path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected at least one, got none"),
        ([row(schema="fastvq-bench/9")], "row 1 holds schema 'fastvq-bench/9'"),
        ([row(median_ms="fast")], "median_ms = 'fast', expected a number"),
        ([row(p80_ms="nan")], "p80_ms = 'nan'"),
        ([row(peak_mib="-1")], "peak_mib = '-1', expected a number of at least 0"),
        ([row(p20_ms=0)], "p20_ms = '0', expected a number above 0"),
        ([row(N=0)], "N = '0', expected a number above 0"),
    ],
)
def test_rows_that_are_none_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        report.write_page(rows, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.write_page([row()], tmp_path / "file" / "page.html")


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("schema,op\nfastvq-bench/1,nearest\n")
    assert report.main([str(path), "--out", str(tmp_path / "page.html")]) == 2
    assert report.main([str(tmp_path / "none.csv"), "--out", str(tmp_path / "page.html")]) == 2
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(row().values()) + "\n")
    path.with_suffix(".json").write_text('{"schema": "other/1"}')
    assert report.main([str(path), "--out", str(tmp_path / "page.html")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "lacks" in lines[0]
    assert "none.csv" in lines[1]
    assert "rows.json holds schema 'other/1'" in lines[2]


def test_ratios_stay_within_a_run_and_a_dtype():
    narrow, failed = {"dtype": "bfloat16"}, {"run_id": "run3"}
    rows = measured.parse(
        [
            *(row(median_ms=2.0), peer(median_ms=8.0), peer(median_ms=3.0, **narrow), row(median_ms=1.0, **narrow)),
            *(row(median_ms=1.5, impl="tiled"), row(precision="fast", median_ms=1.0), peer(run_id="run2")),
            *(row(median_ms=1.0, gate="fail", **failed), peer(**failed)),
        ]
    )
    comparison = measured.Comparison(rows)
    ratios = [None if found is None else found[0] for found in map(comparison.ratio, rows)]
    assert ratios == [None, 4.0, 3.0, None, 0.75, 0.5, None, None, None]
    assert comparison.ratio(rows[1])[1:] == (1.9 / 2.2, 2.2 / 1.9)


def test_the_newest_run_of_each_measurement_is_shown(tmp_path):
    late = {"run_id": "run2", "utc": "2026-02-01T00:00:00Z"}
    rows = [row(), peer(), row(shape="b"), row(**late), row(pass_="scale:N"), row(pass_="scale:N", N=8192, **late)]
    kept = measured.newest(measured.parse(rows))
    assert [(entry.pass_, entry.shape.name, entry.shape.N, entry.run) for entry in kept] == [
        ("search", "b", 4096, "run1"), ("search", "a", 4096, "run2"), ("scale:N", "a", 8192, "run2"),
    ]  # fmt: skip
    step = {"op": "motion-vqvae", "shape": "width 512"}
    steps = [row(**step, pass_="quantizer"), row(**step, pass_="train-step", **late)]
    assert [entry.run for entry in measured.newest(measured.parse(steps))] == ["run2"]
    assert "3 older rows" in written(tmp_path, rows).text


def test_a_peer_that_is_faster_is_counted_and_named(tmp_path):
    page = written(tmp_path, [row(), peer(median_ms=1.0), peer(peer="other", median_ms=6.0)])
    tiles = re.findall(r'tile-value">([^<]*)<.*?tile-label">([^<]*)<', page.source)
    assert ("2", "comparisons with peers") in tiles
    assert ("1", "of them where fastvq is slower") in tiles
    assert "nearest search a" in page.text
    assert len(page.having("worse")) == 1


def test_roofs_are_the_machine_s_own_rows_or_follow_from_floors():
    shape = Shape("a", 1, 4096, 512, 64)
    by_floor = [
        row(floor_ms=1e3 * shape.operations / 2e11),
        row(floor_ms=1e3 * shape.io_bytes / 1e10, floor_kind="bytes copied"),
    ]
    rates, traffic = plots.roofs(measured.parse(by_floor))
    assert rates == {"float32 multiply-adds": pytest.approx(2e11)}
    assert traffic == pytest.approx(1e10)
    product = row(op="machine", pass_="product", N=2048, K=2048, D=2048, median_ms=1e3 * 2 * 2048**3 / 3e11)
    copy = row(op="machine", pass_="copy", N=2**29, K=1, D=1, median_ms=1e3 * 2**29 / 2e10)
    rates, traffic = plots.roofs(measured.parse([*by_floor, product, copy]))
    assert rates == {"product": pytest.approx(3e11)}
    assert traffic == pytest.approx(2e10)
    assert plots.roofs(measured.parse([row(floor_ms="", floor_kind="")])) == ({}, 0.0)


def test_a_roofline_needs_two_shapes(tmp_path):
    assert "roofline" not in written(tmp_path, [row(), peer()]).sections()
    page = written(tmp_path, [row(), peer(), row(shape="b", D=512), peer(shape="b", D=512)])
    assert len(page.having("mark")) == 4
    assert len(page.having("dashed")) == 1


def test_the_parts_of_a_step_add_up_to_the_step(tmp_path):
    step = {"op": "motion-vqvae", "shape": "width 512", "floor_kind": "", "floor_ms": ""}
    rows = [row(**step, pass_="train-step", median_ms=100.0), row(**step, pass_="train-step:encoder", median_ms=30.0)]
    rows += [row(**step, pass_="train-step:quantizer", median_ms=25.0)]
    page = written(tmp_path, rows)
    titles = re.findall(r'class="part".*?<title>[^,]*, ([^<]*)</title>', page.source)
    assert titles == ["encoder: 30", "quantizer: 25", "everything else: 45"]
    widths = [float(values["width"]) for values in page.having("part")]
    assert widths[0] == pytest.approx(1.2 * widths[1], abs=0.2)
    assert sum(widths) == pytest.approx(widths[0] / 0.3, abs=0.5)


def test_steps_are_held_against_the_fastest_peer_of_their_dtype(tmp_path):
    step, narrow = {"op": "motion-vqvae", "pass_": "train-step"}, {"dtype": "bfloat16"}
    rows = [row(**step, median_ms=100), row(**step, **narrow, impl="cpu, all levers", median_ms=40)]
    rows += [peer(**step, median_ms=150), peer(**step, peer="other", median_ms=130)]
    rows += [peer(**step, peer="no quantizer", median_ms=90)]
    assert re.findall(r">([\d.]+)\S as fast<", written(tmp_path, rows).source) == ["1.30", "3.25"]
    rows += [peer(**step, **narrow, median_ms=60)]
    assert re.findall(r">([\d.]+)\S as fast<", written(tmp_path, rows).source) == ["1.30", "1.50"]


def test_a_file_given_twice_counts_once(tmp_path):
    page = written(tmp_path, [row(), peer(), row(), peer()])
    assert len([tag for tag, _ in page.elements if tag == "tr"]) == 2 + 2 + 3


def test_a_table_carries_what_it_sorts_by(tmp_path):
    page = written(tmp_path, [row(), peer()])
    cells = [values["data-value"] for tag, values in page.elements if tag == "td" and "data-value" in values]
    assert cells == ["2", "0.3", "1", "0.5", "", "0", "8", "0.3", "4", "0.125", "", "0"]


def test_losses_beside_the_rows_are_drawn(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(row().values()) + "\n")
    curves = {"steps": [0, 10, 20], "loss": [3.0, 2.0, 1.0]}
    facts = {"run1": {"command": "measure this", "losses": {"width 512": {"plain": curves, "fast": curves}}}}
    path.with_suffix(".json").write_text(json.dumps({"schema": report.RUNS_SCHEMA, "runs": facts}))
    out = tmp_path / "page.html"
    assert report.main([str(path), "--out", str(out)]) == 0
    page = Page(out)
    assert len(page.having("line")) == 2
    assert "measure this" in page.text


@pytest.mark.parametrize("curves", [[1.0], {"plain": [1.0]}, {"plain": {"steps": [1, 2], "loss": [1.0]}}])
def test_losses_of_another_form_are_refused(tmp_path, curves):
    with pytest.raises(ValueError, match="losses of run run1, width 512: expected"):
        report.write_page([row()], tmp_path / "page.html", {"run1": {"losses": {"width 512": curves}}})
    assert not list(tmp_path.iterdir())


def test_a_file_names_the_command_that_wrote_it():
    assert report._command("training_step") == "python -m benchmarks.training_step"
    assert report._command("registry") == report._command("rows of mine") == report._command("mine") == "fastvq bench"
