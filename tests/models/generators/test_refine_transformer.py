import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastvq.models.errors import UserError
from fastvq.models.generators import pose_vectors
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.generator import TokenBatch
from fastvq.models.generators.refine_transformer import RefineTransformer, RefineTransformerConfig
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text.hashed import HashNgramEncoder
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.pose_codes import POSE_SIZES

SIZES = torch.tensor(POSE_SIZES)
BASE = BaseTransformerConfig(longest=12, dim=32, layers=2, heads=4, sizes=(*POSE_SIZES, 16, 16, 16))
TINY = RefineTransformerConfig(layers=2, heads=4, dropout=0.0)
TEXTS = ["a person walks forward", "a person waves with the left hand", "a person squats", "a tired person runs"]


def lively(seed=1, **changes):
    """A Refine Transformer on a Base Transformer, both with weights that make their codes differ."""
    torch.manual_seed(seed)
    base = BaseTransformer(BASE)
    shake(base)
    model = RefineTransformer(dataclasses.replace(TINY.on(base), **changes))
    shake(model)
    model.start_from(base)
    model.use_base(base.eval())
    return model.eval()


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))


def batch(lengths=(7, 3, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    bins = (torch.rand(len(lengths), longest, 70, generator=generator) * SIZES).long()
    codes = torch.randint(16, (len(lengths), longest, 3), generator=generator)
    tokens = torch.cat([bins, codes], dim=2)
    tokens[torch.arange(longest) >= torch.tensor(lengths)[:, None]] = -1
    text = HashNgramEncoder().encode(TEXTS[: len(lengths)])
    return TokenBatch(tokens, torch.tensor(lengths), torch.ones(len(lengths), dtype=torch.bool), text)


def test_published_sizes_have_the_published_shapes_and_train():
    model = RefineTransformer()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes["codes"] == (6, 514, 1024)
    assert shapes["stage.weight"] == (1024, 6)
    assert shapes["pose.weight"] == (1024, 394)
    assert shapes["text.project.weight"] == (1024, 512)
    assert len(model.transformer.layers) == 6
    assert {layer.self_attn.num_heads for layer in model.transformer.layers} == {8}
    assert not model.transformer.causal
    block = 4 * 1024**2 + 4 * 1024 + 8 * 1024**2 + 5 * 1024 + 4 * 1024
    others = 6 * 514 * 1024 + 7 * 1024 + 395 * 1024 + 513 * 1024 + 12 * 1024 + 2 * 1024
    assert sum(parameter.numel() for parameter in model.parameters()) == 6 * block + others
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {
        "pose.weight",
        "pose.bias",
    }
    given = batch((49, 5))
    codes = torch.randint(512, (2, 49, 6)).where(given.tokens[..., :1] >= 0, -1)
    loss = model.losses(given._replace(tokens=torch.cat([given.tokens[..., :70], codes], dim=2))).total
    assert loss.item() == pytest.approx(6.24, rel=0.1)  # log 514
    loss.backward()
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learnt)
    before = model.codes.detach().clone()
    torch.optim.AdamW(learnt, lr=1e-4).step()
    assert not torch.equal(model.codes, before)


def test_the_pose_embedding_is_the_base_s_and_training_leaves_it():
    model = lively().train()
    assert torch.equal(model.pose.weight, model.base.pose.weight)
    loss = model.losses(batch()).total
    loss.backward()
    assert model.pose.weight.grad is None
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not any(name.startswith("_base") for name in model.state_dict())


@pytest.mark.parametrize("stage", range(3))
def test_the_loss_is_that_of_the_drawn_stage(stage, monkeypatch):
    model, given = lively(), batch()
    monkeypatch.setattr(pose_vectors, "drawn_stage", lambda uniform, stages: torch.full((3,), stage))
    errors = []
    for row, length in enumerate((7, 3, 12)):
        alone = type(given.text)(*(one[row : row + 1] for one in given.text))
        tokens = given.tokens[row : row + 1, :length]
        logits = model.scores(alone, tokens, torch.tensor([stage]))[0]
        errors.append(F.cross_entropy(logits, tokens[0, :, 70 + stage], reduction="none"))
    losses = model.losses(given)
    torch.testing.assert_close(losses.total, torch.cat(errors).mean(), rtol=1e-5, atol=1e-6)
    assert 0 <= losses.terms["accuracy"] <= 1


def test_a_stage_sees_the_stages_before_it_and_both_directions_of_time():
    model, given = lively(), batch((10,))
    tokens, stage = given.tokens, torch.tensor([1])
    found = model.scores(given.text, tokens, stage)
    assert found.shape == (1, 10, 18)
    for stream, counts in ((70, True), (71, False), (72, False)):
        changed = tokens.clone()
        changed[0, 5, stream] = (changed[0, 5, stream] + 1) % 16
        other = model.scores(given.text, changed, stage)
        assert torch.equal(other, found) is not counts
        if counts:
            assert (other != found).any(dim=-1).all(), "every place sees every other"
    assert not torch.equal(model.scores(given.text, tokens, torch.tensor([2])), found)


def test_each_motion_of_a_batch_has_its_own_stage():
    model, given = lively(), batch((6, 6, 6))
    mixed = model.scores(given.text, given.tokens, torch.tensor([0, 2, 1]))
    for row, stage in enumerate((0, 2, 1)):
        text = type(given.text)(*(one[row : row + 1] for one in given.text))
        alone = model.scores(text, given.tokens[row : row + 1], torch.tensor([stage]))
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_code_s_embedding_is_also_its_projection():
    model, given = lively(), batch((4,))
    heard = []
    model.transformer.norm.register_forward_hook(lambda module, inputs, output: heard.append(output))
    found = model.scores(given.text, given.tokens, torch.tensor([2]))
    torch.testing.assert_close(found, heard[0][:, 13:] @ model.codes[2].t())
    before = model.codes.detach().clone()
    with torch.no_grad():
        model.codes[0, given.tokens[0, 1, 70]] += 1
    assert not torch.equal(model.scores(given.text, given.tokens, torch.tensor([2])), found)
    model.codes.data.copy_(before)
    assert torch.equal(model.scores(given.text, given.tokens, torch.tensor([2])), found)


@pytest.mark.parametrize("keywords", ["none", "words"])
def test_cache_and_batch_change_nothing(keywords):
    model = lively(keywords=keywords)
    for sampling in (Sampling(guidance=1.0, temperature=0.0), Sampling(guidance=1.0)):
        found = model.generate(TEXTS, sampling=sampling, seed=5)
        assert all((one >= 0).all() for one in found)
        base = model.base.generate(TEXTS, sampling=sampling, seed=5)
        uncached = model.generate(TEXTS, sampling=sampling, seed=5, cached=False)
        parts = model.generate(TEXTS, sampling=sampling, seed=5, batch_size=3)
        for place, text in enumerate(TEXTS):
            (alone,) = model.generate([text], sampling=sampling, seed=5, first_place=place)
            for other in (uncached[place], parts[place], alone):
                assert torch.equal(other, found[place])
            assert torch.equal(base[place][:70], found[place][:70])
            assert (base[place][70:] == -1).all()


def test_refining_takes_the_likeliest_codes_stage_after_stage_and_keeps_those_that_there_are():
    model = lively().double()
    text = model.on_model(HashNgramEncoder().encode(TEXTS[:2]))
    given = batch((9, 5))
    bare = [given.tokens[row, :length].t().clone() for row, length in enumerate((9, 5))]
    for one in bare:
        one[70:] = -1
    found = model.refine(text, bare)
    alone = type(text)(*(one[1:] for one in text))
    tokens = found[1].t()[None]
    for stage in range(3):
        logits = model.scores(alone, tokens, torch.tensor([stage]))[..., :16]
        assert torch.equal(logits.argmax(-1), tokens[..., 70 + stage])
    assert torch.equal(model.refine(alone, bare[1:])[0], found[1])
    partly = [one.clone() for one in found]
    partly[0][71:, 3:6] = -1
    partly[0][70, 3] = (partly[0][70, 3] + 1) % 16
    filled = model.refine(text, partly)
    known = partly[0] >= 0
    assert torch.equal(filled[0][known], partly[0][known])
    assert (filled[0] >= 0).all()
    drawn = model.refine(text, bare, sampling=Sampling(guidance=1.0), seed=3, places=[4, 7])
    again = model.refine(alone, bare[1:], sampling=Sampling(guidance=1.0), seed=3, places=[7])
    assert torch.equal(drawn[1], again[0])
    assert not torch.equal(drawn[1], found[1])


def test_a_small_model_learns_residual_codes():
    torch.manual_seed(0)
    base = BaseTransformer(BASE)
    model = RefineTransformer(TINY.on(base)).train()
    model.start_from(base)
    given = batch()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-3)
    for _ in range(200):
        loss = model.losses(given).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    bare = [given.tokens[row, :length].t().clone() for row, length in enumerate((7, 3, 12))]
    for one in bare:
        one[70:] = -1
    for found, row, length in zip(model.eval().refine(given.text, bare), given.tokens, (7, 3, 12), strict=True):
        assert torch.equal(found, row[:length].t())


