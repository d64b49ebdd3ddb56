"""``fastvq reproduce`` through the command line, in toy sizes."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvq.models.claims.studies import study
from fastvq.models.training import trainer


def test_claims_beside_measurements(fastvq: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = fastvq("reproduce", "s3", "--quick", "--out", out)
    assert outcome.code == 0
    assert "the motions are made up" in outcome.out
    rows = list(csv.DictReader((out / "claims_s3.csv").read_text().splitlines()))
    assert tuple(rows[0]) == study("s3").columns()
    assert len(rows) == sum(len(run.streams) for run in study("s3").runs)
    assert all(float(row["mpjpe_mm"]) > 0 for row in rows)
    page = (out / "claims_s3.md").read_text()
    assert "`fastvq reproduce s3 --quick --steps 4" in page
    assert all("the verdicts mean nothing" in text for text in (page, outcome.out))
    assert all(claim.sentence in page for claim in study("s3").claims)
    assert "40 made-up motions at 20 frames a second" in page
    assert all(float(row["fid"]) > 0 for row in rows)
    assert "FID (fastvq evaluator, trained on made-up motions), 128 dimensions, over" in page
    assert str(tmp_path) not in page
    again = fastvq("reproduce", "s3", "--quick", "--out", out)
    assert again.code == 0
    assert "step 4/4" in outcome.out
    assert "step 4/4" not in again.out
    assert (out / "claims_s3.md").read_text() == page
    assert len(list(tmp_path.glob("evaluator-*-quick"))) == 1
    (evaluator,) = tmp_path.glob("evaluator-*-quick")
    given = fastvq("reproduce", "s3", "--quick", "--out", out, "--evaluator", evaluator)
    assert given.code == 0
    assert "step 4/4" not in given.out


def test_ctrl_c_ends_it_and_the_same_command_goes_on(
    fastvq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any) -> Any:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    advance = trainer._Run.advance
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "advance", stopped)
        outcome = fastvq("reproduce", "s3", "--quick", "--out", tmp_path / "out")
    assert outcome.code == 130
    assert "Stopped at step 3 of 4" in outcome.out
    assert "The same command goes on from here." in outcome.out
    assert not list((tmp_path / "out").glob("claims_*"))
    outcome = fastvq("reproduce", "s3", "--quick", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert "Resuming at step 3" in outcome.out
    assert (tmp_path / "out" / "claims_s3.md").is_file()


def test_pgr2m_s_claims_have_their_orthogonality(fastvq: Callable[..., Any], tmp_path: Path) -> None:
    assert fastvq("reproduce", "s1", "--quick", "--out", tmp_path / "out").code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "claims_s1.csv").read_text().splitlines()))
    assert [(row["run"], row["streams"]) for row in rows[:3]] == [
        ("pose_alone", "all"),
        ("chosen", "70"),
        ("chosen", "all"),
    ]
    assert all(0 < float(row["centroid_cosine"]) < 1 for row in rows)
    page = (tmp_path / "out" / "claims_s1.md").read_text()
    assert "not measured" not in page
    lengths = {line.count("|") for line in page[page.index("| run |") :].strip().splitlines()}
    assert len(lengths) == 1, "a heading breaks the table"


def test_heatmaps_are_measured_as_pictures(fastvq: Callable[..., Any], tmp_path: Path) -> None:
    outcome = fastvq("reproduce", "s2", "--quick", "--width", "8", "--out", tmp_path / "out")
    assert outcome.code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "claims_s2.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [run.name for run in study("s2").runs]
    assert all(-1 < float(row["ssim"]) < 1 and 0 < float(row["t_std"]) < 1 for row in rows)
    # 4 windows of 8 frames, 32 pixels square.
    assert {
        row["run"]: float(row["codes_per_second"]) for row in rows if row["run"] in ("adversarial", "f4", "f8")
    } == {
        "adversarial": 4 * 16 * 16 * 30 / 8,
        "f4": 2 * 8 * 8 * 30 / 8,
        "f8": 1 * 4 * 4 * 30 / 8,
    }
    page = (tmp_path / "out" / "claims_s2.md").read_text()
    assert "not measured" not in page
    assert "made-up motions at 30 frames a second" in page
    assert "4 steps, batches of 1, windows of 8 frames of 32 x 32 pixels" in page
    assert "FID" not in page
    refused = fastvq("reproduce", "s2", "--quick", "--out", tmp_path / "new", "--evaluator", tmp_path)
    assert refused.code == 2
    assert "--evaluator measures motions, which s2 does not reconstruct: leave it out" in refused.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["s9"], "there are no claims of 's9' to test"),
        (["s3", "--steps", "1"], "--steps must be an integer of at least 2, got 1"),
        (["s3", "--steps", "0"], "--steps must be an integer of at least 2, got 0"),
        (["s3", "--seeds", "1", "1"], "--seeds must differ, got 1 1"),
        (["s3", "--seeds", "-1"], "--seeds must be an integer of at least 0"),
        (["s3", "--width", "-8"], "--width must be an integer of at least 1"),
        (["s3", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(
    fastvq: Callable[..., Any], tmp_path: Path, options: list[str], complaint: str
) -> None:
    outcome = fastvq("reproduce", *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())
