"""The GPT over time and depth: its shapes, what it sees in training, and what it generates."""

import dataclasses

import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT, DoubleTierGPTConfig
from fastvq.models.generators.generator import TokenBatch
from fastvq.models.generators.kinds import load_generator
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE

TEXTS = [
    "a person walks forward and turns left",
    "a person jumps",
    "a tired person waves slowly with the right hand",
    "somebody squats",
]
SAMPLED = Sampling(guidance=2.0, temperature=0.9, top_k=8, top_p=0.95)


def batch_of(model: DoubleTierGPT, lengths: list[int]) -> TokenBatch:
    tokens = torch.randint(model.end, (len(lengths), max(lengths), model.stages))
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = -1
    text = open_text_encoder("hash").encode(TEXTS[: len(lengths)])
    ends = torch.tensor([index % 2 == 0 for index in range(len(lengths))])
    return TokenBatch(tokens, torch.tensor(lengths), ends, text)


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(guidance=1.0), Sampling(temperature=0.0)], ids=str)
@pytest.mark.parametrize("lengths", [None, [12, 3, 7, 1]], ids=["ends itself", "lengths given"])
def test_neither_cache_nor_batch_changes_a_token(generator, sampling, lengths):
    options = {"sampling": sampling, "seed": 5}
    found = generator.generate(TEXTS, lengths=lengths, **options)
    uncached = generator.generate(TEXTS, lengths=lengths, cached=False, **options)
    pairs = generator.generate(TEXTS, lengths=lengths, batch_size=3, **options)
    for place, tokens in enumerate(found):
        wanted = None if lengths is None else lengths[place : place + 1]
        alone = generator.generate(TEXTS[place : place + 1], lengths=wanted, first_place=place, **options)
        for other in (uncached[place], pairs[place], alone[0]):
            assert torch.equal(tokens, other)


