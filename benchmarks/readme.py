"""The README's numbers, taken from the committed rows: ``python -m benchmarks.readme`` writes them again.

They stand between ``<!-- numbers of PLACE -->`` and ``<!-- end of numbers -->``; places are "a step" and "a search".
A test compares what stands there with the rows. Every comparison is of rows of one run, the newest that has both.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fastvq.benchmarks import peers, table
from fastvq.benchmarks.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
BEGIN, END = "<!-- numbers of {} -->\n", "\n<!-- end of numbers -->"
STEP_SHAPE = "width 512, 16 windows of 64"
SEARCHES = ("nearest", "residual_nearest")
WIDTH = 118

Text = Mapping[str, str]


def is_ours(row: Text) -> bool:
    """Our quantizer under the plain trainer: levers stand behind a comma."""
    return not row["peer"] and "," not in row["impl"]


def has_all_levers(row: Text) -> bool:
    """Our quantizer, and all that our trainer can do beyond it but compiling."""
    return not row["peer"] and row["impl"].endswith(", all levers")


def is_peers(row: Text) -> bool:
    """vector-quantize-pytorch in either form, grouped or with heads."""
    return row["peer"].startswith(peers.VQP)


def newest_pair(
    rows: Sequence[Text], pass_: str, dtype: str, one: Callable[[Text], bool], other: Callable[[Text], bool]
) -> tuple[Text, Text] | None:
    """Two rows of a training step of the newest run that has both, the latter its fastest; None where no run has."""
    found = None
    for run in dict.fromkeys(row["run_id"] for row in rows):
        mine = [
            row
            for row in rows
            if (row["run_id"], row["pass"], row["dtype"], row["shape"]) == (run, pass_, dtype, STEP_SHAPE)
        ]
        ours, theirs = next(filter(one, mine), None), min(filter(other, mine), key=_median, default=None)
        if ours and theirs and (found is None or ours["utc"] >= found[0]["utc"]):
            found = ours, theirs
    return found


def step_sentences(rows: Sequence[Text]) -> str:
    """One training step of the motion tokenizer, with our quantizer and with the peer's.

    Raises:
        ValueError: no run timed both.
    """
    whole = newest_pair(rows, "train-step", "float32", is_ours, is_peers)
    alone = newest_pair(rows, "quantizer", "float32", is_ours, is_peers)
    if whole is None or alone is None:
        raise ValueError(f"no run of training_step.csv timed both quantizers at {STEP_SHAPE}: run it again")
    ours, theirs = whole
    same_run = [row for row in rows if row["run_id"] == ours["run_id"]]
    text = (
        f"**One training step of the motion tokenizer: {_ms(ours)} ms, and {_ms(theirs)} ms with {peers.VQP} "
        f"{theirs['peer_version']} in the same place"
    )
    half = newest_pair(same_run, "train-step", "bfloat16", is_ours, is_peers)
    levers = newest_pair(same_run, "train-step", "bfloat16", has_all_levers, has_all_levers)
    if half:
        text += f"; in bfloat16 {_ms(half[0])} ms and {_ms(half[1])} ms"
    elif levers:
        text += f"; in bfloat16, with all that our trainer can do, {_ms(levers[0])} ms"
    groups = f"{alone[0]['G']} groups of {alone[0]['K']} codes of {alone[0]['D']} dimensions, {alone[0]['N']} rows"
    return (
        f"{text}.** The quantizer itself ({groups}, forward, backward and update) takes {_ms(alone[0])} ms of that "
        f"against {_ms(alone[1])} ms. Width 512, batches of 16 windows of 64 frames, {ours['device']}, medians of "
        "steps taken in turns "
        "([rows](benchmarks/results/cpu/training_step.csv), `python -m benchmarks.training_step`)."
    )


def search_sentences(rows: Iterable[Text]) -> str:
    """The exact search alone, at every size of the registry: how its ratios range, and its best share of the floor.

    Raises:
        ValueError: no search was timed.
    """
    cases = table.last_cases([row for row in rows if row["op"] in SEARCHES])
    if not cases:
        raise ValueError("registry.csv holds no search: run fastvq bench --out on it")
    ratios: dict[str, list[float]] = {"torch": [], "faiss": [], peers.VQP: []}
    for case in cases.values():
        found = table.ratios(case)
        torch_own = [value for name, value in found.items() if name.startswith("torch")]
        if torch_own:
            ratios["torch"].append(min(torch_own))
        for name in ("faiss", peers.VQP):
            if name in found:
                ratios[name].append(found[name])
    spans = {name: f"{min(values):.1f} to {max(values):.0f} times" for name, values in ratios.items() if values}
    text = f"The search alone, exact, at {len(cases)} sizes: {spans['torch']} as fast as the best of plain torch"
    shown = {"faiss": "FAISS", peers.VQP: peers.VQP}
    text += "".join(f", {spans[name]} as {title}'s" for name, title in shown.items() if name in spans)
    share = max(share for case in cases.values() if (share := table.share_of_floor(case[0])) is not None)
    if share > 1:
        text += (
            f"; up to {share:.1f} times as fast as float32 multiply-adds could be, since it goes through bytes "
            "or bfloat16 and checks every close call"
        )
    return f"{text} ([rows](benchmarks/results/cpu/registry.csv), `fastvq bench`)."


def numbers() -> dict[str, str]:
    """The paragraphs by their places, wrapped as the README is."""
    found = {
        "a step": step_sentences(read_rows(RESULTS / "training_step.csv")),
        "a search": search_sentences(read_rows(RESULTS / "registry.csv")),
    }
    return {place: _wrapped(text) for place, text in found.items()}


def rewritten(text: str, paragraphs: Mapping[str, str]) -> str:
    """The README with other paragraphs in their places.

    Raises:
        ValueError: the comments of a place are not there once each, in order.
    """
    for place, paragraph in paragraphs.items():
        begin, end = BEGIN.format(place), END
        pattern = re.compile(re.escape(begin) + "((?!<!--).)*?" + re.escape(end), flags=re.DOTALL)
        found = list(pattern.finditer(text))
        if len(found) != 1:
            raise ValueError(f"README.md must hold {begin.strip()} and {end.strip()} once, in lines of their own")
        text = text[: found[0].start()] + begin + paragraph + end + text[found[0].end() :]
    return text


def main() -> int:
    """Writes README.md again; prints whether it changed."""
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = rewritten(before, numbers())
    path.write_text(after, encoding="utf-8")
    print("README.md has other numbers now" if after != before else "README.md agrees with the rows")
    return 0


def _wrapped(text: str) -> str:
    """Lines break outside of code."""
    held = re.sub("`.*?`", lambda code: code[0].replace(" ", "\0"), text)
    return textwrap.fill(held, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _median(row: Text) -> float:
    return float(row["median_ms"])


def _ms(row: Text) -> str:
    value = _median(row)
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
