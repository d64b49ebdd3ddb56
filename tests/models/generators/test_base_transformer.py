import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from fastvq.models.errors import UserError
from fastvq.models.generators import pose_vectors
from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig, positions
from fastvq.models.generators.generator import TokenBatch
from fastvq.models.generators.pose_vectors import END, WIDTH
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text.hashed import HashNgramEncoder
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE, MotionVQVAEConfig
from fastvq.models.tokenizers.pgr2m import PGR2MConfig, PGR2MTokenizer
from fastvq.models.tokenizers.pose_codes import POSE_SIZES
from fastvq.models.tokenizers.token_file import model_sha256

SIZES = torch.tensor(POSE_SIZES)
TINY = BaseTransformerConfig(longest=12, dim=32, layers=2, heads=4, sizes=(*POSE_SIZES, 16, 16))
TEXTS = ["a person walks forward", "a person waves with the left hand", "a person squats", "a tired person runs"]
GREEDY, FREE = Sampling(guidance=1.0, temperature=0.0), Sampling(guidance=1.0)


def lively(**changes):
    """A model whose scores differ much from latent to latent, as those of a trained one do."""
    torch.manual_seed(1)
    model = BaseTransformer(dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        model.head.weight[END] = 0.05 * torch.randn(32)
    return model.eval()


def batch(lengths=(7, 3, 12), ends=(True, True, False), seed=0, stages=2):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    bins = (torch.rand(len(lengths), longest, 70, generator=generator) * SIZES).long()
    codes = torch.randint(16, (len(lengths), longest, stages), generator=generator)
    tokens = torch.cat([bins, codes], dim=2)
    tokens[torch.arange(longest) >= torch.tensor(lengths)[:, None]] = -1
    text = HashNgramEncoder().encode(TEXTS[: len(lengths)])
    return TokenBatch(tokens, torch.tensor(lengths), torch.tensor(ends), text)


def test_published_sizes_have_the_published_shapes_and_train():
    model = BaseTransformer()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes["text.project.weight"] == (1024, 512)
    assert shapes["text.absent"] == (12, 1024)
    assert shapes["pose.weight"] == (1024, 394)
    assert shapes["head.weight"] == (394, 1024)
    assert "head.bias" not in shapes
    assert len(model.transformer.layers) == 18
    assert {layer.self_attn.num_heads for layer in model.transformer.layers} == {16}
    assert shapes["transformer.layers.17.linear1.weight"] == (4096, 1024)
    assert shapes["transformer.layers.0.self_attn.in_proj_weight"] == (3072, 1024)
    assert model.position.shape == (62, 1024)
    block = 4 * 1024**2 + 4 * 1024 + 8 * 1024**2 + 5 * 1024 + 4 * 1024
    others = 513 * 1024 + 12 * 1024 + 395 * 1024 + 394 * 1024 + 2 * 1024
    assert sum(parameter.numel() for parameter in model.parameters()) == 18 * block + others
    loss = model.losses(batch((50, 3), (True, True), stages=6)).total
    assert loss.item() == pytest.approx(0.69, abs=0.15)  # nothing is known yet: every number costs about log 2
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    before = model.head.weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert not torch.equal(model.head.weight, before)


def test_positions_are_sines_and_cosines():
    found = positions(5, 8)
    assert torch.equal(found[0], torch.tensor([0.0, 1.0] * 4))
    assert found[3, 2].item() == pytest.approx(torch.sin(torch.tensor(3 / 10000**0.25)).item())
    assert found[3, 3].item() == pytest.approx(torch.cos(torch.tensor(3 / 10000**0.25)).item())


@pytest.mark.parametrize("end_weight", [1.0, 20.0])
def test_the_loss_is_that_of_every_number_up_to_the_end(end_weight):
    model, given = lively(end_weight=end_weight), batch()
    weight = torch.ones(WIDTH)
    weight[END] = end_weight
    losses = model.losses(given)
    expected = []
    for row, length in enumerate((7, 3, 12)):
        bins = given.tokens[row, :length, :70]
        targets = torch.cat([pose_vectors.k_hot(bins), F.one_hot(torch.tensor([END]), WIDTH).float()])
        alone = type(given.text)(*(one[row : row + 1] for one in given.text))
        scores = model.scores(alone, pose_vectors.k_hot(bins)[None])[0]
        if row == 2:  # was cut: nothing says that it ends there
            scores, targets = scores[:-1], targets[:-1]
        errors = -(targets * F.logsigmoid(scores) + (1 - targets) * F.logsigmoid(-scores))
        expected.append((errors * weight).sum(dim=-1).mean() / weight.sum())
    torch.testing.assert_close(losses.total, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    assert 0 <= losses.terms["accuracy"] <= 1


def test_scores_know_only_what_came_before():
    model, given = lively(), batch((12,), (True,))
    vectors = pose_vectors.k_hot(given.tokens[..., :70])
    changed = vectors.clone()
    changed[:, 6] = vectors[:, 2]
    before, after = model.scores(given.text, vectors), model.scores(given.text, changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(dim=-1).any()


def test_inputs_are_corrupted_in_the_share_of_steps_that_the_schedule_says():
    model = lively(clean_decay=0.9, least_clean=0.4, dropout=0.0).train()
    vectors = pose_vectors.k_hot(batch().tokens[..., :70].clamp_min(0))
    clean = [torch.equal(model._corrupted(vectors), vectors) for _ in range(600)]
    assert int(model.seen) == 600
    assert clean[0]
    expected = sum(max(0.9**step, 0.4) for step in range(600))
    assert abs(sum(clean) - expected) < 5 * (600 * 0.24) ** 0.5
    model.eval()
    assert all(torch.equal(model._corrupted(vectors), vectors) for _ in range(50))
    assert int(model.seen) == 600


@pytest.mark.parametrize("sampling", [GREEDY, FREE, Sampling(guidance=2.5, temperature=0.8, top_p=0.9)], ids=str)
@pytest.mark.parametrize("keywords", ["none", "words"])
def test_cache_and_batch_change_nothing(sampling, keywords):
    model = lively(text_dropout=0.1, keywords=keywords)
    found = model.generate(TEXTS, sampling=sampling, seed=5)
    assert {one.shape[0] for one in found} == {72}
    uncached = model.generate(TEXTS, sampling=sampling, seed=5, cached=False)
    again = model.generate(TEXTS, sampling=sampling, seed=5, batch_size=3)
    for place, text in enumerate(TEXTS):
        (alone,) = model.generate([text], sampling=sampling, seed=5, first_place=place)
        for other in (uncached[place], again[place], alone):
            assert torch.equal(other, found[place])
    assert len({tuple(one.flatten().tolist()) for one in found}) == len(TEXTS)
    if sampling.temperature:
        other = model.generate(TEXTS, sampling=sampling, seed=6)
        assert not any(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_greedy_codes_are_the_best_of_each_category_and_the_end_is_the_first_likely_one():
    model = lively()
    ended = 0
    for text in TEXTS:
        (tokens,) = model.generate([text], sampling=GREEDY)
        features = model.text_encoder.encode([text])
        twin = model.double()
        scores = twin.scores(twin.on_model(features), pose_vectors.k_hot(tokens[:70].t()).double()[None])[0]
        model.float()
        length = tokens.shape[1]
        assert torch.equal(pose_vectors.best_bins(scores[:-1]), tokens[:70].t())
        assert not (scores[1:length, END] > 0).any()
        assert scores[length, END] > 0 or length == 12
        ended += length < 12
        assert (tokens[70:] == -1).all()
    assert ended


def test_lengths_are_kept():
    model = lively()
    found = model.generate(TEXTS[:3], lengths=[4, 12, 1], sampling=GREEDY)
    assert [one.shape[1] for one in found] == [4, 12, 1]
    with pytest.raises(UserError, match=r"lengths\[1\] must be an integer of at most 12"):
        model.generate(TEXTS[:2], lengths=[4, 13])


def test_codes_that_are_given_stay_and_count_for_what_follows():
    model = lively().double()
    text = model.on_model(HashNgramEncoder().encode(TEXTS[:1]))
    free = torch.full((1, 10, 70), -1)
    (plain,) = model.write(text, free, torch.tensor([10]), GREEDY, 0, [0])
    given = free.clone()
    given[0, 4:6, 10:30] = (plain[4:6, 10:30] + 1) % SIZES[10:30]
    (found,) = model.write(text, given, torch.tensor([10]), GREEDY, 0, [0])
    assert torch.equal(found[4:6, 10:30], given[0, 4:6, 10:30])
    assert torch.equal(found[:4], plain[:4])
    assert torch.equal(found[4, :10], plain[4, :10])
    scores = model.scores(text, pose_vectors.k_hot(found).double()[None])[0, :-1]
    written = given[0] < 0
    assert torch.equal(pose_vectors.best_bins(scores)[written], found[written])
    assert not torch.equal(found[6:], plain[6:])
    (whole,) = model.write(text, found[None], torch.tensor([10]), FREE, 3, [0])
    assert torch.equal(whole, found)


def test_keywords_are_the_first_words():
    model = lively(keywords="words")
    encoder = HashNgramEncoder()
    long = "a person walks forward then slowly turns around to the left and waves"
    first, second = encoder.encode([long, "a person"]), encoder.encode([long])
    prefix = model.text(first)
    assert torch.equal(prefix[1, 3:], model.text.absent[3:])
    assert not torch.isclose(prefix[0], model.text.absent).all(dim=-1).any()
    assert torch.equal(prefix[0, 1:], model.text.project(second.tokens[0, :11] * 512**0.5))
    dropped = model.text(first, torch.tensor([False, True]))
    assert torch.equal(dropped[1], model.text.absent)
    plain = lively().text(first)
    assert torch.equal(plain[:, 1:], lively().text.absent[1:].expand(2, -1, -1))


def test_a_small_model_learns_which_text_is_which():
    torch.manual_seed(0)
    model = BaseTransformer(dataclasses.replace(TINY, dropout=0.0, least_clean=1.0, clean_decay=1.0)).train()
    given = batch((7, 3, 12), (True, True, True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model.losses(given).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = model.generate(TEXTS[:3], sampling=GREEDY)
    assert model.training
    for tokens, row, length in zip(found, given.tokens, (7, 3, 12), strict=True):
        assert tokens.shape[1] == length
        assert torch.equal(tokens[:70], row[:length, :70].t())


def test_a_saved_model_returns(tmp_path):
    model = lively().train()
    model.losses(batch())
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["kind"], values["dim"]) == ("pgr2m-base", 32)
    loaded = BaseTransformer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert int(loaded.seen) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_which_tokenizers_it_drives():
    tokenizer = PGR2MTokenizer(PGR2MConfig(width=16, output_dim=8, codebook_size=16, depth=1, stages=3)).eval()
    config = TINY.fitted(tokenizer, HashNgramEncoder())
    assert config.sizes == (*POSE_SIZES, 16, 16, 16)
    assert (config.tokenizer_sha256, config.downsample, config.fps) == (model_sha256(tokenizer), 4, 20.0)
    BaseTransformer(config).check_tokenizer(tokenizer)
    with pytest.raises(UserError, match=r"was trained with the tokenizer of sha256 unknown, and this one has"):
        BaseTransformer(TINY).check_tokenizer(tokenizer)
    other = MotionVQVAE(MotionVQVAEConfig(width=16, output_dim=32, groups=4, codebook_size=16, depth=1))
    with pytest.raises(UserError, match=r"a pgr2m-base drives pose codes, and a motion-vqvae has none"):
        TINY.fitted(other, HashNgramEncoder())


def test_guidance_needs_to_be_learnt():
    with pytest.raises(UserError, match=r"guidance must be 1 of a pgr2m-base that was trained with text_dropout 0"):
        lively().generate(TEXTS, sampling=Sampling(guidance=4.0))
    model = lively(text_dropout=0.1)
    plain, guided = (model.generate(TEXTS, sampling=Sampling(scale, 0.0)) for scale in (1.0, 3.0))
    assert not all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
    # Without the text all texts are one.
    none = model.generate(TEXTS, lengths=[4] * 4, sampling=Sampling(0.0, 0.0))
    assert all(torch.equal(one, none[0]) for one in none)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 5}, "dim must be even and a multiple of heads, got dim=32 and heads=5"),
        ({"layers": 0}, "layers must be an integer of at least 1"),
        ({"keep": 1.5}, "keep must be a number at least 0 and at most 1, got 1.5"),
        ({"end_weight": 0.0}, "end_weight must be a number above 0, got 0"),
        ({"keywords": "gpt-4"}, "keywords must be one of none, words, got 'gpt-4'"),
        ({"sizes": (512,) * 6}, "sizes must begin with those of the 70 categories of pose codes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TINY, **changes)
