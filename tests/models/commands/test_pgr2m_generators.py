"""``fastvq train pgr2m-base`` and ``pgr2m-refine``, and generating and editing by a text with what they make."""

import json

import pytest
import torch

from fastvq.models.cli import main
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.tokenizers.pgr2m import PGR2MTokenizer
from fastvq.models.tokenizers.token_file import read_tokens

TOKENIZER = (
    *("--steps", "2", "--width", "16", "--output-dim", "16", "--codes", "8", "--depth", "1", "--stages", "2"),
    *("--batch-size", "4", "--window", "32", "--warmup", "0", "--log-every", "1", "--skip-report"),
)
TINY = ("--steps", "2", "--layers", "1", "--heads", "2", "--batch-size", "4", "--warmup", "0", "--log-every", "1")
BASE = (*TINY, "--dim", "16", "--clips", "20")


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    assert main(["train", "pgr2m", "--clips", "20", "--out", str(out), *TOKENIZER]) == 0
    return out


@pytest.fixture(scope="module", name="base")
def base_fixture(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    assert main(["train", "pgr2m-base", "--tokenizer", str(tokenizer), "--out", str(out), *BASE]) == 0
    return out


@pytest.fixture(scope="module", name="refine")
def refine_fixture(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "refine"
    assert main(["train", "pgr2m-refine", "--base", str(base), "--out", str(out), *TINY, "--clips", "20"]) == 0
    return out


def test_a_run_goes_on_with_what_it_holds(fastvq, base, refine, tmp_path):
    for kind, run in (("pgr2m-base", base), ("pgr2m-refine", refine)):
        more = fastvq("train", kind, "--out", run, "--clips", "20", "--resume", "--steps", "3")
        assert (more.code, more.err) == (0, "")
        assert "Resuming at step 2" in more.out
        assert json.loads((run / "last.json").read_text())["step"] == 3
    generator, tokenizer = load_with_tokenizer(refine)
    assert generator.config.dim == 16
    tokens = generator.generate(["a person walks"], lengths=[3])[0]
    assert tokens.shape == (72, 3)
    assert (tokens >= 0).all()
    assert isinstance(tokenizer, PGR2MTokenizer)


def test_generating_with_and_without_residual_codes(fastvq, refine, tmp_path):
    page, files = tmp_path / "page.html", [tmp_path / name for name in ("full.safetensors", "base.safetensors")]
    text = ("--text", "a person waves with the left hand", "--seconds", "1")
    for out, more in ((page, ()), (files[0], ()), (files[1], ("--base-only",))):
        outcome = fastvq("generate", "--checkpoint", refine, *text, "--out", out, *more)
        assert (outcome.code, outcome.err) == (0, "")
    for word in ("Base", "Refined", "a person waves with the left hand"):
        assert word in page.read_text()
    model = PGR2MTokenizer.from_pretrained(refine / "tokenizer")
    (full,), (bare,) = (read_tokens(file, model) for file in files)
    assert torch.equal(full.tokens[:70], bare.tokens[:70])
    assert (full.tokens[70:] >= 0).all()
    assert (bare.tokens[70:] == -1).all()


@pytest.mark.parametrize("which", ["base", "refine"])
def test_editing_by_a_text(fastvq, motions, which, request, tmp_path):
    run = request.getfixturevalue(which)
    tokens, out, numbers, page = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "n.json", "p.html"))
    assert fastvq("encode", "--checkpoint", run / "tokenizer", "--data", motions, "--out", tokens).code == 0
    model = PGR2MTokenizer.from_pretrained(run / "tokenizer")
    before = next(clip for clip in read_tokens(tokens, model) if clip.frames >= 40)
    text = ("--text", "a person waves with the left hand", "--frames", "8:24", "--clip", before.name)
    outcome = fastvq("edit", tokens, "--generator", run, *text, "--out", out, "--json", numbers)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Free to change: left arm" in outcome.out
    (after,) = read_tokens(out, model)
    changed = before.tokens != after.tokens
    values = json.loads(numbers.read_text())
    assert values["format"] == "fastvq-edit-text/1"
    assert (values["parts"], values["frames"]) == (["left arm"], [8, 24])
    assert values["clips"][0]["changed"] == int(changed[:70].sum()) > 0
    assert not changed[:, :2].any()
    assert not changed[:, 6:].any()
    assert not changed[[0, 1, 3]].any(), "knees and the right elbow are held"
    more = ("--part", "body", "--temperature", "1", "--seed", "3", "--without-residuals", "--out", page)
    outcome = fastvq("edit", motions, "--generator", run, *text, *more)
    assert (outcome.code, outcome.err) == (0, "")
    assert "a person waves with the left hand from frame 8 to 24 (body)" in page.read_text()


