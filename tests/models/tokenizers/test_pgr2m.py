import dataclasses
import json

import numpy as np
import pytest
import torch

from fastvq import ResidualAttentionVQ
from fastvq.models.errors import UserError
from fastvq.models.kinds import load_tokenizer
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.pose_codes import parse_features
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.code_use import code_use, count_codes
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens, write_tokens
from fastvq.models.training.data import prepare_clips

TINY = PGR2MConfig(width=16, output_dim=8, codebook_size=16, depth=1, stages=3)
QUANTIZERS = pytest.mark.parametrize("quantizer", ["attention", "distance"])


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(8, seed=3), fps=20.0, form=format_of(263))


@pytest.fixture(scope="module")
def motion(clips):
    """(50, 263), no multiple of 4."""
    return clips[0].features[:50]


def trained(motions, **changes):
    """A model whose residual codebooks come from data, in evaluation mode."""
    torch.manual_seed(0)
    mean, std = np.concatenate(motions).mean(axis=0), np.concatenate(motions).std(axis=0) + 0.1
    model = PGR2MTokenizer(dataclasses.replace(TINY, **changes), mean=mean, std=std).train()
    with torch.no_grad():
        for one in motions:
            model(one)
        for map_ in (stage.value for stage in getattr(model.quantizer, "stages", ())):
            map_.weight.add_(0.3 * torch.randn(8, 8))  # as training would move it away from the identity
            map_.bias.add_(0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model(clips):
    return trained([clip.features for clip in clips[:4]])


def test_the_default_is_the_published_one_but_for_the_start():
    with torch.device("meta"):
        model = PGR2MTokenizer()
    config = model.config
    assert (config.input_dim, config.stages, config.codebook_size, config.output_dim) == (263, 6, 512, 512)
    assert (config.downsample, config.detach_pose, config.quantize_dropout, config.residual_dropout) == (
        4,
        True,
        0.2,
        0.1,
    )
    assert (config.commitment_weight, config.beta) == (0.02, 0.25)
    assert (config.entropy_weight, config.entropy_temperature) == (0.01, 0.01)
    assert (config.start, config.dead_below) == ("identity", 0.5), "ours; random and 0 are published"
    stack = model.quantizer
    assert type(stack) is ResidualAttentionVQ
    assert stack.dropout.probability == 0.2
    stage = stack.stages[5]
    assert (stage.beta, stage.loss_weight, stage.entropy_weight, stage.entropy_temperature) == (
        0.25,
        0.02,
        0.01,
        0.01,
    )
    assert [stage.codebooks.codebook.shape for stage in stack.stages] == [(1, 512, 512)] * 6, "a codebook each"
    # Encoder and decoder, pose codes, and in each stage codes, three maps with bias and two norms.
    attention = 6 * (512 * 512 + 3 * (512 * 512 + 512) + 2 * 512)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round((trainable - attention - 392 * 512) / 1e6, 2) == 19.44


def test_the_published_start_has_random_maps_and_the_first_rows(motion):
    model = PGR2MTokenizer(dataclasses.replace(TINY, start="random", dead_below=0.0, residual_dropout=0.0)).train()
    stage = model.quantizer.stages[0]
    assert not torch.equal(stage.query.weight, torch.eye(8))
    assert stage.codebooks.rules.dead is None
    features = torch.from_numpy(motion[None, :48])
    residual = model.encoder(model.normalise(features)) - model.pose_latents(model.read_codes(features))
    with torch.no_grad():
        model(features)
    torch.testing.assert_close(stage.codebooks.codebook[0, :12], residual[0])


@QUANTIZERS
@pytest.mark.parametrize("stages", [0, 1, 8])
def test_shapes(motion, stages, quantizer):
    model = trained([motion], stages=stages, quantizer=quantizer)
    tokens = model.encode(motion)
    assert tokens.shape == (70 + stages, 1, 13)
    assert all(0 <= row.min() <= row.max() < size for row, size in zip(tokens, model.config.sizes, strict=True))
    assert model.decode(tokens).shape == (1, 52, 263)
    recon, same = model(motion)
    assert recon.shape == (1, 50, 263)
    assert torch.equal(same, tokens)
    torch.testing.assert_close(recon, model.decode(tokens)[:, :50], rtol=1e-5, atol=1e-5)
    assert model.get_codebook_embeddings().shape == (stages, 16, 8)
    assert (model.quantizer is None) == (stages == 0)


def test_the_first_tokens_are_the_pose_codes_and_the_others_quantize_what_they_leave(model, motion):
    tokens = model.encode(motion)[:, 0]
    assert torch.equal(tokens[:70].t(), torch.from_numpy(parse_features(motion[::4]).bins))
    padded = torch.from_numpy(np.concatenate([motion, motion[-1:], motion[-1:]]))[None]
    pose = torch.from_numpy(model.pose_codes(tokens).k_hot).float() @ model.pose_codebook.detach()
    residual = model.encoder(model.normalise(padded))[0] - pose
    total = pose
    for number, stage in enumerate(model.quantizer.stages):
        raw = stage.codebooks.codebook[0]
        norm = torch.nn.functional.rms_norm
        scores = norm(stage.query(residual), (8,), eps=1e-5) @ norm(stage.key(raw), (8,), eps=1e-5).T
        chosen = scores.gather(1, tokens[70 + number, :, None]).squeeze(1)
        torch.testing.assert_close(chosen, scores.amax(1), rtol=1e-5, atol=1e-5)
        code = stage.value(raw)[tokens[70 + number]]
        residual, total = residual - code, total + code
    expected = model.denormalise(model.decoder(total[None]))
    torch.testing.assert_close(model.decode(tokens[:, None]), expected, rtol=1e-4, atol=1e-5)


def test_decoding_takes_projected_codes_and_may_leave_stages_out(model, motion):
    tokens = model.encode(motion)
    codes = model.get_codebook_embeddings()
    raw = torch.cat([stage.codebooks.codebook for stage in model.quantizer.stages])
    assert not torch.allclose(codes, raw, atol=0.05)
    pose = model.pose_latents(tokens[:70].permute(1, 2, 0)).detach()
    for kept in range(4):
        coarse = tokens.clone()
        coarse[70 + kept :] = -1
        latents = pose + sum((codes[q][tokens[70 + q]] for q in range(kept)), start=torch.zeros(8))
        expected = model.denormalise(model.decoder(latents))
        torch.testing.assert_close(model.decode(coarse), expected, rtol=1e-4, atol=1e-5)


@QUANTIZERS
def test_the_residual_moves_no_pose_code_and_the_decoder_does(motion, quantizer):
    model = trained([motion], quantizer=quantizer, residual_dropout=0.0, quantize_dropout=0.0).train()
    features = torch.from_numpy(motion[None, :48])
    codes = model.read_codes(features)
    quantized, _, loss = model.quantize(model.encoder(model.normalise(features)), None, codes)
    loss.backward(retain_graph=True)
    assert model.pose_codebook.grad is None
    assert model.encoder.conv_in.weight.grad.any()
    quantized.sum().backward()
    k_hot = torch.from_numpy(parse_features(motion[:48:4]).k_hot).float()
    torch.testing.assert_close(model.pose_codebook.grad, k_hot.sum(0)[:, None].expand(-1, 8))


@QUANTIZERS
def test_residual_dropout_decodes_the_pose_alone_in_that_share_of_training_steps(motion, quantizer):
    model = trained([motion], quantizer=quantizer, residual_dropout=0.25, quantize_dropout=0.0).train()
    features = torch.from_numpy(motion[None, :48])
    codes, dropped = model.read_codes(features), 0
    mask = torch.arange(12) < 9
    pose = model.pose_latents(codes.masked_fill(~mask[:, None], -1)).detach()
    steps = 400
    for _ in range(steps):
        latents = torch.randn(1, 12, 8, requires_grad=True)
        quantized, indices, loss = model.quantize(latents, mask[None], codes)
        (quantized.sum() + loss).backward()
        if (indices[0, :9, 70:] == -1).any():
            dropped += 1
            assert (indices[..., 70:] == -1).all()
            assert torch.equal(quantized.detach(), pose)
            assert loss == 0
            assert latents.grad is None
        else:
            assert latents.grad[0, :9].any()
        assert torch.equal(indices[0, :9, :70], codes[0, :9])
        assert (indices[0, 9:] == -1).all()
    assert abs(dropped - steps / 4) < 4 * (steps * 0.25 * 0.75) ** 0.5
    model.eval()
    assert all((model.quantize(latents, None, codes).indices >= 0).all() for _ in range(20))


def test_each_motion_of_a_batch_has_the_tokens_that_it_has_alone(model, clips):
    motions = [clip.features[:frames] for clip, frames in zip(clips, (41, 4, 64), strict=False)]
    tokens = model.encode_batch(motions)
    for row, one in enumerate(motions):
        alone = model.encode(one)
        assert torch.equal(tokens[:, row, : alone.shape[2]], alone[:, 0])
        assert (tokens[:, row, alone.shape[2] :] == -1).all()
    for one, found in zip(motions, model.decode_batch(tokens, [len(one) for one in motions]), strict=True):
        torch.testing.assert_close(found, model.decode(model.encode(one))[0, : len(one)], rtol=1e-4, atol=1e-5)


@QUANTIZERS
@pytest.mark.parametrize("stages", [0, 3])
def test_a_saved_model_returns(motion, tmp_path, stages, quantizer):
    model = trained([motion], stages=stages, quantizer=quantizer)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["kind"], values["format"], values["quantizer"]) == ("pgr2m", "fastvq-pgr2m/1", quantizer)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is PGR2MTokenizer
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(motion), model.encode(motion))
    assert torch.equal(loaded.decode(model.encode(motion)), model.decode(model.encode(motion)))
    if stages:
        other = dataclasses.replace(model.config, quantizer="distance" if quantizer == "attention" else "attention")
        with pytest.raises(UserError, match=r"lacks quantizer\."):
            PGR2MTokenizer.from_pretrained(tmp_path, config=other)


