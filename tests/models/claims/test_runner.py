import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fastvq.models.claims import motion_trials, runner
from fastvq.models.claims.study import Claim, Run, Study, View
from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.training.data import prepare_clips

SMALL = {"codebook_size": 16, "depth": 1, "output_dim": 8}
STUDY = Study(
    "tiny",
    "Tiny",
    runs=(Run("one", "rvqvae", {"stages": 1}), Run("two", "rvqvae", {"stages": 2}, streams=(1, None))),
    claims=(Claim("two are better", "ours", (View("one"), View("two")), "mpjpe_mm"),),
    equal="",
    model=SMALL,
    training={"batch_size": 4, "window": 32},
)


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(20, seed=0), fps=20.0, form=format_of(263))


def rows_of(clips, out, steps=3, study=STUDY, **options):
    sizes = {"seeds": (0, 5), "steps": steps, "width": 8, "console": Console(quiet=True)}
    return list(runner.reproduce(study, clips, out, **sizes, **options))


def test_rows_files_and_nothing_twice(clips, tmp_path, monkeypatch):
    rows = rows_of(clips, tmp_path)
    assert [(row["run"], row["streams"], row["seed"]) for row in rows] == [
        (run, streams, seed) for seed in (0, 5) for run, streams in (("one", "all"), ("two", 1), ("two", "all"))
    ]
    assert [runner.view_of(row).name for row in rows[:3]] == ["one", "two, first 1", "two"]
    first, _, third = rows[:3]
    assert (first["codes_per_second"], third["codes_per_second"], first["steps"]) == (5.0, 10.0, 3)
    assert first["seconds"] > 0
    log = [json.loads(line) for line in (tmp_path / "two_seed5" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_perplexity"] == log[-1]["perplexity"]
    assert rows[-1]["foot_skate_original"] == rows[0]["foot_skate_original"]
    assert np.isfinite([row["mpjpe_mm"] for row in rows]).all()
    assert len({row["mpjpe_mm"] for row in rows}) == len(rows), "seeds, runs and views differ"
    assert set(first) <= set(STUDY.columns())
    # A run that was trained and not measured is not trained again, one that was measured not even loaded.
    (tmp_path / "two_seed5.json").unlink()
    monkeypatch.setattr("fastvq.models.training.trainer._Run.advance", lambda _: pytest.fail("a step was taken"))
    again = rows_of(clips, tmp_path)
    assert again == rows
    monkeypatch.setattr(motion_trials, "train", lambda *_, **__: pytest.fail("a run was loaded"))
    assert rows_of(clips, tmp_path) == rows


def test_a_run_may_have_fewer_seeds(clips, tmp_path):
    one = replace(STUDY, runs=(replace(STUDY.runs[0], seeds=1), STUDY.runs[1]))
    rows = rows_of(clips, tmp_path, study=one)
    assert [(row["run"], row["seed"]) for row in rows] == [("one", 0), ("two", 0), ("two", 0), ("two", 5), ("two", 5)]


def test_measurements_by_others_are_not_taken_for_these(clips, tmp_path):
    rows_of(clips, tmp_path)
    calls = []

    def measure(model, held_out, streams):
        calls.append((len(held_out), streams))
        return {"fid": 1.5, "unknown": 2, "named": 3.5}

    rows = rows_of(clips, tmp_path, measure=measure, measured_by="another")
    assert calls == 2 * [(2, None), (2, 1), (2, None)]
    assert rows[0]["fid"] == 1.5
    assert "mpjpe_mm" not in rows[0]
    assert "unknown" not in rows[0]
    assert "named" not in rows[0]
    more = replace(STUDY, metrics={"named": "what the study alone needs"})
    assert [row["named"] for row in rows_of(clips, tmp_path, study=more, measure=measure)] == 6 * [3.5]


def test_a_run_with_other_settings_is_refused(clips, tmp_path):
    rows_of(clips, tmp_path)
    with pytest.raises(
        UserError, match=r"cannot resume with other settings: milestones .* start a new run instead: .* --out"
    ):
        rows_of(clips, tmp_path, steps=30)


def test_damage_and_data_without_a_test_split_are_refused(clips, tmp_path):
    with pytest.raises(UserError, match="no test split to measure claims on"):
        rows_of([clip for clip in clips if clip.split == "train"], tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "one_seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"one_seed0\.json is damaged"):
        rows_of(clips, tmp_path)
    (tmp_path / "one_seed0.json").write_text(json.dumps({"format": "other", "key": "", "rows": []}))
    assert len(rows_of(clips, tmp_path)) == 6


def test_seconds_are_those_of_all_steps():
    rows = [{"step": 10, "steps_per_second": 5.0}, {"step": 14, "steps_per_second": 2.0}]
    assert runner.training_seconds(rows) == 4.0
