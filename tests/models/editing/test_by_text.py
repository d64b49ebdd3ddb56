import dataclasses

import numpy as np
import pytest
import torch

from fastvq.models.editing.by_text import TextEdit, retell
from fastvq.models.editing.parts import PARTS
from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.refine_transformer import RefineTransformer, RefineTransformerConfig
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.token_file import ClipTokens
from fastvq.models.training.data import prepare_clips

WAVE = "a person waves with the left hand"


@pytest.fixture(scope="module")
def features():
    return [clip.features for clip in prepare_clips(generate_clips(3, seed=3), fps=20.0, form=format_of(263))]


@pytest.fixture(scope="module")
def tokenizer(features):
    torch.manual_seed(0)
    every = np.concatenate(features)
    config = PGR2MConfig(width=16, output_dim=8, codebook_size=16, depth=1, stages=2, residual_dropout=0.0)
    model = PGR2MTokenizer(config, mean=every.mean(0), std=every.std(0) + 0.1).train()
    with torch.no_grad():
        for one in features:
            model(one[: len(one) // 4 * 4])
    return model.eval()


@pytest.fixture(scope="module")
def base(tokenizer):
    torch.manual_seed(1)
    config = BaseTransformerConfig(longest=20, dim=32, layers=2, heads=4)
    model = BaseTransformer(config.fitted(tokenizer, open_text_encoder("hash")))
    shake(model)
    return model.eval()


@pytest.fixture(scope="module")
def refine(base):
    model = RefineTransformer(RefineTransformerConfig(layers=2, heads=4).on(base))
    shake(model)
    model.start_from(base)
    model.use_base(base)
    return model.eval()


def shake(model):
    """Weights so large that a generator's codes differ much."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))


@pytest.fixture(scope="module")
def clip(tokenizer, features):
    """62 frames, 16 latents."""
    motion = features[0][:62]
    return ClipTokens("a", 62, tokenizer.encode(motion)[:, 0])


@pytest.mark.parametrize("which", ["base", "refine"])
def test_what_was_not_asked_keeps_its_codes_exactly(tokenizer, clip, which, request):
    generator = request.getfixturevalue(which)
    found = retell(tokenizer, generator, clip, TextEdit(WAVE, frames=(17, 40)))
    was, now = clip.tokens, found.clip.tokens
    free = torch.zeros(70, 16, dtype=torch.bool)
    free[:, 5:10] = torch.from_numpy(PARTS["left arm"].copy())[:, None]
    assert torch.equal(now[:70][~free], was[:70][~free])
    changed = now[:70] != was[:70]
    assert changed.any()
    touched = changed.any(dim=0)
    assert torch.equal(now[70:, ~touched], was[70:, ~touched])
    assert torch.equal(now[70:], was[70:]) is (which == "base")
    assert (now >= 0).all()
    assert (found.free, found.changed) == (int(free.sum()), int(changed.sum()))
    assert (found.clip.name, found.clip.frames) == ("a", 62)
    assert found.before.shape == found.after.shape == (62, 263)
    assert not np.array_equal(found.before, found.after)
    again = retell(tokenizer, generator, clip, TextEdit(WAVE, ("left arm",), (17, 40)))
    assert torch.equal(again.clip.tokens, now)


def test_what_is_written_follows_from_the_text_and_the_seed(tokenizer, base, clip):
    free = Sampling(guidance=1.0)
    edit = TextEdit(WAVE, ("body",))
    first, same, other = (retell(tokenizer, base, clip, edit, sampling=free, seed=seed).clip for seed in (1, 1, 2))
    assert torch.equal(first.tokens, same.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    retold = retell(tokenizer, base, clip, dataclasses.replace(edit, text="a person squats")).clip
    assert not torch.equal(retold.tokens, retell(tokenizer, base, clip, edit).clip.tokens)
    whole = base.generate(["a person squats"], lengths=[16])[0]
    assert torch.equal(retold.tokens[:70], whole[:70]), "with everything free, it is generation"


def test_how_the_decoded_motion_shows_it(tokenizer, base, clip):
    found = retell(tokenizer, base, clip, TextEdit(WAVE, frames=(0, 30)))
    before, after = (
        torch.from_numpy(tokenizer.parse(features[::4]).bins).t() for features in (found.before, found.after)
    )
    was, now = clip.tokens[:70], found.clip.tokens[:70]
    changed = was != now
    assert found.followed == pytest.approx(float((after == now)[changed].float().mean()))
    held = changed.any(dim=0) & ~(torch.from_numpy(PARTS["left arm"].copy())[:, None] & (torch.arange(16) < 8))
    assert found.kept == pytest.approx(float((before == after)[held].float().mean()))


def test_residual_codes_may_be_left_out(tokenizer, refine, clip):
    found = retell(tokenizer, refine, clip, TextEdit(WAVE, frames=(0, 30)), without_residuals=True)
    touched = (found.clip.tokens[:70] != clip.tokens[:70]).any(dim=0)
    assert (found.clip.tokens[70:, touched] == -1).all()
    assert torch.equal(found.clip.tokens[70:, ~touched], clip.tokens[70:, ~touched])


def test_of_a_long_clip_the_generator_sees_what_lies_about_the_span(tokenizer, base, features):
    motion = np.concatenate(features)[:200]
    clip = ClipTokens("long", 200, tokenizer.encode(motion)[:, 0])
    found = retell(tokenizer, base, clip, TextEdit(WAVE, frames=(100, 120))).clip.tokens
    part = ClipTokens("part", 80, clip.tokens[:, 17:37])  # of latents 25 to 30 the middle is that of 17 to 37
    assert torch.equal(found[:, 17:37], retell(tokenizer, base, part, TextEdit(WAVE, frames=(32, 52))).clip.tokens)
    assert torch.equal(found[:, :25], clip.tokens[:, :25])
    assert torch.equal(found[:, 30:], clip.tokens[:, 30:])
    for frames in ((0, 20), (180, 200)):
        assert retell(tokenizer, base, clip, TextEdit(WAVE, frames=frames)).changed
    with pytest.raises(UserError, match=r"the generator writes at most 20 latents, and 25 of clip 'long' are free"):
        retell(tokenizer, base, clip, TextEdit(WAVE, frames=(100, 200)))


def test_what_cannot_be_done_is_said(tokenizer, base, clip):
    with pytest.raises(UserError, match="there is no part 'tail'"):
        retell(tokenizer, base, clip, TextEdit(WAVE, ("tail",)))
    with pytest.raises(
        UserError, match=r"frames 50 to 80 of 'a person waves with the left hand' are not in clip 'a'"
    ):
        retell(tokenizer, base, clip, TextEdit(WAVE, frames=(50, 80)))
    with pytest.raises(UserError, match=r"texts\[0\] must say what to do, got ' '"):
        retell(tokenizer, base, clip, TextEdit(" ", ("left arm",)))
    other = PGR2MTokenizer(tokenizer.config).eval()
    with pytest.raises(UserError, match=r"was trained with the tokenizer of sha256 \w{12}, and this one has \w{12}"):
        retell(other, base, clip, TextEdit(WAVE))
    holes = clip.tokens.clone()
    holes[3, 2] = -1
    with pytest.raises(UserError, match="is none of category 3"):
        retell(tokenizer, base, ClipTokens("a", 62, holes), TextEdit(WAVE))
