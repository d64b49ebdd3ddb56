import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fastvq.codes import unpack_codes
from fastvq.models.errors import UserError
from fastvq.models.kinds import KINDS, load_tokenizer
from fastvq.models.tokenizers.code_use import code_use
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens, write_tokens

TINY = ResidualVQVAEConfig(width=16, output_dim=8, codebook_size=16, depth=1, stages=3)


def walk(frames, width=263, seed=0):
    draw = np.random.default_rng(seed)
    speed, phase = draw.uniform(0.5, 4, width), draw.uniform(0, 6, width)
    return np.sin(np.arange(frames)[:, None] / 20 * speed + phase).astype(np.float32)


def trained(**changes):
    """A model whose codebooks come from data, in evaluation mode."""
    config = dataclasses.replace(TINY, **changes)
    torch.manual_seed(0)
    width = config.input_dim
    model = ResidualVQVAE(config, mean=np.linspace(-1, 1, width), std=np.linspace(0.5, 2, width)).train()
    with torch.no_grad():
        for seed in range(3):
            model(walk(128, width, seed))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained()


def test_the_default_is_the_one_of_the_literature():
    with torch.device("meta"):
        model = ResidualVQVAE()
    config = model.config
    assert (config.stages, config.codebook_size, config.output_dim, config.downsample) == (6, 512, 512, 4)
    assert (config.decay, config.commitment_weight, config.quantize_dropout) == (0.99, 0.02, 0.2)
    assert model.quantizer.codebooks.codebook.shape == (1, 1, 512, 512), "one codebook for all stages"
    assert model.get_codebook_embeddings().shape == (6, 512, 512)
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2) == 19.44


