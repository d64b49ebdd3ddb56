import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.evaluation.metrics import (
    bone_errors,
    centroid_orthogonality,
    joint_errors,
    procrustes_errors,
    skating,
)
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.features272 import SLICES, features_to_joints
from fastvq.models.motion.pose_codes import CATEGORY_SLICES, NUM_CATEGORIES
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import PARENTS
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE, PoseResidualVQVAEConfig
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.training.data import FeatureClip, prepare_clips


@pytest.fixture
def clips(feature_clip):
    return [feature_clip(frames, seed) for seed, frames in enumerate((41, 4, 64, 5, 90))]


def test_the_pinned_keys(tiny_model, clips):
    result = evaluate(tiny_model, clips)
    assert {
        *("recon_smooth_l1", "recon_per_slice", "mpjpe_mm", "perplexity", "utilisation"),
        *("clips", "frames", "tokens_per_second"),
    } <= set(result)
    assert list(result["recon_per_slice"]) == list(SLICES)
    assert (result["clips"], result["frames"], result["latents"], result["tokens"]) == (5, 204, 53, 212)
    assert result["tokens_per_second"] > 0
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_numbers_are_those_of_each_clip_alone(tiny_model, clips, batch_size):
    result = evaluate(tiny_model, clips, batch_size=batch_size)
    errors, joints, codes = [], [], []
    for clip in clips:
        recon, tokens = tiny_model(clip.features)
        target = tiny_model.normalise(torch.from_numpy(clip.features))
        errors.append(F.smooth_l1_loss(tiny_model.normalise(recon[0]), target, reduction="none"))
        joints.append(joint_errors(features_to_joints(recon[0].numpy()), features_to_joints(clip.features)))
        codes.append(tokens[:, 0])
    errors = torch.cat(errors).double()
    # Sums in another order, in float32, over a few hundred terms.
    assert result["recon_smooth_l1"] == pytest.approx(float(errors.mean()), rel=1e-4)
    for name, block in SLICES.items():
        assert result["recon_per_slice"][name] == pytest.approx(float(errors[:, block].mean()), rel=1e-4)
    assert result["mpjpe_mm"] == pytest.approx(float(np.concatenate(joints).mean()), rel=1e-4)
    used = torch.cat(codes, dim=1)
    perplexity, utilisation = [], []
    for group in used:
        share = group.bincount(minlength=16).double() / group.numel()
        perplexity.append(float(torch.special.entr(share).sum().exp()))
        utilisation.append(float((share > 0).double().mean()))
    assert result["perplexity_per_group"] == pytest.approx(perplexity, rel=1e-5)
    assert result["perplexity"] == pytest.approx(np.mean(perplexity), rel=1e-5)
    assert result["utilisation"] == pytest.approx(np.mean(utilisation), rel=1e-6)


def test_baselines(tiny_model, clips):
    result = evaluate(tiny_model, clips)
    mean = tiny_model.mean.numpy()
    errors = [
        joint_errors(features_to_joints(np.tile(mean, (len(clip.features), 1))), features_to_joints(clip.features))
        for clip in clips
    ]
    assert result["mpjpe_mean_features_mm"] == pytest.approx(float(np.concatenate(errors).mean()), rel=1e-6)
    again = evaluate(tiny_model, clips)
    other = evaluate(tiny_model, clips, seed=1)
    assert again["mpjpe_shuffled_tokens_mm"] == result["mpjpe_shuffled_tokens_mm"]
    assert other["mpjpe_shuffled_tokens_mm"] != result["mpjpe_shuffled_tokens_mm"]
    assert other["mpjpe_mm"] == result["mpjpe_mm"]


def test_the_model_is_left_as_it_was(tiny_model, clips):
    tiny_model.train()
    before = tiny_model.get_codebook_embeddings()
    evaluate(tiny_model, clips)
    assert tiny_model.training
    assert torch.equal(tiny_model.get_codebook_embeddings(), before)


