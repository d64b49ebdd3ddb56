"""PGR2M's transformers learn from a pgr2m's tokens, the second one on the first."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.generators.refine_transformer import RefineTransformer, RefineTransformerConfig
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.training.data import prepare_clips
from fastvq.models.training.generator import train_generator
from fastvq.models.training.generator_data import tokenise, with_text
from fastvq.models.training.pgr2m_generators import BaseTrainConfig, RefineTrainConfig, train_refine
from fastvq.models.training.run_folder import RunFolder

SHORT = {"steps": 6, "batch_size": 4, "lr": 1e-3, "warmup": 2, "checkpoint_every": 4, "log_every": 2}
BASE = BaseTrainConfig(model=BaseTransformerConfig(dim=32, layers=1, heads=2, longest=12, clean_decay=0.5), **SHORT)
REFINE = RefineTrainConfig(model=RefineTransformerConfig(layers=1, heads=2), **SHORT)
WALK = "a person walks forward"


@pytest.fixture(scope="module", name="motions")
def motions_fixture():
    return prepare_clips(generate_clips(12, seed=0, fps=20.0), fps=20.0, form=format_of(263))


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(motions):
    torch.manual_seed(0)
    config = PGR2MConfig(width=16, output_dim=16, codebook_size=16, stages=2, depth=1, residual_dropout=0.0)
    every = np.concatenate([clip.features for clip in motions])
    model = PGR2MTokenizer(config, mean=every.mean(0), std=every.std(0) + 0.1).train()
    with torch.no_grad():
        for clip in motions[:4]:
            model(clip.features[: len(clip.features) // 4 * 4])
    return model.eval()


@pytest.fixture(scope="module", name="tokens")
def tokens_fixture(tokenizer, motions):
    return tokenise(tokenizer, with_text(motions))


@pytest.fixture(scope="module", name="base")
def base_fixture(tokenizer, tokens, tmp_path_factory):
    return train_base(tokenizer, tokens, tmp_path_factory.mktemp("base")).model


def train_base(tokenizer, tokens, out, config=BASE, **options):
    encoder = open_text_encoder("hash")
    config = dataclasses.replace(config, model=config.model.fitted(tokenizer, encoder))
    return train_generator(config, BaseTransformer, tokens, tokenizer, encoder, out, **options)


def assert_same(whole, resumed):
    state = whole.model.state_dict()
    assert whole.step == resumed.step == 6
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("model", [{}, {"keywords": "words", "text_dropout": 0.2}], ids=str)
def test_a_resumed_base_ends_with_the_same_weights(tokenizer, tokens, tmp_path, changes, model):
    config = dataclasses.replace(BASE, **changes, model=dataclasses.replace(BASE.model, **model))
    whole = train_base(tokenizer, tokens, tmp_path / "whole", config)
    train_base(tokenizer, tokens, tmp_path / "parts", dataclasses.replace(config, steps=4))
    resumed = train_base(tokenizer, tokens, tmp_path / "parts", config, resume=True)
    assert_same(whole, resumed)
    assert int(resumed.model.seen) == 6
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(0 <= row["accuracy"] <= 1 and row["loss"] > 0 for row in rows)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}], ids=str)
def test_a_resumed_refine_ends_with_the_same_weights(tokenizer, tokens, base, tmp_path, changes):
    config = dataclasses.replace(REFINE, **changes)
    whole = train_refine(config, base, tokens, tokenizer, tmp_path / "whole")
    train_refine(dataclasses.replace(config, steps=4), base, tokens, tokenizer, tmp_path / "parts")
    resumed = train_refine(config, base, tokens, tokenizer, tmp_path / "parts", resume=True)
    assert_same(whole, resumed)
    for result in (whole, resumed):
        assert torch.equal(result.model.pose.weight, base.pose.weight)


def test_run_folders_generate_by_themselves(tokenizer, tokens, base, tmp_path):
    result = train_refine(REFINE, base, tokens, tokenizer, tmp_path / "run")
    assert (result.model.config.dim, result.model.config.longest) == (32, 12)
    wanted = result.model.generate([WALK])[0]
    for folder in (tmp_path / "run", RunFolder(tmp_path / "run").last()):
        generator, own = load_with_tokenizer(folder)
        assert isinstance(generator, RefineTransformer)
        assert torch.equal(generator.generate([WALK])[0], wanted)
        assert own.decode(wanted).shape == (1, 4 * wanted.shape[1], 263)
    assert torch.equal(wanted[:70], base.generate([WALK])[0][:70])


def test_a_refine_goes_with_its_tokenizer_and_base_alone(tokenizer, tokens, base, tmp_path):
    other_tokenizer = PGR2MTokenizer(tokenizer.config).eval()
    with pytest.raises(UserError, match=r"was trained with the tokenizer of sha256 \w{12}, and this one has \w{12}"):
        train_refine(REFINE, base, tokens, other_tokenizer, tmp_path / "none")
    train_refine(dataclasses.replace(REFINE, steps=4), base, tokens, tokenizer, tmp_path / "run")
    base_run = tmp_path / "base"
    train_base(tokenizer, tokens, base_run, dataclasses.replace(BASE, steps=4))
    other = BaseTransformer(base.config)
    with pytest.raises(UserError, match=r"cannot resume with other settings: model.base_sha256 \(was "):
        train_refine(REFINE, other, tokens, tokenizer, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"cannot resume with other settings: model.tokenizer_sha256 \(was "):
        train_base(other_tokenizer, tokens, base_run, resume=True)
    assert torch.equal(load_with_tokenizer(base_run)[1].pose_codebook, tokenizer.pose_codebook)
    kept = BaseTransformer.from_pretrained(tmp_path / "run" / "base").state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items())
    train_refine(REFINE, base, tokens, tokenizer, tmp_path / "run", resume=True)


def test_a_refine_without_a_checkpoint_begins_again_with_the_base_that_it_is_given(tokenizer, tokens, base, tmp_path):
    BaseTransformer(base.config).save_pretrained(tmp_path / "run" / "base")
    train_refine(dataclasses.replace(REFINE, steps=1), base, tokens, tokenizer, tmp_path / "run", resume=True)
    load_with_tokenizer(tmp_path / "run")


def test_the_published_recipes():
    one, two = BaseTrainConfig(), RefineTrainConfig()
    assert (one.steps, one.batch_size, one.lr, one.betas, one.weight_decay) == (300_000, 64, 1e-4, (0.5, 0.9), 1e-6)
    assert (one.warmup, one.milestones, one.gamma, one.drop_token) == (0, (150_000,), 0.05, 1 / 3)
    assert (two.steps, two.batch_size, two.lr, two.betas, two.weight_decay) == (150_000, 64, 2e-4, (0.5, 0.9), 1e-6)
    assert (two.warmup, two.milestones, two.gamma) == (5000, (45_000,), 0.5)
