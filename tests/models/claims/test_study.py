import pytest

from fastvq.models.claims.studies import NAMES, study
from fastvq.models.claims.study import Claim, Run, Study, View
from fastvq.models.errors import UserError
from fastvq.models.kinds import KINDS
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-gen")])
def test_every_study_is_whole(name):
    found = study(name)
    assert found.name == name
    assert found.runs
    assert found.claims
    formats = set()
    for run in found.runs:
        config = found.config(run, seed=3, steps=40, width=found.width)
        assert (config.seed, config.steps) == (3, 40)
        if run.kind == HeatmapVQGANConfig.kind:
            assert run.streams == (None,)
            formats.add((config.fps, config.stretch))
            continue
        assert type(config) is KINDS[run.kind].training
        assert config.warmup == 2
        streams = [config.model.streams if held is None else held for held in run.streams]
        assert max(streams) == config.model.streams
        assert len(set(streams)) == len(streams)
        formats.add((config.model.input_dim, config.model.fps))
    assert len(formats) == 1, "the runs of a study share one set of clips"


def test_what_a_run_says_wins_over_the_study_and_that_over_the_recipe():
    runs = (Run("a", "rvqvae", model={"stages": 3}, training={"lr": 2e-3, "loss": {"bone": 0.0}}), Run("b", "rvqvae"))
    found = Study("x", "", runs, (), "", model={"stages": 2, "codebook_size": 32}, training={"lr": 5e-4})
    first, second = (found.config(run, seed=0, steps=100, width=16) for run in runs)
    assert (first.model.stages, first.model.codebook_size, first.lr, first.batch_size) == (3, 32, 2e-3, 32)
    assert (first.loss.bone, first.loss.velocity) == (0.0, 0.5)
    assert (second.model.stages, second.model.codebook_size, second.lr, second.loss.bone) == (2, 32, 5e-4, 0.1)
    assert first.milestones == (71, 91)


def test_a_claim_about_what_is_not_measured_cannot_be_made():
    run = Run("a", "rvqvae", streams=(1, None))
    with pytest.raises(ValueError, match="compares what is not measured: a, first 2"):
        Study("x", "", (run,), (Claim("s", "p", (View("a"), View("a", 2)), "fid"),), "")
    with pytest.raises(ValueError, match="one published figure for each view"):
        Study("x", "", (run,), (Claim("s", "p", (View("a"), View("a", 1)), "fid", published=(1.0,)),), "")
    with pytest.raises(ValueError, match="must not share a name"):
        Study("x", "", (run, run), (), "")


def test_an_unknown_system_is_refused():
    with pytest.raises(UserError, match="no claims of 's9' to test: the systems are"):
        study("s9")
