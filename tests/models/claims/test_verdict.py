from dataclasses import replace

import pytest

from fastvq.models.claims.study import Claim, Run, Study, View
from fastvq.models.claims.verdict import _chain, judge, markdown

A, B, C = View("a"), View("b", 1), View("b")


def row(view: View, seed: int, mpjpe: float, **more: float) -> dict:
    return {
        "study": "x",
        "run": view.run,
        "streams": "all" if view.streams is None else view.streams,
        "seed": seed,
        "steps": 10,
        "seconds": 2.0,
        "parameters": 1000,
        "codes_per_second": 5.0,
        "mpjpe_mm": mpjpe,
        **more,
    }


def claim(*order: View, larger: bool = False, **more: object) -> Claim:
    return Claim("it helps", "paper", order, "mpjpe_mm", larger, **more)


def test_better_for_every_seed_is_reproduced():
    rows = [row(A, 0, 40), row(C, 0, 30), row(A, 1, 44), row(C, 1, 36)]
    verdict = judge(claim(A, C), rows)
    assert verdict.outcome == "reproduced"
    assert verdict.measured == (42, 33)
    assert judge(claim(A, C, larger=True), rows).outcome == "did not reproduce"
    assert judge(claim(C, A, larger=True), rows).outcome == "reproduced"


def test_a_better_mean_is_not_enough_where_a_seed_says_otherwise():
    verdict = judge(claim(A, C), [row(A, 0, 50), row(C, 0, 30), row(A, 7, 40), row(C, 7, 41)])
    assert (verdict.outcome, verdict.reason) == ("did not reproduce", "the mean is better, but not with seed 7")


def test_a_tie_is_no_improvement():
    assert judge(claim(A, C), [row(A, 0, 40), row(C, 0, 40)]).outcome == "did not reproduce"


def test_every_step_of_an_order_must_improve():
    rows = [row(A, 0, 40), row(B, 0, 42), row(C, 0, 30)]
    verdict = judge(claim(A, B, C), rows)
    assert (verdict.outcome, verdict.reason) == ("did not reproduce", "no better: b, first 1 42 after a 40")
    assert judge(claim(B, A, C), rows).outcome == "reproduced"


def test_without_the_metric_nothing_is_decided():
    only = [row(A, 0, 40), row(C, 1, 30)]
    assert judge(claim(A, C), only).outcome == "not measured"
    fid = Claim("it helps", "paper", (A, C), "fid")
    assert judge(fid, [row(A, 0, 1, fid=""), row(C, 0, 1, fid=2.0)]).outcome == "not measured"


def test_the_page_has_both_figures_and_says_what_held():
    published = claim(A, C, published=(0.041, 0.015), published_as="FID", why="because")
    study = Study(
        "x",
        "X",
        (Run("a", "rvqvae"), Run("b", "rvqvae", streams=(1, None))),
        (published, claim(C, A)),
        "All is equal.",
    )
    rows = [row(A, 0, 40), row(B, 0, 35), row(C, 0, 30), row(A, 1, 42), row(B, 1, 35), row(C, 1, 30)]
    page = markdown(study, rows, {"Data": "two clips"}, ["less data."])
    assert "1 of 2 claims of the paper reproduced in direction.\n" in page
    own = replace(study, claims=(published, replace(published, source="ours"), replace(published, metric="fid")))
    assert "1 of 1 claims of the paper reproduced in direction; 1 of 1 further checks of ours held.\n" in markdown(
        own, rows, {}, []
    )
    assert "Nothing was measured.\n" in markdown(replace(own, claims=own.claims[2:]), rows, {}, [])
    assert "0.041 → 0.015, -63 % (FID) | 41 → 30, -27 % (joint error, mm) | **reproduced** |" in page
    assert (
        "not at hand | 30 → 41, +37 % (joint error, mm) | **did not reproduce**: no better: a 41 after b 30 |" in page
    )
    assert "| b, first 1 | 5 | 0.00 M | 10 | 2 | 0 1 | 35 (35 to 35) |" in page
    assert "- Data: two clips" in page
    assert "the motions themselves" not in page
    assert "- less data.\n- because.\n" in page
    assert "fid" not in page.lower().replace("(fid)", "")


def test_a_study_has_numbers_of_its_own_and_the_motions_theirs():
    runs = (Run("a", "rvqvae"), Run("b", "rvqvae", streams=(1, None)))
    spread = Claim("it spreads", "paper", (A, C), "angle", larger=True)
    study = Study("x", "X", runs, (spread,), "", metrics={"angle": "angle, degrees"})
    rows = [
        row(view, 0, 40, angle=angle, foot_skate=0.2, foot_skate_original=0.05) for view, angle in ((A, 3), (C, 9))
    ]
    page = markdown(study, rows, {}, [])
    assert "3 → 9, +200 % (angle, degrees) | **reproduced**" in page
    assert "| joint error, mm | foot skate, share of frames | angle, degrees |" in page
    (own,) = [line for line in page.splitlines() if "the motions themselves" in line]
    assert [cell.strip() for cell in own.split("|")] == ["", "the motions themselves", *[""] * 6, "0.05", "", ""]


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_figures_that_are_none_never_hold(text):
    assert judge(claim(A, C), [row(A, 0, 40), row(C, 0, float(text))]).outcome == "did not reproduce"


def test_no_change_has_no_minus():
    assert _chain((1000.0, 999.9)) == "1000 → 999.9, +0 %"
    assert _chain((0.041, 0.015)) == "0.041 → 0.015, -63 %"
