"""Generators learn from motions in tokens: the data, the run folder, and going on to the bit."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from fastvq.models.errors import UserError
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT, DoubleTierGPTConfig
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.humanml3d_texts import Caption, caption_lines
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.training.data import prepare_clips
from fastvq.models.training.generator import TOKENIZER, GeneratorTrainConfig, train_generator
from fastvq.models.training.generator_data import (
    CaptionedMotion,
    CaptionedTokens,
    TextTable,
    TokenSampler,
    read_captioned_folder,
    tokenise,
    with_text,
)
from fastvq.models.training.run_folder import RunFolder

CONFIG = GeneratorTrainConfig(
    model=DoubleTierGPTConfig(dim=32, layers=1, depth_layers=1, heads=2, longest=12),
    steps=6,
    batch_size=4,
    lr=1e-3,
    warmup=2,
    checkpoint_every=4,
    log_every=2,
)


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture() -> ResidualVQVAE:
    torch.manual_seed(0)
    model = ResidualVQVAE(ResidualVQVAEConfig(width=16, output_dim=16, codebook_size=16, stages=2, depth=1)).train()
    with torch.no_grad():
        model(np.random.default_rng(0).standard_normal((4, 64, 263)).astype(np.float32))
    return model.eval()


@pytest.fixture(scope="module", name="motions")
def motions_fixture() -> list[CaptionedMotion]:
    form = format_of(263)
    return with_text(prepare_clips(generate_clips(12, seed=0, fps=form.fps), fps=form.fps, form=form))


@pytest.fixture(scope="module", name="tokens")
def tokens_fixture(tokenizer, motions) -> list[CaptionedTokens]:
    return tokenise(tokenizer, motions)


def fitted(tokenizer, **changes) -> GeneratorTrainConfig:
    model = CONFIG.model.fitted(tokenizer, open_text_encoder("hash"))
    model = dataclasses.replace(model, **changes.pop("model", {}))
    return dataclasses.replace(CONFIG, model=model, **changes)


def trained(config, tokens, tokenizer, out, **options):
    return train_generator(config, DoubleTierGPT, tokens, tokenizer, open_text_encoder("hash"), out, **options)


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16", "grad_clip": 1.0}, {"model": {"text_tokens": True}}], ids=str
)
def test_a_resumed_run_ends_with_the_same_weights(tokenizer, tokens, tmp_path, changes):
    config = fitted(tokenizer, **changes)
    whole = trained(config, tokens, tokenizer, tmp_path / "whole")
    trained(dataclasses.replace(config, steps=4), tokens, tokenizer, tmp_path / "parts")
    resumed = trained(config, tokens, tokenizer, tmp_path / "parts", resume=True)
    assert whole.step == resumed.step == 6
    state = whole.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.model.state_dict().items())
    written = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    rows = [[json.loads(line) for line in lines] for lines in written]
    assert [row["step"] for row in rows[0]] == [2, 4, 6]
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == other["loss"]
        assert sum(one["cross_entropy_per_stage"]) > 0


def test_a_run_folder_generates_by_itself(tokenizer, tokens, tmp_path):
    result = trained(fitted(tokenizer), tokens, tokenizer, tmp_path / "run")
    generator, own = load_with_tokenizer(tmp_path / "run")
    wanted = result.model.generate(["a person walks forward"], seed=3)[0]
    found = generator.generate(["a person walks forward"], seed=3)[0]
    assert torch.equal(found, wanted)
    assert own.decode(found).shape[0] == 1
    load_with_tokenizer(RunFolder(tmp_path / "run").last())
    assert result.clips == sum(clip.split == "train" for clip in tokens)


def test_a_generator_learns_which_motion_a_text_asks_for(tokenizer, tmp_path):
    """Two texts, two constant motions of two lengths: after some steps each text gets its own."""
    clips = [
        CaptionedTokens("a", torch.tensor([[3] * 4, [5] * 4]), ("go left",)),
        CaptionedTokens("b", torch.tensor([[7] * 6, [2] * 6]), ("go right", "move right")),
    ]
    config = fitted(tokenizer, steps=150, lr=3e-3, batch_size=8, drop_token=0.0, log_every=150)
    model = trained(config, clips, tokenizer, tmp_path / "run").model
    found = model.generate(["go left", "go right", "move right"], sampling=Sampling(guidance=2.0, temperature=0.0))
    for one, clip in zip(found, [clips[0], clips[1], clips[1]], strict=True):
        assert torch.equal(one, clip.tokens)


def test_other_data_or_another_tokenizer_cannot_be_resumed(tokenizer, tokens, tmp_path):
    config = fitted(tokenizer)
    trained(dataclasses.replace(config, steps=4), tokens, tokenizer, tmp_path / "run")
    other = [dataclasses.replace(clip, texts=(*clip.texts, "more")) for clip in tokens]
    with pytest.raises(UserError, match="with other training clips"):
        trained(config, other, tokenizer, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="trained with the tokenizer of sha256"):
        trained(config, tokens, ResidualVQVAE(tokenizer.config), tmp_path / "other")


def test_a_run_without_a_checkpoint_begins_again_with_the_tokenizer_that_it_is_given(tokenizer, tokens, tmp_path):
    ResidualVQVAE(tokenizer.config).save_pretrained(tmp_path / "run" / TOKENIZER)
    trained(fitted(tokenizer, steps=1), tokens, tokenizer, tmp_path / "run", resume=True)
    load_with_tokenizer(tmp_path / "run")


def test_tokens_are_the_tokenizers_own_and_motions_without_text_are_left_out(tokenizer, motions):
    silent = [dataclasses.replace(motion, texts=()) for motion in motions[:3]]
    found = tokenise(tokenizer, [*silent, *motions[3:]])
    assert [clip.name for clip in found] == [motion.name for motion in motions[3:]]
    assert torch.equal(found[0].tokens, tokenizer.encode(motions[3].features)[:, 0])
    with pytest.raises(UserError, match="none of the 3 motions has one"):
        tokenise(tokenizer, silent)


def test_batches_depend_on_the_step_alone_and_are_cut_to_the_longest(tokens):
    table = TextTable(open_text_encoder("hash"), [text for clip in tokens for text in clip.texts], tokens=True)
    sampler = TokenSampler(tokens, table, batch_size=64, longest=16, seed=1, drop_token=0.5)
    batch, again = sampler.batch(3), sampler.batch(3)
    assert torch.equal(batch.tokens, again.tokens)
    assert not torch.equal(batch.text.pooled, sampler.batch(4).text.pooled)
    assert batch.tokens.shape == (64, 16, 2)
    assert batch.text.tokens.shape[:2] == batch.text.mask.shape
    by_text = {text: clip for clip in tokens for text in clip.texts}
    pooled = {table[[text]].pooled[0].numpy().tobytes(): clip for text, clip in by_text.items()}
    assert len(pooled) == len(by_text)
    seen = set()
    for row, length, ends, text in zip(batch.tokens, batch.lengths, batch.ends, batch.text.pooled, strict=True):
        whole = pooled[text.numpy().tobytes()].tokens.t()
        part = row[:length]
        assert bool((row[length:] == -1).all())
        places = [at for at in range(len(whole) - len(part) + 1) if torch.equal(whole[at : at + len(part)], part)]
        assert places
        cut = len(whole) - len(part)
        seen.add((min(cut, 2), bool(ends)))
        # Only the first or the last token may be missing of a motion that ends.
        assert cut <= 1 or not ends or places[-1] >= cut - 1
    assert {(0, True), (1, True), (2, False)} <= seen


def test_texts_that_the_encoder_refuses_are_left_out_and_told(tokenizer, tokens, tmp_path):
    long = "walk " * 78
    clips = [dataclasses.replace(tokens[0], texts=(long, "walk")), dataclasses.replace(tokens[1], texts=(long,))]
    console = Console(file=io.StringIO(), width=400)
    trained(fitted(tokenizer, steps=1), clips, tokenizer, tmp_path / "run", console=console)
    assert "1 of 2 texts are left out: the text 'walk walk" in console.file.getvalue()
    table = TextTable(open_text_encoder("hash"), [long, "walk"], tokens=False)
    sampler = TokenSampler(clips, table, batch_size=2, longest=12, seed=0)
    assert [clip.texts for clip in sampler.clips] == [("walk",)]
    with pytest.raises(UserError, match=r"there are none \(the text 'walk walk"):
        trained(fitted(tokenizer), clips[1:], tokenizer, tmp_path / "other")


def test_a_humanml3d_folder_gives_all_texts_and_the_parts_that_they_describe(motions, tmp_path):
    for name in ("new_joint_vecs", "texts"):
        (tmp_path / name).mkdir()
    for motion in motions[:2]:
        np.save(tmp_path / "new_joint_vecs" / f"{motion.name}.npy", motion.features)
    captions = [Caption("a person moves"), Caption("somebody moves"), Caption("begins", start=0.0, end=1.0)]
    (tmp_path / "texts" / f"{motions[0].name}.txt").write_text(caption_lines(captions, "test"))
    (tmp_path / "train.txt").write_text(f"{motions[0].name}\n")
    (tmp_path / "test.txt").write_text(f"{motions[1].name}\n")
    (tmp_path / "texts" / f"{motions[1].name}.txt").write_text("a test#a/DET test/NOUN#0.0#0.0\n")
    found = {motion.name: motion for motion in read_captioned_folder(tmp_path)[0]}
    assert set(found) == {motions[0].name, f"{motions[0].name}_0_20", motions[1].name}
    assert found[motions[0].name].texts == ("a person moves", "somebody moves")
    assert found[f"{motions[0].name}_0_20"].texts == ("begins",)
    assert len(found[f"{motions[0].name}_0_20"].features) == 20
    assert [found[motion.name].split for motion in motions[:2]] == ["train", "test"]


@pytest.mark.parametrize(
    "wrong",
    [{"warmup": -1}, {"drop_token": 2.0}, {"grad_clip": 0.0}, {"milestones": (0,)}, {"gamma": 0.0}],
    ids=str,
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        GeneratorTrainConfig(**wrong)


def test_the_learning_rate_rises_then_falls():
    config = GeneratorTrainConfig(lr=1.0, warmup=4, milestones=(10,), gamma=0.5)
    assert [config.learning_rate(step) for step in (0, 3, 9, 10)] == [0.25, 1.0, 1.0, 0.5]