@pytest.mark.parametrize("width", [251, 263, 272])
@pytest.mark.parametrize("down_stages", [2, 3])
@pytest.mark.parametrize("stages", [1, 8])
def test_shapes(width, down_stages, stages):
    model = trained(input_dim=width, down_stages=down_stages, stages=stages)
    tokens = model.encode(walk(41, width))
    latents = -(-41 // 2**down_stages)
    assert tokens.shape == (stages, 1, latents)
    assert 0 <= tokens.min() <= tokens.max() < 16
    assert model.decode(tokens).shape == (1, latents * 2**down_stages, width)
    recon, same = model(walk(41, width))
    assert recon.shape == (1, 41, width)
    assert torch.equal(same, tokens)
    assert model.config.fps == {251: 12.5, 263: 20.0, 272: 30.0}[width]
    motions = [walk(frames, width, frames) for frames in (41, 4, 64)]
    tokens = model.encode_batch(motions)
    decoded = model.decode_batch(tokens, [len(motion) for motion in motions])
    for motion, found in zip(motions, decoded, strict=True):
        expected = model.decode(model.encode(motion))[0, : len(motion)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_decoding_sums_the_codes_of_the_stages(model):
    motion = walk(32)
    tokens = model.encode(motion)
    codes = model.get_codebook_embeddings()
    latents = sum(codes[stage][tokens[stage]] for stage in range(3))
    expected = model.denormalise(model.decoder(latents))
    torch.testing.assert_close(model.decode(tokens), expected, rtol=1e-5, atol=1e-5)
    residual = model.encoder(model.normalise(torch.from_numpy(motion)[None]))
    for stage in range(3):
        distance = torch.cdist(residual.double(), codes[stage].double()[None])
        chosen = distance.gather(-1, tokens[stage].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(chosen, distance.amin(-1), rtol=1e-6, atol=1e-6)
        residual = residual - codes[stage][tokens[stage]]


def test_later_stages_may_be_left_out(model):
    tokens = model.encode(walk(32))
    coarse = tokens.clone()
    coarse[1:] = -1
    first = model.get_codebook_embeddings()[0][tokens[0]]
    expected = model.denormalise(model.decoder(first))
    torch.testing.assert_close(model.decode(coarse), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_quantize_dropout_drops_last_stages_in_training_only(probability):
    model = trained(quantize_dropout=probability).train()
    taken = set()
    with torch.no_grad():
        for _ in range(40):
            tokens = model(walk(32))[1]
            counts = (tokens >= 0).all(dim=(1, 2)).tolist()
            assert counts == sorted(counts, reverse=True)
            assert torch.equal((tokens >= 0).any(dim=2).any(dim=1), torch.tensor(counts))
            taken.add(sum(counts))
    assert taken == ({1, 2, 3} if probability else {3})
    assert (model.eval().encode(walk(32)) >= 0).all()


def test_a_saved_model_returns_and_is_known_by_its_kind(model, tmp_path):
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["kind"], values["format"]) == ("rvqvae", "fastvq-rvqvae/1")
    for load in (ResidualVQVAE.from_pretrained, load_tokenizer):
        loaded = load(tmp_path)
        assert type(loaded) is ResidualVQVAE
        assert loaded.config == model.config
        assert not loaded.training
        assert torch.equal(loaded.encode(walk(64)), model.encode(walk(64)))
        own, other = model.state_dict(), loaded.state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    with pytest.raises(UserError, match="is of the kind 'rvqvae', expected 'motion-vqvae'"):
        MotionVQVAE.from_pretrained(tmp_path)
    for kind in ("gan", ["rvqvae"], {}):
        (tmp_path / "config.json").write_text(json.dumps({**values, "kind": kind}))
        known = f"is of the kind {kind!r}, and this version of fastvq knows {', '.join(KINDS)}"
        with pytest.raises(UserError, match=re.escape(known)):
            load_tokenizer(tmp_path)
    with pytest.raises(TypeError, match="config must be a TokenizerConfig, got dict"):
        load_tokenizer(tmp_path, config={})


def test_another_tokenizer_is_loaded_by_its_kind(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert type(load_tokenizer(tmp_path)) is MotionVQVAE
    with pytest.raises(UserError, match="is of the kind 'motion-vqvae', expected 'rvqvae'"):
        ResidualVQVAE.from_pretrained(tmp_path)


def test_token_files_hold_a_grid_of_time_and_depth(model, tmp_path):
    path = tmp_path / "tokens.safetensors"
    tokens = [model.encode(walk(frames, seed=frames))[:, 0] for frames in (41, 8)]
    write_tokens(path, model, [("a", 41, tokens[0]), ("b", 8, tokens[1])])
    manifest = read_manifest(path)
    assert {name: manifest[name] for name in ("kind", "K", "groups", "stages", "downsample", "fps")} == {
        "kind": "rvqvae",
        "K": [16, 16, 16],
        "groups": 1,
        "stages": 3,
        "downsample": 4,
        "fps": 20.0,
    }
    with safe_open(path, "pt") as file:
        rows = unpack_codes(file.get_tensor("codes"), 16, (13, 3))
    assert torch.equal(rows, torch.cat([part.t() for part in tokens]))
    found = read_tokens(path, model)
    assert [(clip.name, clip.frames) for clip in found] == [("a", 41), ("b", 8)]
    assert all(torch.equal(clip.tokens, part) for clip, part in zip(found, tokens, strict=True))
    with pytest.raises(UserError, match=r"another model \(a rvqvae with 3 stages of 16 codes"):
        read_tokens(path, trained(stages=4))


def test_a_shared_codebook_is_counted_over_all_stages():
    counts = torch.zeros(3, 16, dtype=torch.int64)
    counts[0, :4], counts[1, 4:8], counts[2, 8:12] = 5, 5, 5
    use = code_use(counts, TINY)
    assert use["perplexity"] == pytest.approx(12)
    assert use["utilisation"] == pytest.approx(12 / 16)
    assert use["perplexity_per_stage"] == pytest.approx([4, 4, 4])
    assert use["utilisation_per_stage"] == pytest.approx([0.25, 0.25, 0.25])
    own = code_use(counts, dataclasses.replace(TINY, shared=False), each=False)
    assert own == {"perplexity": pytest.approx(4), "utilisation": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stages": 0}, "stages must be an integer of at least 1, got 0"),
        ({"stages": 9}, "stages must be at most 8, got 9"),
        ({"quantize_dropout": 1.5}, "quantize_dropout must be a number at least 0 and at most 1, got 1.5"),
        ({"input_dim": 100}, r"251 \(KIT-ML\), 263 \(HumanML3D\), 272 \(272-dim\); got 100"),
        ({"width": 0}, "width must be an integer of at least 1"),
        ({"shared": "no"}, "shared must be true or false, got 'no'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TINY, **changes)


def test_motions_and_tokens_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match=r"motion must have the shape \(T, 263\) or \(B, T, 263\), got \(20, 272\)"):
        model.encode(walk(20, 272))
    with pytest.raises(UserError, match="at least 4 frames"):
        model.encode(walk(3))
    with pytest.raises(UserError, match=r"tokens must have the shape \(3, B, T'\)"):
        model.decode(torch.zeros(6, 1, 5, dtype=torch.int64))
    with pytest.raises(UserError, match="tokens must lie in 0 to 15"):
        model.decode(torch.full((3, 1, 5), 16))
    with pytest.raises(UserError, match="keys that a rvqvae does not know: groups"):
        ResidualVQVAEConfig.from_dict({"groups": 4})