def test_token_files(model, motion, tmp_path):
    tokens = model.encode(motion)[:, 0]
    path = tmp_path / "tokens.safetensors"
    write_tokens(path, model, [("a", 50, tokens)])
    manifest = read_manifest(path)
    assert (manifest["kind"], manifest["stages"], manifest["K"][70:]) == ("pgr2m", 73, [16, 16, 16])
    assert torch.equal(read_tokens(path, model)[0].tokens, tokens)


def test_code_use_is_that_of_each_stage(model, motion):
    use = code_use(count_codes(model.encode(motion).permute(1, 2, 0), model.config), model.config)
    assert len(use["perplexity_per_stage"]) == 3
    assert use["perplexity"] == pytest.approx(np.mean(use["perplexity_per_stage"]))


def test_steps_without_residuals_say_nothing_of_code_use(model):
    assert code_use(torch.zeros(3, 16, dtype=torch.int64), model.config) == {}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stages": 9}, "stages must be an integer of at most 8"),
        ({"input_dim": 272}, r"input_dim of a pgr2m must be 263 \(HumanML3D\) or 251 \(KIT-ML\)"),
        ({"residual_dropout": 1.5}, "residual_dropout must be a number at least 0 and at most 1, got 1.5"),
        ({"beta": -1}, "beta must be a number at least 0"),
        ({"entropy_weight": float("nan")}, "entropy_weight must be a number at least 0, got nan"),
        ({"entropy_temperature": 0}, "entropy_temperature must be a number above 0, got 0"),
        ({"quantizer": "nearest"}, "quantizer must be one of attention, distance, got 'nearest'"),
        ({"start": None}, "start must be one of identity, random, got None"),
        ({"detach_pose": 1}, "detach_pose must be true or false, got 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TINY, **changes)


def test_tokens_that_do_not_fit_are_refused(model, motion):
    tokens = model.encode(motion)
    with pytest.raises(UserError, match=r"tokens must have the shape \(73, B, T'\)"):
        model.decode(tokens[:70])
    tokens[72] = 16
    with pytest.raises(UserError, match="tokens of stream 72 must lie in 0 to 15"):
        model.decode(tokens)
