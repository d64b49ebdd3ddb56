"""The README's numbers are those of the committed rows."""

import pytest

from fastvq.benchmarks import readme
from fastvq.benchmarks.rows import COLUMNS


def test_the_readme_agrees_with_the_rows():
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.rewritten(text, readme.numbers()) == text, "run python -m benchmarks.readme"


def step(peer, ms, run, *, impl="", pass_="train-step", dtype="float32", utc="1"):
    values = dict.fromkeys(COLUMNS, "1") | {"shape": readme.STEP_SHAPE, "pass": pass_, "dtype": dtype, "utc": utc}
    return values | {"peer": peer, "impl": impl, "median_ms": str(ms), "run_id": run}


def test_only_rows_of_one_run_are_compared_and_of_the_newest():
    vqp = "vector-quantize-pytorch"
    rows = [
        *(step("", 300, "old", impl="cpu"), step(vqp, 400, "old")),
        *(step("", 200, "new", impl="cpu", utc="2"), step(vqp, 260, "new", utc="2")),
        step(f"{vqp} heads", 250, "new", utc="2"),  # the faster one of its forms
        *(step("", 3, "new", impl="cpu", pass_="quantizer"), step(vqp, 90, "new", pass_="quantizer")),
        *(
            step("", 1, "half", impl="cpu", utc="3"),
            step("", 9, "new", impl="cpu, all levers", utc="2", dtype="bfloat16"),
        ),
    ]
    text = readme.step_sentences(rows)
    assert "200 ms, and 250 ms with" in text
    assert "in bfloat16, with all that our trainer can do, 9.0 ms.**" in text
    assert "takes 3.0 ms of that against 90 ms" in text
    with pytest.raises(ValueError, match="no run of training_step"):
        readme.step_sentences([rows[0], *rows[5:]])


def test_the_places_of_the_numbers_must_be_there_once():
    one, other = (readme.BEGIN.format(place) + "old" + readme.END for place in ("a step", "a search"))
    text = f"a\n{one}\nb\n{other}\n"
    changed = readme.rewritten(text, {"a search": r"new \1"})
    assert changed == f"a\n{one}\nb\n{readme.BEGIN.format('a search')}new \\1{readme.END}\n"
    for broken in (text + text, text.replace("<!-- end", "<!- end", 1)):
        with pytest.raises(ValueError, match=r"numbers of a step.* once"):
            readme.rewritten(broken, {"a step": "new"})