def test_an_edit_that_changes_nothing_says_so(fastvq, base, tmp_path):
    """A motion that the generator wrote for the same text, all of it free."""
    tokens, text = tmp_path / "a.safetensors", ("--text", "a person waves with the left hand")
    assert fastvq("generate", "--checkpoint", base, *text, "--seconds", "1", "--out", tokens).code == 0
    outcome = fastvq(
        "edit", tokens, "--generator", base, *text, "--part", "body", "--out", tmp_path / "b.safetensors"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert "None of 350 pose codes that were free changed: the motion is as before." in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pgr2m-base",), "give its run folder, --tokenizer RUN"),
        (("pgr2m-base", "--tokenizer", "{groups}"), "a pgr2m-base drives pose codes, and a motion-vqvae has none"),
        (("pgr2m-base", "--tokenizer", "{tokenizer}", "--dim", "15"), "dim must be even and a multiple of heads"),
        (("pgr2m-refine",), "give that one's run folder, --base RUN"),
        (("pgr2m-refine", "--base", "{tokenizer}"), "is of the kind 'pgr2m', which is no generator"),
        (
            ("pgr2m-refine", "--base", "{refine}"),
            "--base must be the run folder of a pgr2m-base, got that of a pgr2m-r",
        ),
        (("pgr2m-refine", "--base", "{base}", "--tokenizer", "{other}"), "trained with the tokenizer of sha256"),
        (("hifigpt", "--tokenizer", "{tokenizer}"), "a hifigpt drives residual stages, and a pgr2m has pose codes"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    fastvq, tokenizer, base, refine, run_folder, tmp_path, options, message
):
    other = tmp_path / "other"
    PGR2MTokenizer(PGR2MTokenizer.from_pretrained(tokenizer).config).save_pretrained(other)
    names = {"tokenizer": tokenizer, "base": base, "refine": refine, "groups": run_folder, "other": other}
    given = [option.format(**names) for option in options]
    outcome = fastvq("train", *given, "--out", tmp_path / "run", "--clips", "20", "--heads", "2")
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "a person waves"), "--text needs a model that writes pose codes: give --generator"),
        (("--text", "x", "--generator", "{base}", "--rule", "hands apart"), "give it without --rule and --set"),
        (("--text", " ", "--generator", "{base}"), "texts[0] must say what to do"),
        (("--text", "x", "--generator", "{base}", "--part", "tail"), "there is no part 'tail'"),
        (("--text", "x", "--generator", "{base}", "--frames", "900:950"), "are not in clip"),
        (("--text", "x", "--generator", "{tokenizer}"), "which is no generator"),
        (("--generator", "{base}"), "--generator and --part go with --text"),
        (("--rule", "hands apart"), "a rule needs the model that makes tokens of motions: give --checkpoint"),
    ],
    ids=str,
)
def test_what_cannot_be_edited_is_refused_in_a_sentence(fastvq, tokenizer, base, motions, tmp_path, options, message):
    given = [option.format(tokenizer=tokenizer, base=base) for option in options]
    outcome = fastvq("edit", motions, *given, "--out", tmp_path / "out.html")
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out.html").exists()


def test_what_base_and_tokenizer_decide_are_no_options(fastvq):
    outcome = fastvq("train", "pgr2m-refine", "--help")
    assert outcome.code == 0
    for name in ("--sizes", "--dim", "--longest", "--base-sha256", "--text-encoder"):
        assert f"{name} " not in outcome.out
    assert "--base " in outcome.out