def test_a_saved_model_returns_with_its_base(tmp_path):
    model = lively()
    model.save_pretrained(tmp_path / "whole")
    loaded = RefineTransformer.from_pretrained(tmp_path / "whole")
    for one, other in zip(model.generate(TEXTS, seed=1), loaded.generate(TEXTS, seed=1), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "whole" / "base" / "config.json").unlink()
    alone = RefineTransformer.from_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="this pgr2m-refine has no pgr2m-base to take pose codes from: load it from"):
        alone.generate(TEXTS[:1])
    with pytest.raises(UserError, match=r"goes with the pgr2m-base of sha256 \w{12}, and this one has \w{12}"):
        alone.use_base(lively(seed=2).base)
    with pytest.raises(UserError, match="its pose codes are embedded otherwise"):
        alone.start_from(lively(seed=2).base)


def test_a_checkpoint_finds_the_base_of_its_run(tmp_path):
    model = lively()
    model.base.save_pretrained(tmp_path / "base")
    model._base, base = (), model._base
    model.save_pretrained(tmp_path / "checkpoints" / "step_00000001")
    loaded = RefineTransformer.from_pretrained(tmp_path / "checkpoints" / "step_00000001")
    for name, tensor in base[0].state_dict().items():
        assert torch.equal(loaded.base.state_dict()[name], tensor)


