"""``fastvq train hifigpt``: from a tokenizer's run folder to a generator's, and what it refuses."""

import json
import shutil

import numpy as np
import pytest

from fastvq.models.cli import main
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.training.data import prepare_clips

TOKENIZER = (
    *("--steps", "2", "--width", "16", "--output-dim", "16", "--codes", "8", "--depth", "1", "--stages", "2"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1", "--skip-report"),
)
TINY = (
    *("--steps", "2", "--dim", "16", "--layers", "1", "--depth-layers", "1", "--heads", "2", "--batch-size", "4"),
    *("--warmup", "0", "--log-every", "1"),
)


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    assert main(["train", "rvqvae", "--clips", "20", "--out", str(out), *TOKENIZER]) == 0
    return out


def test_made_up_motions_train_a_tokenizer_and_a_generator(fastvq, tokenizer, tmp_path):
    run = tmp_path / "run"
    outcome = fastvq("train", "hifigpt", "--tokenizer", tokenizer, "--clips", "20", "--out", run, *TINY)
    assert (outcome.code, outcome.err) == (0, "")
    assert "No --data: 20 motions are made up" in outcome.out
    assert "motions to learn from, with " in outcome.out
    generator, _ = load_with_tokenizer(run)
    assert generator.config.dim == 16
    assert generator.generate(["a person walks"], lengths=[2])[0].shape == (2, 2)
    more = fastvq("train", "hifigpt", "--out", run, "--clips", "20", "--resume", "--steps", "3")
    assert (more.code, more.err) == (0, "")
    assert "Resuming at step 2" in more.out
    assert json.loads((run / "last.json").read_text())["step"] == 3
    again = fastvq("train", "hifigpt", "--tokenizer", tokenizer, "--clips", "20", "--out", run, *TINY)
    assert "is not empty" in again.err
    over = fastvq("train", "hifigpt", "--tokenizer", tokenizer, "--clips", "20", "--out", run, *TINY, "--overwrite")
    assert over.code == 0


def test_recorded_motions_train_a_generator(fastvq, tokenizer, motions, tmp_path):
    outcome = fastvq(
        "train", "hifigpt", "--tokenizer", tokenizer, "--data", motions, "--out", tmp_path / "run", *TINY
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert "; 2 held out" in outcome.out


def test_a_humanml3d_folder_is_learnt_from_with_all_its_texts(fastvq, tokenizer, tmp_path):
    form = format_of(263)
    clips = prepare_clips(generate_clips(3, seed=0, fps=form.fps), fps=form.fps, form=form)
    for name in ("new_joint_vecs", "texts"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for clip in clips[:2]:
        np.save(tmp_path / "data" / "new_joint_vecs" / f"{clip.name}.npy", clip.features)
        lines = f"{clip.text}#a/DET#0.0#0.0\nsomebody moves#a/DET#0.0#0.0\n"
        (tmp_path / "data" / "texts" / f"{clip.name}.txt").write_text(lines)
    (tmp_path / "data" / "train.txt").write_text("\n".join(clip.name for clip in clips[:2]))
    np.save(tmp_path / "data" / "new_joint_vecs" / "silent.npy", clips[2].features)
    run = tmp_path / "run"
    outcome = fastvq("train", "hifigpt", "--tokenizer", tokenizer, "--data", tmp_path / "data", "--out", run, *TINY)
    assert (outcome.code, outcome.err) == (0, "")
    assert "2 motions to learn from, with 3 texts" in outcome.out


def test_a_text_encoder_that_has_moved_is_given_anew(fastvq, tokenizer, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "moved"):
        shutil.copytree(clip_folder, name)
    given = ("--tokenizer", tokenizer, "--clips", "20", "--text-encoder", "clip:clip", *TINY)
    outcome = fastvq("train", "hifigpt", "--out", "run", *given)
    assert outcome.code == 0
    assert "texts are left out: the text " in outcome.out  # letters are this encoder's tokens, of which it takes 48
    assert list((tmp_path / "cache" / "texts").rglob("*.safetensors"))
    shutil.rmtree("clip")
    asked = ("generate", "--checkpoint", "run", "--text", "a person walks", "--seconds", "0.4")
    outcome = fastvq(*asked, "--out", "a.npy")
    assert (outcome.code, f"there is no folder {tmp_path / 'clip'}" in outcome.err) == (2, True)
    assert fastvq(*asked, "--out", "a.npy", "--text-encoder", "clip:moved").code == 0
    outcome = fastvq(*asked, "--out", "b.npy", "--text-encoder", "hash")
    assert (outcome.code, "give the encoder that it was trained with" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give its run folder, --tokenizer RUN"),
        (("--tokenizer", "nowhere"), "there is no folder nowhere"),
        (("--tokenizer", "{groups}"), "a hifigpt drives residual stages, and a motion-vqvae has groups"),
        (
            ("--tokenizer", "{tokenizer}", "--text-encoder", "clip:nowhere"),
            "nowhere: give a folder that holds a CLIP model",
        ),
        (("--tokenizer", "{tokenizer}", "--clips", "0"), "--clips must be an integer of at least 1"),
        (("--tokenizer", "{tokenizer}", "--heads", "3"), "heads must divide dim"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(fastvq, tokenizer, run_folder, tmp_path, options, message):
    given = [option.format(tokenizer=tokenizer, groups=run_folder) for option in options]
    outcome = fastvq("train", "hifigpt", "--out", tmp_path / "run", "--dim", "16", "--heads", "2", *given)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_settings_that_the_tokenizer_decides_are_no_options(fastvq):
    outcome = fastvq("train", "hifigpt", "--help")
    assert outcome.code == 0
    for name in ("--sizes", "--tokenizer-sha256", "--text-dim"):
        assert name not in outcome.out
    assert "--tokenizer" in outcome.out
    assert "--corruption" in outcome.out
