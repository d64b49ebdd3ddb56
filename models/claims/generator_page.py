"""The page of a study of generators: claims beside measurements, and a table of all that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from fastvq.models.claims.generator_study import METRICS, GeneratorStudy
from fastvq.models.claims.verdict import Rows, claim_line, judge, score, spread

MEASURED = (
    "Of the test split. With one seed: mean over the repeats ± half of the 95 % interval, which tells what drawing "
    "other motions changes; with several: mean over the seeds (smallest to largest). The first lines tell what the "
    "same measures say of the clips themselves (their FID: of one half to the other), of what the tokenizer makes of "
    "them, and of clips beside the descriptions of others. Seconds are those of the training steps alone, of a "
    "machine that may have had other work."
)
SOURCES = {"real": "the clips themselves", "reconstructed": "after the tokenizer", "shuffled": "chance"}


def generator_page(
    study: GeneratorStudy,
    rows: Rows,
    clips: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The page as Markdown.

    Args:
        study: Its claims and what is equal between its runs.
        rows: Of ``generator_runner.reproduce_generators``.
        clips: The same numbers of the clips: a key of ``SOURCES`` -> metric -> number.
        facts: Of the measurement, by name: data, machine, command.
        notes: Sentences on what the sizes mean.
    """
    verdicts = [judge(claim, rows) for claim in study.claims]
    lines = [f"# {study.title}: claims and measurements", "", score(verdicts), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()] + ["", study.equal, "", "## Claims", ""]
    lines += ["| claim | source | published | measured | |", "|---|---|---|---|---|"]
    lines += [claim_line(verdict, METRICS) for verdict in verdicts]
    lines += ["", "Reproduced: the mean over the seeds improves at every step, and the last is better than the first"]
    lines += ["for every seed. What to know of the sizes:", "", *(f"- {note}" for note in notes), ""]
    return "\n".join([*lines, "## Measurements", "", MEASURED, "", *_table(rows, clips), ""])


def _table(rows: Rows, clips: Mapping[str, Mapping[str, float]]) -> list[str]:
    shown = [name for name in METRICS if any(name in row for row in rows)]
    heads = ["run", "parameters", "steps", "seconds", "seeds", *(METRICS[name] for name in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for source, label in SOURCES.items():
        if source in clips:
            cells = [f"{clips[source][name]:.4g}" if name in clips[source] else "" for name in shown]
            lines.append("| " + " | ".join([label, *[""] * 4, *cells]) + " |")
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        cells = [name, f"{own[0]['parameters'] / 1e6:.2f} M", f"{own[0]['steps']:,}"]
        cells += [f"{mean(float(row['seconds']) for row in own):.0f}", " ".join(str(row["seed"]) for row in own)]
        lines.append("| " + " | ".join([*cells, *(_cell(own, metric) for metric in shown)]) + " |")
    return lines


def _cell(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    values = [float(row[metric]) for row in rows if metric in row]
    half = rows[0].get(f"{metric}_ci95")
    if len(values) == 1 and half is not None:
        return f"{values[0]:.4g} ± {float(half):.2g}"
    return spread(values)
