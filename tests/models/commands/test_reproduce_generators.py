"""``fastvq reproduce s3-gen`` through the command line, in toy sizes."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvq.models.claims.generator_runner import COLUMNS
from fastvq.models.claims.studies import study
from fastvq.models.training import generator


def test_generators_share_a_tokenizer_and_stand_beside_their_claims(
    fastvq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    outcome = fastvq("reproduce", "s3-gen", "--quick", "--out", out)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((out / "claims_s3-gen.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["run"] for row in rows] == [
        "none, guidance 2",
        "per_code, guidance 2",
        *(f"per_time, guidance {scale}" for scale in (0, 1, 2, 4, 6)),
    ]
    assert [float(row["guidance"]) for row in rows[2:]] == [0, 1, 2, 4, 6]
    assert all(float(row["fid"]) > 0 for row in rows)
    assert all(0 <= float(row["action"]) <= 1 for row in rows)
    page = (out / "claims_s3-gen.md").read_text()
    assert all(claim.sentence in page for claim in study("s3-gen").claims)
    assert "0.258 → 0.149 → 0.134" in page
    assert "not measured" not in page
    assert "the verdicts mean nothing" in page
    assert "| the clips themselves |" in page
    assert "| after the tokenizer |" in page
    assert "| chance |" in page
    assert "`fastvq reproduce s3-gen --quick --steps 4 --width 16 --seeds 0`" in page
    assert str(tmp_path) not in page
    lengths = {line.count("|") for line in page[page.index("| run |") :].strip().splitlines()}
    assert len(lengths) == 1, "a heading breaks the table"
    assert (
        len(
            {
                (out / f"{run}_seed0" / "tokenizer" / "model.safetensors").read_bytes()
                for run in ("none", "per_code", "per_time")
            }
        )
        == 1
    )
    # Nothing is done twice, and a run that was trained and not measured is not trained again.
    (out / "per_code_seed0.json").unlink()
    monkeypatch.setattr(generator._GeneratorRun, "advance", lambda _: pytest.fail("a step was taken"))
    assert fastvq("reproduce", "s3-gen", "--quick", "--out", out).code == 0
    assert (out / "claims_s3-gen.md").read_text() == page


def test_ctrl_c_ends_it_and_the_same_command_goes_on_with_a_tokenizer_of_ones_own(
    fastvq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("train", "rvqvae", "--clips", 8, "--out", tmp_path / "own", "--steps", 2, "--width", 16, "--output-dim")
    assert fastvq(*own, 16, "--batch-size", 4, "--warmup", 0, "--skip-report").code == 0
    given = ("reproduce", "s3-gen", "--quick", "--tokenizer", tmp_path / "own", "--out", tmp_path / "out")

    def stopped(self: Any) -> Any:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    advance = generator._GeneratorRun.advance
    with monkeypatch.context() as patch:
        patch.setattr(generator._GeneratorRun, "advance", stopped)
        outcome = fastvq(*given)
    assert outcome.code == 130
    assert "The same command goes on from here." in outcome.out
    assert not list((tmp_path / "out").glob("claims_*"))
    outcome = fastvq(*given)
    assert outcome.code == 0
    assert "Resuming at step 3" in outcome.out
    assert not (tmp_path / "out" / "tokenizer").exists()
    assert "--tokenizer TOKENIZER" in (tmp_path / "out" / "claims_s3-gen.md").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["s3-gen", "--steps", "1"], "--steps must be an integer of at least 2, got 1"),
        (["s3-gen", "--seeds", "1", "1"], "--seeds must differ, got 1 1"),
        (["s3-gen", "--width", "6"], "heads must divide dim, got dim=6 and heads=4"),
        (["s3-gen", "--tokenizer", "nowhere"], "there is no folder nowhere"),
        (["s3", "--tokenizer", "nowhere"], "s3 trains tokenizers: leave it out"),
    ],
)
def test_what_cannot_be_is_refused(
    fastvq: Callable[..., Any], tmp_path: Path, options: list[str], complaint: str
) -> None:
    outcome = fastvq("reproduce", *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_generator_that_builds_on_another_stands_beside_it(
    fastvq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    outcome = fastvq("reproduce", "s1-gen", "--quick", "--out", out)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((out / "claims_s1-gen.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["base", "base_refine"]
    assert [row["kind"] for row in rows] == ["pgr2m-base", "pgr2m-refine"]
    page = (out / "claims_s1-gen.md").read_text()
    assert all(claim.sentence in page for claim in study("s1-gen").claims)
    assert "not measured" not in page
    weights = [out / folder / "model.safetensors" for folder in ("base_seed0", "base_refine_seed0/base")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (out / "base_refine_seed0.json").unlink()
    monkeypatch.setattr(generator._GeneratorRun, "advance", lambda _: pytest.fail("a step was taken"))
    assert fastvq("reproduce", "s1-gen", "--quick", "--out", out).code == 0
    assert (out / "claims_s1-gen.md").read_text() == page
