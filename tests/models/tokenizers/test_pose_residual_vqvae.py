import dataclasses
import json

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.kinds import load_tokenizer
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.features263 import joints_to_features
from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES, KIT_MIRROR_ORDER
from fastvq.models.motion.layout263 import KIT_ML
from fastvq.models.motion.mirror import mirror_features
from fastvq.models.motion.pose_codes import CATEGORIES, PoseParser, mirror_codes, parse_features
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.tokenizers.code_use import code_use, count_codes
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE, PoseResidualVQVAEConfig
from fastvq.models.tokenizers.token_file import read_manifest, read_tokens, write_tokens
from fastvq.models.training.data import prepare_clips

TINY = PoseResidualVQVAEConfig(width=16, output_dim=8, codebook_size=16, depth=1)
SIZES = [category.size for category in CATEGORIES]


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(8, seed=3), fps=20.0, form=format_of(263))


@pytest.fixture(scope="module")
def motion(clips):
    """(50, 263), no multiple of 4."""
    return clips[0].features[:50]


def trained(motions, **changes):
    """A model whose residual codebook comes from data, in evaluation mode."""
    torch.manual_seed(0)
    mean, std = np.concatenate(motions).mean(axis=0), np.concatenate(motions).std(axis=0) + 0.1
    model = PoseResidualVQVAE(dataclasses.replace(TINY, **changes), mean=mean, std=std).train()
    with torch.no_grad():
        for one in motions:
            model(one)
    return model.eval()


@pytest.fixture(scope="module")
def model(clips):
    return trained([clip.features for clip in clips[:4]])


def test_the_default_is_the_one_of_the_paper():
    with torch.device("meta"):
        model = PoseResidualVQVAE(PoseResidualVQVAEConfig())
    config = model.config
    assert (config.input_dim, config.stages, config.codebook_size, config.output_dim) == (263, 2, 64, 512)
    assert (config.downsample, config.decay, config.commitment_weight) == (4, 0.99, 0.02)
    assert (config.quantize_dropout, config.detach_pose) == (0.2, False)
    assert model.pose_codebook.shape == (392, 512)
    assert model.quantizer.codebooks.codebook.shape == (1, 1, 64, 512), "one codebook for both stages"
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round((trainable - 392 * 512) / 1e6, 2) == 19.44


def test_pose_codes_begin_within_the_published_bounds():
    codes = PoseResidualVQVAE(dataclasses.replace(TINY, output_dim=512)).pose_codebook.detach()
    assert -1 / 392 <= float(codes.min()) < -0.9 / 392
    assert 0.9 / 512 < float(codes.max()) <= 1 / 512


