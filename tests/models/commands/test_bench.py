"""``fastvq bench``: the registry from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvq.benchmarks.rows import read_rows


def test_a_few_ops_give_a_table_rows_and_a_page(fastvq: Callable[..., Any], tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.csv", tmp_path / "page.html"
    outcome = fastvq(
        *("bench", "--quick", "--ops", "segment_sum", "lookup", "--shapes", "c", "--out", rows, "--html", page)
    )
    assert outcome.code == 0, outcome.err
    assert "segment_sum c" in outcome.out
    assert "torch index_add" in outcome.out
    assert {row["op"] for row in read_rows(rows)} == {"machine", "segment_sum", "lookup"}
    assert "torch index_add" in page.read_text()
    outcome = fastvq("bench", "--compare", rows, rows)
    assert outcome.code == 0
    assert "agree within 15%" in outcome.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--ops", "neares"), "there is no op neares in the registry"),
        (("--shapes", "z"), "there is no shape z in the registry"),
        (("--compare", "a.csv", "b.csv"), "a.csv is no file: give a CSV file of benchmark rows"),
        (("--html", "page.txt"), "must end in .html"),
        (("--device", "tpu"), "--device tpu cannot be used"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    fastvq: Callable[..., Any], options: tuple[str, ...], sentence: str
) -> None:
    outcome = fastvq("bench", *options)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
