"""``fastvq generate`` and ``fastvq evaluate`` of generators that have learnt nothing, through the command line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvq.models.evaluation.evaluator import EvaluatorConfig, MotionTextEvaluator
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT, DoubleTierGPTConfig
from fastvq.models.generators.motions import TextToMotion
from fastvq.models.generators.refine_transformer import RefineTransformer, RefineTransformerConfig
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.bvh import read_bvh
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pgr2m import PGR2MTokenizer
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE
from fastvq.models.tokenizers.token_file import read_tokens
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import feature_statistics, prepare_clips

SIZES = {"width": 16, "output_dim": 16, "codebook_size": 8, "depth": 1, "stages": 2}


def make_tokenizer(kind: type[MotionTokenizer], seed: int = 0, **sizes: int) -> MotionTokenizer:
    """One whose codebooks come from motions, so that all its codes decode to bodies."""
    torch.manual_seed(seed)
    config = kind.config_class(**{**SIZES, **sizes})
    clips = prepare_clips(generate_clips(7, seed=1), fps=config.fps, form=config.features)
    mean, std = feature_statistics(clips)
    model = kind(config, mean=mean, std=std).train()
    with torch.no_grad():
        for clip in clips:
            model(clip.features)
    return model.eval()


def save(generator: Any, tokenizer: MotionTokenizer, folder: Path) -> Path:
    generator.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(ResidualVQVAE)
    config = DoubleTierGPTConfig(dim=16, layers=1, depth_layers=1, heads=2, longest=12)
    model = DoubleTierGPT(config.fitted(tokenizer, open_text_encoder("hash")))
    return save(model, tokenizer, tmp_path_factory.mktemp("gpt") / "run")


@pytest.fixture(scope="module")
def refine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(PGR2MTokenizer)
    config = BaseTransformerConfig(dim=16, layers=1, heads=2, longest=12)
    base = BaseTransformer(config.fitted(tokenizer, open_text_encoder("hash")))
    refined = RefineTransformerConfig(layers=1, heads=2).on(base)
    model = RefineTransformer(refined)
    model.start_from(base)
    model.use_base(base)
    return save(model, tokenizer, tmp_path_factory.mktemp("refine") / "run")


def test_one_text_in_every_form(fastvq: Callable[..., Any], gpt: Path, tmp_path: Path) -> None:
    given = ("generate", "--text", "a person walks forward", "--checkpoint", gpt, "--seconds", "2", "--out")
    for ending in ("bvh", "gif", "html", "npy", "safetensors"):
        outcome = fastvq(*given, tmp_path / f"clip.{ending}")
        assert outcome.code == 0, outcome.err
        assert "1. a person walks forward (2.0 s, action walk " in outcome.out
        assert "40 frames in" in outcome.out
    joints = np.load(tmp_path / "clip.npy")
    assert joints.shape == (40, 22, 3)
    assert joints.dtype == np.float32
    assert len(read_bvh(tmp_path / "clip.bvh").positions) == 40
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.height > 360  # the text stands above the body
    model = TextToMotion.open(gpt)
    (clip,) = read_tokens(tmp_path / "clip.safetensors", model.tokenizer)
    (again,) = model.generate(["a person walks forward"], seconds=2.0)
    assert torch.equal(clip.tokens, again.tokens)
    np.testing.assert_array_equal(joints, again.joints)
    page = (tmp_path / "clip.html").read_text()
    assert "1. a person walks forward" in page
    assert "read off the motion" in page


def test_a_motion_too_short_to_judge_is_written_all_the_same(fastvq: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = make_tokenizer(ResidualVQVAE, down_stages=1)
    config = DoubleTierGPTConfig(dim=16, layers=1, depth_layers=1, heads=2, longest=12)
    run = save(DoubleTierGPT(config.fitted(tokenizer, open_text_encoder("hash"))), tokenizer, tmp_path / "run")
    for ending in ("npy", "html"):
        given = ("--text", "a person walks forward", "--seconds", "0.1", "--out", tmp_path / f"clip.{ending}")
        outcome = fastvq("generate", "--checkpoint", run, *given)
        assert outcome.code == 0, outcome.err
        assert "1. a person walks forward (0.1 s)" in outcome.out
    assert np.load(tmp_path / "clip.npy").shape == (2, 22, 3)


def test_a_seed_gives_the_same_motion_and_another_one_another(
    fastvq: Callable[..., Any], gpt: Path, tmp_path: Path
) -> None:
    given = ("generate", "--checkpoint", gpt, "--seconds", "1", "--text", "a person jumps up")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert fastvq(*given, "--seed", seed, "--out", tmp_path / f"{name}.npy").code == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    # The first of several is what it is alone.
    assert fastvq(*given, "a person waves", "--count", 2, "--out", tmp_path / "many.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "many_1.npy"), a)
    assert sorted(path.name for path in tmp_path.glob("many*")) == [f"many_{number}.npy" for number in (1, 2, 3, 4)]
    assert fastvq(*given, "a person waves", "--out", tmp_path / "all.html").code == 0
    assert "2. a person waves" in (tmp_path / "all.html").read_text()


def test_sampling_is_as_asked(fastvq: Callable[..., Any], gpt: Path, tmp_path: Path) -> None:
    given = ("generate", "--checkpoint", gpt, "--seconds", "1", "--text", "a person jumps up")
    ways = {
        "likeliest": ("--temperature", "0"),
        "one": ("--top-k", "1", "--seed", "5"),
        "narrow": ("--top-p", "1e-9", "--seed", "7"),
        "wide": ("--temperature", "30"),
        "free": ("--guidance", "0", "--temperature", "0"),
    }
    found = {}
    for name, options in ways.items():
        assert fastvq(*given, *options, "--out", tmp_path / f"{name}.npy").code == 0
        found[name] = np.load(tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(found["likeliest"], found["one"])
    np.testing.assert_array_equal(found["likeliest"], found["narrow"])
    assert not np.array_equal(found["likeliest"], found["wide"])
    assert fastvq(*given[:-1], "a person waves", *ways["free"], "--out", tmp_path / "other.npy").code == 0
    np.testing.assert_array_equal(found["free"], np.load(tmp_path / "other.npy"))


def test_base_and_refined_stand_side_by_side(fastvq: Callable[..., Any], refine: Path, tmp_path: Path) -> None:
    given = ("generate", "--checkpoint", refine, "--seconds", "1", "--text", "a person jumps up", "--out")
    assert fastvq(*given, tmp_path / "clip.html").code == 0
    page = (tmp_path / "clip.html").read_text()
    assert '"label":"Base"' in page
    assert '"label":"Refined"' in page
    assert "written by the generator" in page
    assert "base, behind refined" in page
    assert fastvq(*given, tmp_path / "refined.npy").code == 0
    assert fastvq(*given, tmp_path / "base.npy", "--base-only").code == 0
    assert not np.array_equal(np.load(tmp_path / "refined.npy"), np.load(tmp_path / "base.npy"))
    assert fastvq(*given, tmp_path / "base.html", "--base-only").code == 0
    assert '"label":"Refined"' not in (tmp_path / "base.html").read_text()
    # Tokens of either are read again, and can be edited.
    assert fastvq(*given, tmp_path / "clip.safetensors").code == 0
    edited = tmp_path / "edited.safetensors"
    rule = ("--rule", "raise the left hand", "--checkpoint", refine / "tokenizer", "--out", edited)
    assert fastvq("edit", tmp_path / "clip.safetensors", *rule).code == 0


def test_a_base_by_itself_has_nothing_to_refine(fastvq: Callable[..., Any], refine: Path, tmp_path: Path) -> None:
    given = ("generate", "--tokenizer", refine / "tokenizer", "--seconds", "1", "--text", "a person jumps up")
    assert fastvq(*given, "--checkpoint", refine / "base", "--out", tmp_path / "clip.html").code == 0
    page = (tmp_path / "clip.html").read_text()
    assert '"label":"Refined"' not in page
    assert fastvq(*given, "--checkpoint", refine, "--base-only", "--out", tmp_path / "only.npy").code == 0
    assert fastvq(*given, "--checkpoint", refine / "base", "--out", tmp_path / "base.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "only.npy"), np.load(tmp_path / "base.npy"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--text": " "}, "--text is empty: say what the motion shall show"),
        ({"--text": "walk " * 600}, "shorten it"),
        ({"--checkpoint": "nowhere"}, "there is no folder nowhere"),
        ({"--checkpoint": "TOKENIZER"}, "is of the kind 'rvqvae', which is no generator"),
        ({"--tokenizer": "OTHER"}, "its codes mean other motions"),
        ({"--out": "clip.mp4"}, "must end in .bvh or .gif or .npy or .html or .htm or .safetensors"),
        ({"--out": "taken.npy"}, "taken.npy exists: choose another name, or add --overwrite"),
        ({"--out": "taken.npy/clip.npy"}, "is no folder that you may write to"),
        ({"--seconds": "9"}, "writes motions of 2.4 s at most, and 9 s were asked for"),
        ({"--seconds": "-1"}, "seconds must be"),
        ({"--count": "0"}, "--count must be an integer of at least 1, got 0"),
        ({"--guidance": "-2"}, "guidance must be"),
        ({"--top-p": "1.5"}, "top_p must be"),
        ({"--size": "3"}, "--size must be from 16 to 4096 pixels, got 3"),
        ({"--base-only": None}, "this one has no base"),
    ],
)
def test_what_cannot_be_is_refused(
    fastvq: Callable[..., Any],
    gpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.npy").write_text("")
    make_tokenizer(ResidualVQVAE, seed=1).save_pretrained("other")
    places = {"TOKENIZER": str(gpt / "tokenizer"), "OTHER": "other"}
    options = {"--text": "a person walks", "--checkpoint": str(gpt), "--out": "clip.npy", **changes}
    before = sorted(Path().rglob("*"))
    words = [
        word
        for name, value in options.items()
        for word in ((name,) if value is None else (name, places.get(value, value)))
    ]
    outcome = fastvq("generate", *words)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def test_a_run_of_an_unknown_kind_or_without_its_tokenizer_is_refused(
    fastvq: Callable[..., Any], gpt: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lonely"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((gpt / name).read_bytes())
    given = ("generate", "--text", "a person walks", "--checkpoint", folder, "--out", tmp_path / "clip.npy")
    outcome = fastvq(*given)
    assert (outcome.code, "holds no tokenizer" in outcome.err) == (2, True)
    text = (folder / "config.json").read_text().replace('"hifigpt"', '"storyteller"')
    (folder / "config.json").write_text(text)
    outcome = fastvq(*given)
    assert (outcome.code, "is of the kind 'storyteller', which is no generator" in outcome.err) == (2, True)


def test_durations_are_whole_tokens(gpt: Path) -> None:
    model = TextToMotion.open(gpt)
    assert [model.tokens_of(seconds) for seconds in (0.01, 0.2, 0.5, 2.4)] == [1, 1, 2, 12]
    motions = model.generate(["a person walks"] * 3, seconds=0.8, precision="fast")
    assert [len(motion.joints) for motion in motions] == [16] * 3
    assert all(motion.base is None for motion in motions)
    assert model.usual_sampling == DoubleTierGPT.usual_sampling


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty captioned clips, whose test split has captions that training never shows."""
    folder = tmp_path_factory.mktemp("held_out")
    write_joint_arrays(folder / "clips.npz", generate_clips(60, seed=2, fps=20.0, held_out="captions"))
    return folder


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    small = {"movement_hidden": 12, "movement_dim": 10, "motion_hidden": 8, "text_hidden": 6, "embedding_dim": 7}
    model = MotionTextEvaluator(
        EvaluatorConfig(**small, word_dim=5),
        mean=np.zeros(263),
        std=np.ones(263),
        label="fastvq evaluator, untrained",
    )
    folder = tmp_path_factory.mktemp("evaluator") / "mine"
    model.save(folder, {})
    return folder


