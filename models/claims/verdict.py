"""Claims beside measurements: which held, with both figures, as data and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any, Literal

from fastvq.models.claims.runner import view_of
from fastvq.models.claims.study import Claim, Study, View

Outcome = Literal["reproduced", "did not reproduce", "not measured"]
TRAIN_PERPLEXITY = {"train_perplexity": "perplexity in training"}
MEASURED = (
    "Of the test split: mean over the seeds (smallest to largest). Seconds are those of the training steps alone, of "
    "a machine that may have had other work; perplexity in training is over the last steps, by the run's own log."
)
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What measurements say of a claim.

    Attributes:
        claim: the claim.
        outcome: "reproduced" if the means over the seeds improve at every step of the claim's order and the last view
            is better than the first for every seed; else "did not reproduce"; "not measured" without the metric.
        measured: means over the seeds, in the claim's order.
        reason: why it did not, in numbers; empty if it did.
    """

    claim: Claim
    outcome: Outcome
    measured: tuple[float, ...] = ()
    reason: str = ""


def judge(claim: Claim, rows: Rows) -> Verdict:
    """Decides a claim."""
    found = [_by_seed(view, claim.metric, rows) for view in claim.order]
    seeds = sorted(set(found[0]).intersection(*found[1:]))
    if not seeds:
        return Verdict(claim, "not measured", reason=f"no seed has {claim.metric} of every view")
    means = tuple(mean(view[seed] for seed in seeds) for view in found)
    sign = 1 if claim.larger else -1
    worse = [
        f"{b.name} {after:.4g} after {a.name} {before:.4g}"
        for (a, before), (b, after) in pairwise(zip(claim.order, means, strict=True))
        if not sign * (after - before) > 0
    ]
    if worse:
        return Verdict(claim, "did not reproduce", means, "no better: " + "; ".join(worse))
    contrary = [seed for seed in seeds if not sign * (found[-1][seed] - found[0][seed]) > 0]
    if contrary:
        named = ", ".join(map(str, contrary))
        return Verdict(claim, "did not reproduce", means, f"the mean is better, but not with seed {named}")
    return Verdict(claim, "reproduced", means)


def _by_seed(view: View, metric: str, rows: Rows) -> dict[int, float]:
    return {int(row["seed"]): float(row[metric]) for row in rows if view_of(row) == view and _has(row, metric)}


def _has(row: Mapping[str, Any], metric: str | None) -> bool:
    return metric is not None and row.get(metric) not in (None, "")


def markdown(study: Study, rows: Rows, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """The page of a study.

    Args:
        study: its claims and what is equal between its runs.
        rows: of :func:`fastvq.models.claims.runner.reproduce`.
        facts: of the measurement, by name: data, machine, time, command.
        notes: sentences on why sizes differ from the paper's, for all claims.
    """
    verdicts = [judge(claim, rows) for claim in study.claims]
    lines = [f"# {study.title}: claims and measurements", ""]
    lines += [score(verdicts), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()] + ["", study.equal, "", "## Claims", ""]
    lines += ["| claim | source | published | measured | |", "|---|---|---|---|---|"]
    units = {**study.trials.metrics, **TRAIN_PERPLEXITY, **study.metrics}
    lines += [claim_line(verdict, units) for verdict in verdicts]
    lines += ["", "Reproduced: the mean over the seeds improves at every step, and the last is better than the first"]
    lines += ["for every seed. Why sizes differ:", "", *(f"- {note}" for note in [*notes, *_reasons(study)]), ""]
    lines += ["## Measurements", "", f"{MEASURED} {study.trials.measured}", ""]
    return "\n".join([*lines, *_table(rows, units, study.trials.originals), ""])


def score(verdicts: Sequence[Verdict]) -> str:
    """How many hold, those of the paper and our own apart."""
    parts = []
    for ours, what in ((False, "claims of the paper reproduced in direction"), (True, "further checks of ours held")):
        decided = [v for v in verdicts if (v.claim.source == "ours") is ours and v.outcome != "not measured"]
        if decided:
            parts.append(f"{sum(v.outcome == 'reproduced' for v in decided)} of {len(decided)} {what}")
    return f"{'; '.join(parts) or 'nothing was measured'}.".capitalize()


def _reasons(study: Study) -> list[str]:
    return list(dict.fromkeys(f"{claim.why}." for claim in study.claims if claim.why))


def claim_line(verdict: Verdict, units: Mapping[str, str]) -> str:
    """A line of the table of claims; ``units`` names the metrics."""
    claim = verdict.claim
    published = f"{_chain(claim.published)} ({claim.published_as})" if claim.published else "not at hand"
    if claim.source == "ours":
        published = "none"
    measured = f"{_chain(verdict.measured)} ({units[claim.metric]})" if verdict.measured else ""
    outcome = f"**{verdict.outcome}**" + (f": {verdict.reason}" if verdict.reason else "")
    return f"| {claim.sentence} | {claim.source} | {published} | {measured} | {outcome} |"


def _chain(figures: Sequence[float]) -> str:
    """0.041 → 0.015 (-63 %)"""
    if not figures:
        return ""
    first, last = figures[0], figures[-1]
    change = f", {round(100 * (last - first) / first):+d} %" if first else ""
    return " → ".join(f"{figure:.4g}" for figure in figures) + change


def _table(rows: Rows, units: Mapping[str, str], originals: Mapping[str, str]) -> list[str]:
    """A line for the motions themselves and one for each view: means over the seeds, smallest to largest."""
    shown = [name for name in units if any(_has(row, name) for row in rows)]
    heads = ["run", "codes/s", "parameters", "steps", "seconds", "seeds", *(units[name] for name in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    themselves = [
        spread([float(row[originals[name]]) for row in rows[:1] if _has(row, originals.get(name))]) for name in shown
    ]
    if any(themselves):
        lines.append("| " + " | ".join(["the motions themselves", *[""] * 5, *themselves]) + " |")
    for view in dict.fromkeys(view_of(row) for row in rows):
        own = [row for row in rows if view_of(row) == view]
        cells = [view.name, f"{own[0]['codes_per_second']:g}", f"{own[0]['parameters'] / 1e6:.2f} M"]
        cells += [f"{own[0]['steps']:,}", f"{mean(float(row['seconds']) for row in own):.0f}"]
        cells += [" ".join(str(row["seed"]) for row in own)]
        cells += [spread([float(row[name]) for row in own if _has(row, name)]) for name in shown]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean (smallest to largest)."""
    if not values:
        return ""
    middle = f"{mean(values):.4g}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.4g} to {max(values):.4g})"