@pytest.mark.parametrize("stages", [0, 1, 8])
@pytest.mark.parametrize("down_stages", [2, 3])
def test_shapes(motion, stages, down_stages):
    model = trained([motion], stages=stages, down_stages=down_stages)
    tokens = model.encode(motion)
    latents = -(-50 // 2**down_stages)
    assert tokens.shape == (70 + stages, 1, latents)
    assert model.config.sizes == (*SIZES, *[16] * stages)
    assert all(0 <= row.min() <= row.max() < size for row, size in zip(tokens, model.config.sizes, strict=True))
    assert model.decode(tokens).shape == (1, latents * 2**down_stages, 263)
    recon, same = model(motion)
    assert recon.shape == (1, 50, 263)
    assert torch.equal(same, tokens)
    torch.testing.assert_close(recon, model.decode(tokens)[:, :50], rtol=1e-5, atol=1e-5)
    assert (model.encoder is None) == (stages == 0)
    assert model.get_codebook_embeddings().shape == (stages, 16, 8)


def test_the_first_tokens_are_the_pose_codes_of_every_fourth_frame(model, motion):
    tokens = model.encode(motion)
    codes = model.pose_codes(tokens[:, 0])
    assert np.array_equal(codes.indices, parse_features(motion[::4]).indices)
    # Where the body stands and faces does not matter to the parser, but rounding at a threshold may.
    world = PoseParser().parse(format_of(263).to_joints(motion))[::4]
    assert (codes.indices == world.indices).mean() > 0.999
    assert torch.equal(tokens[:70, 0].t(), torch.from_numpy(codes.bins))


def test_mirrored_motions_have_mirrored_codes(model, motion):
    codes, mirrored = (model.pose_codes(model.encode(one)[:, 0]) for one in (motion, mirror_features(motion)))
    assert np.array_equal(mirror_codes(codes).indices, mirrored.indices)


def test_decoding_adds_pose_latents_and_residual_codes(model, motion):
    tokens = model.encode(motion)
    padded = torch.from_numpy(np.concatenate([motion, motion[-1:], motion[-1:]]))[None]
    pose = torch.from_numpy(model.pose_codes(tokens[:, 0]).k_hot).float() @ model.pose_codebook.detach()
    codes = model.get_codebook_embeddings()[0]
    expected = model.denormalise(model.decoder((pose + codes[tokens[70, 0]] + codes[tokens[71, 0]])[None]))
    torch.testing.assert_close(model.decode(tokens), expected, rtol=1e-4, atol=1e-5)
    residual = model.encoder(model.normalise(padded))[0] - pose
    for stage in (70, 71):
        distance = torch.cdist(residual.double(), codes.double())
        chosen = distance.gather(-1, tokens[stage, 0].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(chosen, distance.amin(-1), rtol=1e-5, atol=1e-6)
        residual = residual - codes[tokens[stage, 0]]


def test_without_residual_stages_the_pose_codes_alone_decode(model, motion):
    tokens = model.encode(motion)
    alone = tokens.clone()
    alone[70:] = -1
    pose = torch.from_numpy(model.pose_codes(tokens[:, 0]).k_hot).float() @ model.pose_codebook.detach()
    expected = model.denormalise(model.decoder(pose[None]))
    torch.testing.assert_close(model.decode(alone), expected, rtol=1e-4, atol=1e-5)
    without = alone.clone()
    without[5] = -1
    rows = model.pose_codebook.detach()[model.pose_codes(tokens[:, 0]).indices[:, 5]]
    expected = model.denormalise(model.decoder((pose - rows)[None]))
    torch.testing.assert_close(model.decode(without), expected, rtol=1e-4, atol=1e-5)


def test_pose_latents_are_the_k_hot_product_with_its_gradient(model):
    torch.manual_seed(1)
    codes = torch.stack([torch.randint(-1, size, (3, 7)) for size in SIZES], dim=-1)
    given = torch.randn(3, 7, 8)
    latents = model.pose_latents(codes)
    latents.backward(given)
    numbers = codes + model.padded_codes[:, 0]
    k_hot = torch.zeros(3, 7, 393).scatter_(-1, torch.where(codes < 0, 392, numbers), 1.0)[..., :392]
    torch.testing.assert_close(latents, k_hot @ model.pose_codebook.detach(), rtol=1e-5, atol=1e-6)
    expected = torch.zeros(392, 8, dtype=torch.float64)
    for row, gradient in zip(codes.reshape(-1, 70), given.reshape(-1, 8), strict=True):
        for category, code in zip(CATEGORIES, row.tolist(), strict=True):
            if code >= 0:
                expected[category.start + code] += gradient
    torch.testing.assert_close(model.pose_codebook.grad.double(), expected, rtol=1e-5, atol=1e-5)
    model.pose_codebook.grad = None


@pytest.mark.parametrize("detach", [False, True])
def test_which_gradients_reach_the_pose_codes(clips, detach):
    model = trained([clips[0].features], detach_pose=detach, quantize_dropout=0.0).train()
    features = torch.from_numpy(clips[0].features[None, :32])
    codes = model.read_codes(features)
    latents = model.encoder(model.normalise(features))
    quantized, _, loss = model.quantize(latents, None, codes)
    quantized.sum().backward(retain_graph=True)
    # Straight through, the decoder sees E(m) unless the residual is cut off from the pose codes.
    reached = model.pose_codebook.grad.abs().max()
    assert (reached > 0.5) if detach else (reached < 1e-6)
    model.pose_codebook.grad = None
    loss.backward()
    assert (model.pose_codebook.grad is None) if detach else bool(model.pose_codebook.grad.any())


def test_each_motion_of_a_batch_has_the_tokens_that_it_has_alone(model, clips):
    motions = [clip.features[:frames] for clip, frames in zip(clips, (41, 4, 64), strict=False)]
    tokens = model.encode_batch(motions)
    for row, one in enumerate(motions):
        alone = model.encode(one)
        assert torch.equal(tokens[:, row, : alone.shape[2]], alone[:, 0])
        assert (tokens[:, row, alone.shape[2] :] == -1).all()
    for one, found in zip(motions, model.decode_batch(tokens, [len(one) for one in motions]), strict=True):
        torch.testing.assert_close(found, model.decode(model.encode(one))[0, : len(one)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [0, 2])
def test_a_saved_model_returns(motion, tmp_path, stages):
    model = trained([motion], stages=stages)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["kind"], values["format"]) == ("pose-rvq", "fastvq-pose-rvq/1")
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is PoseResidualVQVAE
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(motion), model.encode(motion))
    assert torch.equal(loaded.decode(model.encode(motion)), model.decode(model.encode(motion)))


@pytest.mark.parametrize("stages", [0, 2])
def test_token_files_hold_each_category_in_its_own_bits(motion, tmp_path, stages):
    model = trained([motion], stages=stages)
    tokens = [model.encode(motion)[:, 0], model.encode(motion[:8])[:, 0]]
    tokens[1][70:] = -1
    path = tmp_path / "tokens.safetensors"
    write_tokens(path, model, [("a", 50, tokens[0]), ("b", 8, tokens[1])])
    manifest = read_manifest(path)
    assert (manifest["K"], manifest["groups"], manifest["stages"]) == ([*SIZES, *[16] * stages], 1, 70 + stages)
    found = read_tokens(path, model)
    assert [(clip.name, clip.frames) for clip in found] == [("a", 50), ("b", 8)]
    assert all(torch.equal(clip.tokens, part) for clip, part in zip(found, tokens, strict=True))
    # 4 angles of 5 bits, 18 distances of 4, 44 of three codes and 4 of two codes in 2.
    assert path.stat().st_size < 15 * (20 + 72 + 88 + 8 + 5 * stages) / 8 + 4000
    with pytest.raises(UserError, match=rf"another model \(a pose-rvq with {70 + stages} stages of 2 to 18 codes"):
        read_tokens(path, trained([motion], stages=1))


def test_only_residual_codes_count_as_used(model, motion):
    counts = count_codes(model.encode(motion).permute(1, 2, 0), model.config)
    assert counts.shape == (2, 16)
    assert counts.sum(dim=1).tolist() == [13, 13]
    use = code_use(counts, model.config)
    assert len(use["perplexity_per_stage"]) == 2
    assert 1 <= use["perplexity"] <= 16
    alone = dataclasses.replace(TINY, stages=0)
    assert code_use(count_codes(model.encode(motion)[:70].permute(1, 2, 0), alone), alone) == {}


def kit_features(clip, exchanged):
    """A clip as KIT-ML's features, whose joints named left are the body's left ones or its right ones."""
    smpl = {"root": "pelvis", "spine2": "spine3"}
    order = [JOINT_NAMES.index(smpl.get(name, name).replace("midfoot", "foot")) for name in KIT_JOINT_NAMES]
    joints = clip.joints[:, order]
    return joints_to_features(joints[:, list(KIT_MIRROR_ORDER)] if exchanged else joints, KIT_ML)


@pytest.mark.parametrize("exchanged", [False, True])
def test_kit_ml_is_read_with_the_sides_that_the_training_data_has(clips, exchanged):
    features = [kit_features(clip, exchanged) for clip in clips[:4]]
    model = trained(features, input_dim=251)
    assert model.config.fps == 12.5
    codes = model.pose_codes(model.encode(features[0])[:, 0])
    own = parse_features(clips[0].features[: len(features[0]) : 4])
    # The spine is another there; sides taken the wrong way round would differ in far more codes.
    assert (codes.indices == own.indices).mean() > 0.9
    assert (mirror_codes(codes).indices == own.indices).mean() < 0.9


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"input_dim": 272}, r"must be 263 \(HumanML3D\) or 251 \(KIT-ML\), the features .* got 272: leave it out"),
        ({"stages": -1}, "stages must be an integer of at least 0, got -1"),
        ({"stages": 9}, "stages must be an integer of at most 8"),
        ({"quantize_dropout": 2}, "quantize_dropout must be a number at least 0 and at most 1, got 2"),
        ({"detach_pose": "no"}, "detach_pose must be true or false, got 'no'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TINY, **changes)


def test_motions_and_tokens_that_do_not_fit_are_refused(model, motion):
    with pytest.raises(UserError, match=r"got \(20, 272\): these are 272-dim features.* make HumanML3D features of"):
        model.encode(np.zeros((20, 272), dtype=np.float32))
    with pytest.raises(UserError, match="joints must be in metres"):
        model.encode(motion * 1000)
    tokens = model.encode(motion)
    with pytest.raises(UserError, match=r"tokens must have the shape \(72, B, T'\)"):
        model.decode(tokens[:70])
    tokens[4] = 10
    with pytest.raises(UserError, match="tokens of stream 4 must lie in 0 to 9, or be -1 for a hole; got 10 to 10"):
        model.decode(tokens)
    with pytest.raises(UserError, match="pose code"):
        model.pose_codes(torch.full((72, 3), -1))