def test_a_generator_is_measured_by_captions_and_by_the_protocol(
    fastvq: Callable[..., Any], gpt: Path, held_out: Path, evaluator: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.json"
    outcome = fastvq(
        *("evaluate", "--checkpoint", gpt, "--data", held_out, "--attributes", "--evaluator", evaluator),
        *("--repeats", 2, "--multimodality", 0, "--split", "all", "--json", scores),
    )
    assert outcome.code == 0, outcome.err
    values = json.loads(scores.read_text())
    assert (values["format"], values["kind"], values["split"]) == ("fastvq-generation/1", "hifigpt", "all")
    assert values["attributes"]["real"]["action"] == 1.0
    assert values["attributes"]["whole"]["count"] == 60
    assert values["evaluator"] == "fastvq evaluator, untrained"
    assert values["used"]["batches"] == 1
    for source in ("generated", "reconstructed", "real"):
        assert {"top1", "top2", "top3", "mm_dist", "fid", "diversity"} == set(values[source])
    assert set(values["shuffled"]) == {"top1", "top2", "top3", "mm_dist"}
    assert [row["batch"] for row in values["speed"]] == [1, 32]
    text = " ".join(outcome.out.replace("│", " ").split())
    assert "by the fastvq evaluator, untrained" in text
    assert "never with a paper's" in text
    assert "2 repeats, in the published protocol 20" in text
    assert "times as fast as they are played" in text


def test_captions_of_training_are_told_from_those_that_it_never_had(
    fastvq: Callable[..., Any], gpt: Path, held_out: Path, tmp_path: Path
) -> None:
    clips = generate_clips(60, seed=2, fps=20.0, held_out="captions")
    test = {clip.text for clip in clips if clip.split == "test"}
    known = next(clip for clip in clips if clip.split == "train" and clip.name.endswith("_wave"))
    told_again = Clip(name="again", fps=20.0, joints=known.joints, text=known.text, split="test")
    write_joint_arrays(tmp_path / "data" / "clips.npz", [*clips, told_again])
    scores = tmp_path / "scores.json"
    given = ("evaluate", "--checkpoint", gpt, "--attributes", "--guidance", 1, "--top-p", 0.5, "--data")
    assert fastvq(*given, tmp_path / "data", "--json", scores).code == 0
    values = json.loads(scores.read_text())
    assert values["sampling"] == {"guidance": 1.0, "temperature": 1.0, "top_k": None, "top_p": 0.5}
    values = values["attributes"]
    assert values["seen"]["count"] == 1
    assert values["unseen"]["captions"] == len(test)
    assert values["whole"]["count"] == values["seen"]["count"] + values["unseen"]["count"]
    assert fastvq(*given, held_out, "--json", scores, "--overwrite").code == 0
    assert json.loads(scores.read_text())["attributes"]["seen"] == {"count": 0, "captions": 0}


def test_without_data_the_held_out_captions_of_made_up_motions_are_asked(
    fastvq: Callable[..., Any], gpt: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.json"
    given = ("evaluate", "--checkpoint", gpt, "--attributes", "--clips", 60, "--seed", 2)
    outcome = fastvq(*given, "--json", scores)
    assert outcome.code == 0, outcome.err
    test = [clip for clip in generate_clips(60, seed=2, fps=20.0, held_out="captions") if clip.split == "test"]
    values = json.loads(scores.read_text())["attributes"]
    assert values["unseen"] == values["whole"]
    assert values["whole"]["count"] == len(test)
    assert f"{len(test)} of 60 made-up motions, split test" in outcome.out
    outcome = fastvq(*given[:4], "--clips", 1)
    assert (outcome.code, "is of the split 'test': raise --clips" in outcome.err) == (2, True)
    outcome = fastvq("evaluate", "--checkpoint", gpt / "tokenizer")
    assert (outcome.code, "measured on motions: give --data" in outcome.err) == (2, True)


def test_measurements_that_cannot_be_are_refused(
    fastvq: Callable[..., Any], gpt: Path, held_out: Path, tmp_path: Path
) -> None:
    given = ("evaluate", "--data", held_out, "--checkpoint")
    outcome = fastvq(*given, gpt)
    assert (outcome.code, "with --evaluator, --attributes or both: give one" in outcome.err) == (2, True)
    outcome = fastvq(*given, gpt, "--attributes", "--repeats", 0)
    assert (outcome.code, "repeats must be an integer of at least 1" in outcome.err) == (2, True)
    outcome = fastvq(*given, gpt / "tokenizer", "--attributes")
    assert (outcome.code, "is no generator" in outcome.err) == (2, True)
    silent = [dataclasses.replace(clip, text="dances") for clip in generate_clips(4, seed=0, fps=20.0)]
    write_joint_arrays(tmp_path / "data" / "clips.npz", silent)
    outcome = fastvq("evaluate", "--checkpoint", gpt, "--attributes", "--split", "all", "--data", tmp_path / "data")
    assert (outcome.code, "none of the 4 clips has one: leave it out" in outcome.err) == (2, True)
