import dataclasses

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import EvaluatorConfig
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.evaluator import EvaluatorTraining, contrastive_loss, train_evaluator

CONFIG = EvaluatorConfig(
    input_dim=272,
    movement_hidden=24,
    movement_dim=16,
    motion_hidden=16,
    text_hidden=16,
    embedding_dim=8,
    word_dim=8,
    buckets=64,
)
TRAINING = EvaluatorTraining(movement_steps=40, match_steps=150, batch_size=16, lr=3e-3, seed=1)


def clip(index, kind, split="train", text=None):
    """A body that swings slowly or fast, about a height of its own."""
    draw = np.random.default_rng(index)
    time = np.arange(int(draw.integers(30, 60)))[:, None] + draw.uniform(0, 30)
    rows = np.sin(time * (0.1 if kind == "slow" else 0.6) + np.arange(272)) + 0.05 * draw.normal(
        size=(len(time), 272)
    )
    joints = np.zeros((len(time), 22, 3), dtype=np.float32)
    return FeatureClip(f"{kind}{index}", rows.astype(np.float32), joints, split, text or f"a {kind} swing")


@pytest.fixture(scope="module")
def clips():
    kinds = ("slow", "fast")
    train = [clip(index, kinds[index % 2]) for index in range(24)]
    return train + [clip(100 + index, kinds[index % 2], "test") for index in range(32)]


@pytest.fixture(scope="module")
def trained(clips):
    seen = []
    model, facts = train_evaluator(
        CONFIG, clips, data="swings", training=TRAINING, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(step, 190) for step in range(1, 191)]
    return model, facts


def test_motions_and_descriptions_meet(trained, clips):
    model, facts = trained
    assert model.name == "FID (fastvq evaluator, trained on swings)"
    assert (facts["clips"], facts["descriptions"], facts["data"], facts["seed"]) == (24, 2, "swings", 1)
    assert facts["test"]["top1"] == 1.0
    assert facts["test"]["chance_top1"] < 0.9
    texts = model.embed_texts(["a slow swing", "a fast swing"])
    for kind, own, other in (("slow", 0, 1), ("fast", 1, 0)):
        motion = model.embed_motions([clip(200, kind).features[:28]])
        near, far = (np.linalg.norm(motion - texts[row]) for row in (own, other))
        assert near < far / 2
    assert not model.training


def test_a_seed_gives_the_same_evaluator_and_leaves_the_generator_alone(trained, clips):
    short = dataclasses.replace(TRAINING, movement_steps=3, match_steps=3)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (
        train_evaluator(CONFIG, clips, data="x", training=dataclasses.replace(short, seed=seed))[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["words.weight"], third["words.weight"])
    assert all(torch.equal(first[name], third[name]) for name in ("mean", "std"))


def test_movements_are_frozen_once_they_are_learnt(clips):
    states = []
    for steps in (1, 6):
        training = dataclasses.replace(TRAINING, movement_steps=5, match_steps=steps)
        states.append(train_evaluator(CONFIG, clips, data="x", training=training)[0].state_dict())
    for name, tensor in states[0].items():
        fixed = name.startswith("movement_encoder") or name in ("mean", "std")
        assert torch.equal(tensor, states[1][name]) == fixed or not fixed, name
    assert not torch.equal(states[0]["motion_encoder.input_emb.weight"], states[1]["motion_encoder.input_emb.weight"])


def test_the_loss_in_closed_form():
    motions = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    texts = torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    # Own distances 1 and 0; to the other: (0,0)-(3,4) is 5, (3,4)-(0,1) is sqrt(18).
    own, others = 0.5, [(10 - 5) ** 2, (10 - 18**0.5) ** 2]
    loss = contrastive_loss(motions, texts, ["a", "b"], 1, 10.0)
    # F.pairwise_distance adds 1e-6 to every difference.
    assert float(loss) == pytest.approx(own + np.mean(others), rel=1e-5)
    assert float(contrastive_loss(motions, texts, ["a", "a"], 1, 10.0)) == pytest.approx(own, rel=1e-5)
    assert float(contrastive_loss(motions, texts, ["a", "b"], 1, 4.0)) == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("texts", [["", ""], ["a walk", "a walk"], ["a walk", " "]])
def test_without_different_descriptions_nothing_can_be_learnt(texts):
    given = [clip(index, "slow", text=text or " ") for index, text in enumerate(texts)]
    with pytest.raises(UserError, match="fewer than two different ones"):
        train_evaluator(CONFIG, given, data="x", training=TRAINING)


@pytest.mark.parametrize(("name", "value"), [("match_steps", 0), ("batch_size", 1), ("lr", 0.0), ("margin", -1.0)])
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        dataclasses.replace(TRAINING, **{name: value})
