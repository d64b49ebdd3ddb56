"""What all generators share: refusals, loading, and the tokenizer that they drive."""

import json

import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT
from fastvq.models.generators.generator import MotionGenerator
from fastvq.models.generators.kinds import GENERATORS, TOKENIZER, load_generator, load_with_tokenizer
from fastvq.models.generators.text.hashed import HashNgramEncoder
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([""], {}, r"texts\[0\] must say what to do"),
        (["walk " * 100], {}, "100 words, and this encoder takes 77"),
        (["walk"], {"lengths": [1, 2]}, "lengths must hold 1 number"),
        (["walk"], {"lengths": [13]}, r"lengths\[0\] must be an integer of at most 12"),
        (["walk"], {"lengths": [0]}, r"lengths\[0\] must be an integer of at least 1"),
        (["walk"], {"precision": "double"}, "precision must be exact or fast"),
        (["walk"], {"batch_size": 0}, "batch_size"),
    ],
    ids=str,
)
def test_bad_input_gets_one_sentence(generator: MotionGenerator, texts, options, message):
    with pytest.raises(UserError, match=message):
        generator.generate(texts, **options)


def test_another_text_encoder_is_refused(generator: MotionGenerator):
    with pytest.raises(UserError, match="give the encoder that it was trained with"):
        generator.use_text_encoder(HashNgramEncoder(seed=7))


def test_fast_generation_stays_in_the_weights_precision(generator: MotionGenerator):
    found = generator.generate(["walk"], lengths=[5], precision="fast")
    assert found[0].shape == (3, 5)


def test_a_run_folder_brings_its_tokenizer_and_another_is_refused(generator, rvqvae, tmp_path):
    run, step = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000001"
    for folder in (run, step):
        generator.save_pretrained(folder)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_with_tokenizer(run)
    rvqvae.save_pretrained(run / TOKENIZER)
    for folder in (run, step):
        found, tokenizer = load_with_tokenizer(folder)
        assert isinstance(found, DoubleTierGPT)
        assert tokenizer.config == rvqvae.config
    ResidualVQVAE(rvqvae.config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="its codes mean other motions"):
        load_with_tokenizer(run, tmp_path / "other")


def test_folders_that_hold_no_generator_are_named(rvqvae, generator, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load_generator(tmp_path / "nowhere")
    rvqvae.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="is of the kind 'rvqvae', which is no generator"):
        load_generator(tmp_path / "tokenizer")
    generator.save_pretrained(tmp_path / "generator")
    config = tmp_path / "generator" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dim": 64}))
    with pytest.raises(UserError, match="must have the shape"):
        load_generator(tmp_path / "generator")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sizes", [], "sizes must hold the number of codes of each stream"),
        ("sizes", 3, "sizes must hold the number of codes of each stream"),
        ("text_encoder", 3, "text_encoder must be text, got 3"),
        ("downsample", 5, "settings say downsample=5, and its tokenizer has 4"),
        ("fps", 30.0, "settings say fps=30.0, and its tokenizer has 20.0"),
    ],
)
def test_edited_settings_are_told(generator, rvqvae, tmp_path, name, value, message):
    generator.save_pretrained(tmp_path / "run")
    rvqvae.save_pretrained(tmp_path / "run" / TOKENIZER)
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with pytest.raises(UserError, match=message):
        load_with_tokenizer(tmp_path / "run")


def test_every_kind_is_registered_by_its_name():
    for name, kind in GENERATORS.items():
        assert kind.generator.config_class.kind == name
        with torch.device("meta"):
            assert kind.generator().config.kind == name
