"""Studies of generators as data; what they train and measure is tested through the command line."""

import pytest

from fastvq.models.claims.generator_page import generator_page
from fastvq.models.claims.generator_study import METRICS, GeneratorRun, GeneratorStudy, view
from fastvq.models.claims.studies import NAMES, study
from fastvq.models.claims.study import Claim, Run, Study
from fastvq.models.generators.kinds import GENERATORS

TOKENIZER = Study("t", "", (Run("tokenizer", "rvqvae"),), (), "")
RUNS = (GeneratorRun("a", "hifigpt", guidance=(1.0, 4.0)), GeneratorRun("b", "hifigpt", {"layers": 2}))


def make(runs: tuple[GeneratorRun, ...] = RUNS, claims: tuple[Claim, ...] = (), **options: object) -> GeneratorStudy:
    return GeneratorStudy("x-gen", "X", TOKENIZER, runs, claims, "all is equal", **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-gen")])
def test_every_study_is_whole(name: str) -> None:
    found = study(name)
    assert found.name == name
    assert found.runs
    assert found.claims
    assert {claim.metric for claim in found.claims} <= set(METRICS)
    assert len(found.tokenizer.runs) == 1
    for run in found.runs:
        model = found.model_config(run, found.dim)
        assert model.kind == run.kind
        config = found.config(run, model, seed=3, steps=40)
        assert type(config) is GENERATORS[run.kind].training
        assert (config.seed, config.steps, config.warmup, config.milestones) == (3, 40, 2, (29, 37))
        assert len(set(run.guidance)) == len(run.guidance)


def test_what_a_run_says_wins_over_the_study_and_that_over_the_recipe() -> None:
    found = make(model={"layers": 4, "heads": 2}, training={"lr": 3e-4})
    first, second = (found.model_config(run, 64) for run in RUNS)
    assert (first.layers, second.layers, second.heads, second.dim) == (4, 2, 2, 64)
    config = found.config(RUNS[0], first, seed=0, steps=100)
    assert (config.lr, config.batch_size, config.model) == (3e-4, 64, first)


def test_studies_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="compares what is not measured: a, guidance 2"):
        make(claims=(Claim("s", "p", (view("a", 1.0), view("a", 2.0)), "fid"),))
    with pytest.raises(ValueError, match="must not share a name"):
        make(runs=(RUNS[0], RUNS[0]))
    with pytest.raises(ValueError, match="b builds on a, which is not trained before it"):
        make(runs=(GeneratorRun("b", "hifigpt", base="a"), RUNS[0]))


def test_the_page_has_verdicts_and_every_number() -> None:
    claims = (
        Claim("more is better", "paper", (view("a", 1.0), view("a", 4.0)), "top1", larger=True, published=(0.1, 0.3)),
        Claim("less is better", "ours", (view("a", 1.0), view("a", 4.0)), "fid"),
    )

    def row(run: str, seed: int, top1: float, fid: float) -> dict[str, object]:
        numbers = {"top1": top1, "top1_ci95": 0.015, "fid": fid}
        facts = {"seed": seed, "steps": 10, "seconds": 3.0, "parameters": 2_000_000}
        return {"run": run, "streams": "all", **facts, **numbers}

    names = (view("a", 1.0).name, view("a", 4.0).name)
    rows = [row(names[0], 0, 0.25, 2.0), row(names[1], 0, 0.5, 3.0)]
    clips = {"real": {"top1": 0.75}, "shuffled": {"top1": 0.125}}
    page = generator_page(make(claims=claims), rows, clips, {"Data": "some"}, ["a note"])
    assert "0.1 → 0.3" in page
    assert "| 0.25 → 0.5, +100 % (R-precision, top 1) | **reproduced** |" in page
    assert "**did not reproduce**: no better: a, guidance 4 3 after a, guidance 1 2" in page
    assert "1 of 1 claims of the paper reproduced in direction; 0 of 1 further checks of ours held." in page
    assert "| a, guidance 4 | 2.00 M | 10 | 3 | 0 | 3 | 0.5 ± 0.015 |" in page
    assert "| the clips themselves |  |  |  |  |  | 0.75 |" in page
    assert "| chance |  |  |  |  |  | 0.125 |" in page
    assert "after the tokenizer" not in page.split("Seconds are")[1]
    assert "- a note" in page
    several = generator_page(make(claims=claims), [*rows, row(names[0], 1, 0.35, 1.0)], clips, {}, [])
    assert "| 0 1 | 1.5 (1 to 2) | 0.3 (0.25 to 0.35) |" in several
