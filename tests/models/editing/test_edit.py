import numpy as np
import pytest
import torch

from fastvq.models.editing.edit import check_editable, consistency, edit, pooled
from fastvq.models.editing.rules import RULES, named, rule
from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.pose_codes import CATEGORIES, CATEGORY_OF_CODE, parse_features
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAE, PoseResidualVQVAEConfig
from fastvq.models.tokenizers.token_file import ClipTokens
from fastvq.models.training.data import feature_statistics, prepare_clips

TINY = PoseResidualVQVAEConfig(width=16, output_dim=8, codebook_size=16, depth=1)


@pytest.fixture(scope="module")
def clips():
    return prepare_clips(generate_clips(6, seed=3), fps=20.0, form=format_of(263))


@pytest.fixture(scope="module")
def model(clips):
    torch.manual_seed(0)
    mean, std = feature_statistics(clips)
    model = PoseResidualVQVAE(TINY, mean=mean, std=std).train()
    with torch.no_grad():
        model.pose_codebook.normal_()  # so that every code moves the body
        for one in clips:
            model(one.features)
    return model.eval()


@pytest.fixture(scope="module")
def clip(model, clips):
    """50 frames, 13 latents."""
    return ClipTokens("walk", 50, model.encode(clips[0].features[:50])[:, 0])


@pytest.mark.parametrize("without", [False, True])
def test_an_edit_changes_its_codes_in_its_frames_and_nothing_else(model, clip, without):
    one = rule("raise the right hand from frame 17 to 29")
    found = edit(model, clip, [one], without_residuals=without)
    expected = clip.tokens.clone()
    for code in one.codes:  # frames 20, 24 and 28 are those of latents 5 to 7
        category = CATEGORIES[CATEGORY_OF_CODE[code]]
        expected[category.index, 5:8] = code - category.start
    if without:
        expected[70:, 5:8] = -1
    assert torch.equal(found.clip.tokens, expected)
    assert not torch.equal(expected, clip.tokens)
    assert (found.clip.name, found.clip.frames) == ("walk", 50)
    for motion, tokens in ((found.before, clip.tokens), (found.after, expected)):
        np.testing.assert_allclose(motion, model.decode(tokens)[0, :50].numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(found.after - found.before)[20:32].max() > 0.01


def test_consistency_is_counted_in_the_decoded_motion(model, clip):
    one, two = rule("hands together", (0, 24)), named("left knee straight", (8, 50))
    found = edit(model, clip, [one, two])
    shown = {name: parse_features(getattr(found, name)[::4]) for name in ("before", "after")}
    asked = [(code, latent) for code in one.codes for latent in range(6)]
    asked += [(code, latent) for code in two.codes for latent in range(2, 13)]
    for name, codes in shown.items():
        share = np.mean([codes.has(code)[latent] for code, latent in asked])
        seen = getattr(consistency(found.asked), name)
        off = [abs(codes.indices[latent, CATEGORY_OF_CODE[code]] - code) for code, latent in asked]
        assert seen.share == pytest.approx(share)
        assert seen.off == pytest.approx(np.mean(off))
    assert {one.code: one.latents for one in found.asked} == {
        **dict.fromkeys(one.codes, 6),
        **dict.fromkeys(two.codes, 11),
    }
    for each in found.asked:
        span = range(6) if each.code in one.codes else range(2, 13)
        assert each.after.share == pytest.approx(shown["after"].has(each.code)[list(span)].mean())
    same = shown["before"].indices == shown["after"].indices
    free = np.ones_like(same)
    for code, latent in asked:
        free[latent, CATEGORY_OF_CODE[code]] = False
    assert found.kept == pytest.approx(same[free].mean())


def test_asking_for_what_is_there_changes_nothing(model, clip):
    codes = model.pose_codes(clip.tokens)
    found = edit(model, clip, [named(codes.names(0)[5], (0, 1))])
    assert torch.equal(found.clip.tokens, clip.tokens)
    assert found.kept == 1.0
    assert consistency(found.asked).before == consistency(found.asked).after


def test_codes_of_several_clips_are_pooled_by_how_often_they_were_asked_for(model, clip):
    ones = [edit(model, clip, [rule("bend the left knee", frames)]) for frames in ((0, 50), (4, 8))]
    (all_of_them,) = pooled(ones)
    assert all_of_them.latents == 14
    whole, short = (one.asked[0] for one in ones)
    assert all_of_them.after.share == pytest.approx((13 * whole.after.share + short.after.share) / 14)
    assert all_of_them.before.off == pytest.approx((13 * whole.before.off + short.before.off) / 14)
    assert all_of_them.code == RULES["bend the left knee"][0]


def test_edits_that_cannot_be_are_refused(model, clip, tiny_model):
    with pytest.raises(UserError, match="there is nothing to edit"):
        edit(model, clip, [])
    with pytest.raises(UserError, match=r"frames 40 to 60 of 'hands apart' are not in clip 'walk', which has 50"):
        edit(model, clip, [rule("hands apart", (40, 60))])
    with pytest.raises(UserError, match="give a start below an end"):
        edit(model, clip, [rule("hands apart", (9, 9))])
    with pytest.raises(UserError, match="no frame whose pose is a token, which every 4th is"):
        edit(model, clip, [rule("hands apart", (9, 12))])
    with pytest.raises(UserError, match="want different angle codes of 'L-knee'"):
        edit(model, clip, [rule("bend the left knee"), rule("straighten the left knee")])
    holes = clip.tokens.clone()
    holes[3, 2] = -1
    with pytest.raises(UserError, match=r"pose code .* in frame 2 is none of category 3"):
        edit(model, ClipTokens("walk", 50, holes), [rule("hands apart")])
    with pytest.raises(UserError, match="a motion-vqvae has no pose codes to edit: give a model that has"):
        check_editable(tiny_model)