def test_progress_counts_clips(tiny_model, clips):
    seen = []
    evaluate(tiny_model, clips, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_nothing_to_evaluate_is_an_error(tiny_model):
    with pytest.raises(UserError, match="there is no clip to evaluate"):
        evaluate(tiny_model, [])


def test_the_first_streams_alone():
    config = ResidualVQVAEConfig(width=16, output_dim=8, stages=3, codebook_size=8, depth=1)
    model = ResidualVQVAE(config).train()
    motion = np.random.default_rng(0).normal(size=(64, 263)).astype(np.float32)
    with torch.no_grad():
        model(motion)
    clip = FeatureClip("clip", motion, format_of(263).to_joints(motion))
    results = {streams: evaluate(model, [clip], streams=streams) for streams in (1, 2, 3, None)}
    assert results[3]["recon_smooth_l1"] == results[None]["recon_smooth_l1"]
    for streams in (1, 2):
        tokens = model.eval().encode(motion)
        tokens[streams:] = -1
        decoded = model.normalise(model.decode(tokens)[0])
        wanted = F.smooth_l1_loss(decoded, model.normalise(torch.from_numpy(motion)))
        assert results[streams]["recon_smooth_l1"] == pytest.approx(float(wanted), rel=1e-4)
        assert results[streams]["tokens"] == 16 * streams
        assert len(results[streams]["perplexity_per_stage"]) == streams
    assert len({result["mpjpe_mm"] for result in results.values()}) == 3
    for wrong, complaint in ((4, "at most the 3 of the model"), (0, "at least 1")):
        with pytest.raises(UserError, match=complaint):
            evaluate(model, [clip], streams=wrong)


def test_faults_of_motions_are_those_of_each_clip(tiny_model, clips):
    result = evaluate(tiny_model, clips)
    aligned, bones, skate, original = [], [], [], []
    for clip in clips:
        joints, target = (features_to_joints(x) for x in (tiny_model(clip.features)[0][0].numpy(), clip.features))
        aligned.append(procrustes_errors(joints, target).ravel())
        bones.append(bone_errors(joints, target, PARENTS).ravel())
        floor = clip.joints[:, [10, 11], 1].min()
        skate.append(skating(joints, 30, floor=floor))
        original.append(skating(clip.joints, 30, floor=floor))
    assert result["pa_mpjpe_mm"] == pytest.approx(np.concatenate(aligned).mean(), rel=1e-4)
    assert result["pa_mpjpe_mm"] < result["mpjpe_mm"]
    assert result["bone_drift_mm"] == pytest.approx(np.concatenate(bones).mean(), rel=1e-4)
    assert result["foot_skate"] == pytest.approx(np.concatenate(skate).mean())
    assert result["foot_skate_original"] == pytest.approx(np.concatenate(original).mean())
    assert "centroid_cosine" not in result


def test_pose_codes_alone_and_the_orthogonality_of_their_codebook():
    config = PoseResidualVQVAEConfig(width=16, output_dim=8, stages=2, codebook_size=8, depth=1)
    (clip,) = prepare_clips(generate_clips(1, seed=0), fps=20.0, form=format_of(263))
    model = PoseResidualVQVAE(config, mean=clip.features.mean(0), std=clip.features.std(0)).train()
    with torch.no_grad():
        model(clip.features)
    whole, alone = (evaluate(model, [clip], streams=streams) for streams in (None, NUM_CATEGORIES))
    tokens = model.eval().encode(clip.features)
    tokens[NUM_CATEGORIES:] = -1
    decoded = model.normalise(model.decode(tokens)[0, : len(clip.features)])
    wanted = F.smooth_l1_loss(decoded, model.normalise(torch.from_numpy(clip.features)))
    assert alone["recon_smooth_l1"] == pytest.approx(float(wanted), rel=1e-4)
    assert alone["recon_smooth_l1"] != whole["recon_smooth_l1"]
    assert "perplexity" in whole
    assert not {"perplexity", "utilisation", "perplexity_per_stage"} & set(alone), "codes that are left out"
    found = centroid_orthogonality(model.pose_codebook.detach().numpy(), CATEGORY_SLICES)
    for result in (whole, alone):
        assert result["centroid_cosine"] == pytest.approx(found.mean_cosine)
        assert result["centroid_gram_error"] == pytest.approx(found.gram_error)
        assert result["centroid_centred_cosine"] == pytest.approx(found.centred_cosine)


def test_what_is_no_body_shows_no_pose_codes():
    config = PoseResidualVQVAEConfig(width=16, output_dim=8, stages=0, depth=1)
    (clip,) = prepare_clips(generate_clips(1, seed=0), fps=20.0, form=format_of(263))
    model = PoseResidualVQVAE(config, mean=clip.features.mean(0), std=clip.features.std(0)).eval()
    assert evaluate(model, [clip])["pose_codes_shown"] > 0
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(1e6)
    assert evaluate(model, [clip])["pose_codes_shown"] == 0