def test_a_seed_gives_the_same_tokens_and_another_seed_others(generator):
    first, again, other = (generator.generate(TEXTS, sampling=SAMPLED, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_generating_leaves_the_global_random_numbers_and_the_mode_alone(generator):
    generator.train()
    state = torch.get_rng_state()
    generator.generate(TEXTS[:1])
    assert torch.equal(torch.get_rng_state(), state)
    assert generator.training


def test_lengths_are_kept_and_tokens_are_the_tokenizers(generator, rvqvae):
    found = generator.generate(TEXTS, lengths=[12, 3, 7, 1], sampling=Sampling(guidance=1.0))
    assert [tuple(tokens.shape) for tokens in found] == [(3, 12), (3, 3), (3, 7), (3, 1)]
    assert all(bool(((tokens >= 0) & (tokens < 16)).all()) for tokens in found)
    assert rvqvae.decode(found[0]).shape == (1, 48, 263)


def test_the_model_ends_a_motion_where_it_is_sure_of_the_end(generator):
    """The head's row of END decides: far above all others it ends after one token, far below never."""
    for sign, length in ((1, 1), (-1, 12)):
        model = DoubleTierGPT(generator.config)
        model.load_state_dict(generator.state_dict())
        with torch.no_grad():
            model.temporal.norm.bias.zero_()
            model.residual.norm.weight.zero_()
            model.residual.norm.bias.fill_(1.0)
            model.head.weight[model.end] = sign * 10.0
        found = model.eval().generate(TEXTS, sampling=Sampling(guidance=1.0))
        assert {tokens.shape[1] for tokens in found} == {length}


def test_guidance_zero_ignores_the_text_and_one_needs_no_second_pass(generator):
    same = generator.generate(
        TEXTS[:1] + TEXTS[2:3], lengths=[8, 8], sampling=Sampling(guidance=0.0, temperature=0.0)
    )
    assert torch.equal(same[0], same[1])
    strong = Sampling(guidance=4.0, temperature=0.0)
    assert not torch.equal(*generator.generate(TEXTS[:2], lengths=[8, 8], sampling=strong))
    one = generator.generate(TEXTS, lengths=[8] * 4, sampling=Sampling(guidance=1.0))
    near = generator.generate(TEXTS, lengths=[8] * 4, sampling=Sampling(guidance=1.0 + 1e-12))
    assert all(torch.equal(a, b) for a, b in zip(one, near, strict=True))


def test_the_loss_is_the_cross_entropy_of_what_generation_draws_from(generator):
    """Worked out moment by moment and stage by stage, each sequence by itself."""
    config = dataclasses.replace(generator.config, corruption="none", text_dropout=0.0, dropout=0.0)
    model = DoubleTierGPT(config).double().eval()
    model.load_state_dict(generator.state_dict())
    batch = batch_of(model, [5, 2, 4])
    batch = batch._replace(text=model.on_model(batch.text))
    total, moments = 0.0, 0
    for index, length in enumerate(batch.lengths.tolist()):
        text = type(batch.text)(*(one[index : index + 1] for one in batch.text))
        text = text._replace(tokens=text.tokens[:, text.mask[0]], mask=text.mask[:, text.mask[0]])
        tokens = batch.tokens[index : index + 1, :length]
        prefix, _ = model._prefix(text, torch.tensor([False]))
        for time in range(length + int(batch.ends[index])):
            state = model.temporal(torch.cat([prefix, model._moments(tokens[:, :time], first=0)], dim=1))[:, -1]
            column = tokens[:, time] if time < length else torch.tensor([[model.end]])
            for stage in range(column.shape[1]):
                logits = model._stages(state, column[:, : stage + 1].clamp_max(model.end - 1))[:, -1]
                total -= logits.log_softmax(dim=-1)[0, column[0, stage]].item()
            moments += 1
    found = model.losses(batch)
    # Logits are rounded to float32 before the cross-entropy, values of up to some tens.
    assert found.total.item() == pytest.approx(total / moments, rel=1e-5)
    assert found.terms["cross_entropy_per_stage"].shape == (3,)


@pytest.mark.parametrize(("corruption", "columns"), [("time", True), ("code", False)])
def test_corruption_replaces_whole_moments_or_single_codes_at_its_rate(corruption, columns):
    config = DoubleTierGPTConfig(dim=8, layers=1, depth_layers=1, heads=1, corruption=corruption, sizes=(512,) * 6)
    tokens = torch.zeros(100, 100, 6, dtype=torch.int64)
    replaced = DoubleTierGPT(config)._corrupted(tokens) > 0
    # A random code is the old one once in 512; four standard deviations of the share of 10,000 draws.
    assert replaced.double().mean().item() == pytest.approx(0.5 * 511 / 512, abs=0.02)
    both = (replaced[..., 0] == replaced[..., 1]).double().mean().item()
    assert both == pytest.approx(1.0 if columns else 0.5, abs=0.02)
    assert not DoubleTierGPT(dataclasses.replace(config, corruption="none"))._corrupted(tokens).any()


def test_texts_are_left_out_at_their_rate_and_corruption_never_reaches_what_is_asked(generator):
    """With every text left out, the loss does not know the texts."""
    config = dataclasses.replace(generator.config, text_dropout=1.0, dropout=0.0, corruption="none")
    model = DoubleTierGPT(config)
    batch = batch_of(model, [5, 5])
    other = batch._replace(text=open_text_encoder("hash").encode(TEXTS[2:4]))
    found, changed = model.losses(batch), model.losses(other)
    torch.testing.assert_close(found.total, changed.total, rtol=1e-5, atol=0)
    found.total.backward()
    assert model.no_text.grad is not None
    assert model.text.weight.grad is None or not model.text.weight.grad.any()


def test_published_sizes_have_the_published_shapes_train_and_come_back_from_disk(tmp_path):
    model = DoubleTierGPT()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for tier, layers in (("temporal", 9), ("residual", 3)):
        for layer in range(layers):
            block = f"{tier}.layers.{layer}"
            assert shapes[f"{block}.self_attn.in_proj_weight"] == (1536, 512)
            assert shapes[f"{block}.self_attn.out_proj.weight"] == (512, 512)
            assert shapes[f"{block}.linear1.weight"] == (2048, 512)
            assert shapes[f"{block}.linear2.weight"] == (512, 2048)
        assert f"{tier}.layers.{layers}.linear1.weight" not in shapes
    assert shapes["head.weight"] == (513, 512)
    assert shapes["text.weight"] == (512, 512)
    assert shapes["codes.weight"] == (6 * 512, 512)
    assert model.temporal.heads == model.residual.heads == 8
    blocks = 12 * (4 * 512 * 512 + 4 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512)
    rest = 2 * 2 * 512 + 513 * 512 + 512 * 512 + 512 + 512 + (6 * 512 + 51 + 6) * 512
    assert sum(parameter.numel() for parameter in model.parameters()) == blocks + rest
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = model.head.weight.detach().clone()
    loss = model.losses(batch_of(model, [49, 12])).total
    # Nothing is known yet: every stage costs about log 513.
    assert loss.item() == pytest.approx(6 * 6.24, rel=0.1)
    loss.backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    found = load_generator(tmp_path).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_a_folder_gives_back_the_model(generator, tmp_path):
    generator.save_pretrained(tmp_path / "model")
    found = load_generator(tmp_path / "model")
    assert found.config == generator.config
    assert all(torch.equal(a, b) for a, b in zip(found.generate(TEXTS), generator.generate(TEXTS), strict=True))


def test_tokenizers_that_do_not_fit_are_refused_in_a_sentence(generator, rvqvae):
    generator.check_tokenizer(rvqvae)
    other = ResidualVQVAE(rvqvae.config)
    with pytest.raises(UserError, match=r"trained with the tokenizer of sha256 \w{12}, and this one has \w{12}"):
        generator.check_tokenizer(other)
    groups = MotionVQVAE(MotionVQVAEConfig(width=16, output_dim=32, groups=4, codebook_size=16, depth=1))
    with pytest.raises(UserError, match="a hifigpt drives residual stages, and a motion-vqvae has groups"):
        DoubleTierGPTConfig().fitted(groups, open_text_encoder("hash"))


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 7}, {"dropout": 1.5}, {"corruption": "some"}, {"layers": 0}, {"sizes": (4, 5)}, {"longest": 0}],
    ids=str,
)
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DoubleTierGPTConfig(**wrong)