def test_the_base_goes_where_the_model_goes_and_reads_with_its_encoder():
    model = lively().double()
    assert {one.dtype for one in model.base.parameters()} == {torch.float64}
    encoder = HashNgramEncoder()
    model.use_text_encoder(encoder)
    assert model.base.text_encoder is encoder
    other = lively()
    other.use_text_encoder(encoder)
    other.use_base(lively().base)
    assert other.base.text_encoder is encoder


def test_which_tokenizers_it_drives():
    def config(stages):
        tokenizer = PGR2MTokenizer(PGR2MConfig(width=16, output_dim=8, codebook_size=16, depth=1, stages=stages))
        return TINY.fitted(tokenizer, HashNgramEncoder())

    assert config(2).sizes == (*POSE_SIZES, 16, 16)
    with pytest.raises(UserError, match=r"a pgr2m-refine drives residual stages, and this pgr2m has stages=0"):
        config(0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 5}, "dim must be even and a multiple of heads, got dim=1024 and heads=5"),
        ({"dropout": -0.1}, "dropout must be a number at least 0"),
        ({"keywords": "?"}, "keywords must be one of none, words"),
        ({"sizes": POSE_SIZES}, r"each residual stage, all equal, got \(\) behind the first 70"),
        ({"sizes": (*POSE_SIZES, 16, 8)}, r"all equal, got \(16, 8\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TINY, **changes)
