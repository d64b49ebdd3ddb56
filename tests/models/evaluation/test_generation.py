"""The protocol of generation, with generators whose results are known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import EvaluatorConfig, MotionTextEvaluator
from fastvq.models.evaluation.frechet import frechet_distance
from fastvq.models.evaluation.generation import Protocol, embed_whole, evaluate_generation, generation_speed
from fastvq.models.training.data import FeatureClip

TINY = {
    "movement_hidden": 12,
    "movement_dim": 10,
    "motion_hidden": 8,
    "text_hidden": 6,
    "embedding_dim": 7,
    "word_dim": 5,
    "buckets": 500,
    "longest": 40,
}
WIDTH = 263
SHORT = Protocol(
    repeats=3, batch=8, multimodality_texts=4, multimodality_generations=5, multimodality_pairs=6, diversity_pairs=50
)


def make_evaluator(**sizes: int) -> MotionTextEvaluator:
    torch.manual_seed(0)
    config = EvaluatorConfig(**{**TINY, **sizes})
    mean, std = np.zeros(config.input_dim), np.ones(config.input_dim)
    return MotionTextEvaluator(config, mean=mean, std=std, label="test evaluator").eval()


def clips(count: int) -> list[FeatureClip]:
    draw = np.random.default_rng(0)
    return [
        FeatureClip(
            f"clip{index}",
            draw.normal(size=(24 + 4 * (index % 7), WIDTH)).astype(np.float32),
            np.zeros((1, 22, 3), np.float32),
            "test",
            f"a person does thing {index}",
        )
        for index in range(count)
    ]


class Perfect(MotionTextEvaluator):
    """Knows a motion's description by the first number that it holds."""

    def embed_motions(self, motions: Sequence[np.ndarray], *, batch_size: int = 64) -> np.ndarray:
        return np.array([[motion[0, 0], 0.0] for motion in motions], dtype=np.float64)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(text.split()[-1]), 0.0] for text in texts])


class Copying:
    """Answers every description with the clip that it is of, and notes what it was asked."""

    def __init__(self, known: Sequence[FeatureClip]) -> None:
        self.known = {clip.text: clip.features for clip in known}
        self.calls: list[tuple[int, int]] = []

    def __call__(self, texts: Sequence[str], seed: int) -> list[np.ndarray]:
        self.calls.append((len(texts), seed))
        return [self.known[text] for text in texts]


def test_a_generator_that_copies_the_clips_is_as_good_as_they_are() -> None:
    known, evaluator = clips(20), make_evaluator()
    generator = Copying(known)
    found = evaluate_generation(generator, known, evaluator, protocol=SHORT)
    assert found["evaluator"] == "test evaluator"
    for name in ("top1", "top2", "top3", "mm_dist"):
        assert found["generated"][name] == found["real"][name]
    assert found["generated"]["fid"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert found["real"]["fid"]["mean"] > 0
    assert found["generated"]["multimodality"] == {"mean": 0.0, "ci95": 0.0}
    assert "multimodality" not in found["real"]
    assert found["used"] == {
        "clips": 20,
        "descriptions": 20,
        "batches": 2,
        "embedding_dim": 7,
        "multimodality_texts": 4,
    }
    # Every description once and four of them five times, with seeds that never meet again.
    assert [count for count, _ in generator.calls] == [20, 20] * 3
    assert len({seed for _, seed in generator.calls}) == 6


def test_numbers_are_those_of_the_formulas() -> None:
    known, evaluator = clips(20), make_evaluator()
    draw = np.random.default_rng(3)
    made = {
        (clip.text, seed): draw.normal(size=(32, WIDTH)).astype(np.float32) for clip in known for seed in range(3)
    }
    protocol = Protocol(repeats=3, batch=8, multimodality_texts=0, diversity_pairs=20_000)
    found = evaluate_generation(
        lambda texts, seed: [made[text, seed] for text in texts], known, evaluator, protocol=protocol
    )["generated"]
    assert "multimodality" not in found
    real = embed_whole(evaluator, [clip.features for clip in known])
    texts = evaluator.embed_texts([clip.text for clip in known])
    sets = [embed_whole(evaluator, [made[clip.text, seed] for clip in known]) for seed in range(3)]
    for name, each in (
        ("mm_dist", [np.linalg.norm(one - texts, axis=1).mean() for one in sets]),
        ("fid", [frechet_distance(one, real) for one in sets]),
    ):
        assert found[name]["mean"] == pytest.approx(np.mean(each))
        assert found[name]["ci95"] == pytest.approx(1.96 * np.std(each, ddof=1) / np.sqrt(3))
    pairs = [np.linalg.norm(one[:, None] - one[None], axis=-1)[~np.eye(20, dtype=bool)].mean() for one in sets]
    assert found["diversity"]["mean"] == pytest.approx(np.mean(pairs), rel=0.02)


def test_multimodality_is_the_mean_distance_of_two_motions_of_a_text() -> None:
    known, evaluator = clips(8), make_evaluator()
    draw = np.random.default_rng(5)
    pool = draw.normal(size=(5, 24, WIDTH)).astype(np.float32)

    def generate(texts: Sequence[str], seed: int) -> list[np.ndarray]:
        return [pool[index % 5] for index in range(len(texts))]

    protocol = Protocol(
        repeats=1, batch=8, multimodality_texts=100, multimodality_generations=5, multimodality_pairs=5000
    )
    found = evaluate_generation(generate, known, evaluator, protocol=protocol)
    rows = embed_whole(evaluator, list(pool))
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=-1)[~np.eye(5, dtype=bool)].mean()
    assert found["generated"]["multimodality"] == {"mean": pytest.approx(expected, rel=0.02)}
    assert found["used"]["multimodality_texts"] == 8
    assert any("5000 pairs of 5 motions of 8 descriptions" in note for note in found["notes"])


def test_chance_is_that_of_descriptions_which_occur_often() -> None:
    config = EvaluatorConfig(**TINY)
    evaluator = Perfect(config, mean=np.zeros(WIDTH), std=np.ones(WIDTH), label="perfect")
    words = [0] * 12 + [1, 2, 3, 4]
    known = [
        FeatureClip(
            f"clip{index}", np.full((24, WIDTH), word, np.float32), np.zeros((1, 22, 3)), "test", f"do {word}"
        )
        for index, word in enumerate(words)
    ]
    silent = FeatureClip("silent", known[0].features, known[0].joints, "test", " ")
    protocol = Protocol(repeats=40, batch=8, multimodality_texts=0)
    found = evaluate_generation(
        Copying(known), [silent, *known], evaluator, protocol=protocol, reconstructed=[silent.features] * 17
    )
    assert found["used"]["clips"] == 16
    assert found["used"]["descriptions"] == 5
    assert found["real"]["top1"] == {"mean": 1.0, "ci95": 0.0}
    assert found["generated"]["top1"] == {"mean": 1.0, "ci95": 0.0}
    # A motion finds another's description where both are the frequent one, 12 / 16 squared, or any other is the same.
    expected = (12 / 16) ** 2 + 4 / 16**2
    assert abs(found["shuffled"]["top1"]["mean"] - expected) < 0.1
    assert "fid" not in found["shuffled"]
    assert found["reconstructed"]["top1"]["mean"] == pytest.approx(12 / 16)
    assert any("one of them 12 times" in note for note in found["notes"])


def test_an_evaluator_that_embeds_no_descriptions_measures_the_rest() -> None:
    known = clips(20)
    found = evaluate_generation(Copying(known), known, make_evaluator(buckets=0), protocol=SHORT)
    assert set(found["generated"]) == {"fid", "diversity", "multimodality"}
    assert set(found["real"]) == {"fid", "diversity"}
    assert found["shuffled"] == {}
    assert any("embeds no descriptions" in note for note in found["notes"])


def test_long_motions_are_cut_and_short_ones_refused() -> None:
    evaluator = make_evaluator()
    motion = np.random.default_rng(0).normal(size=(80, WIDTH)).astype(np.float32)
    whole, first = embed_whole(evaluator, [motion, motion[:43]])
    np.testing.assert_allclose(whole, first, atol=1e-6)
    with pytest.raises(UserError, match="motions of 4 frames at least, and one has 3"):
        embed_whole(evaluator, [motion[:3]])


def test_speed_counts_frames() -> None:
    sizes: list[int] = []

    def generate(texts: Sequence[str], seed: int) -> list[np.ndarray]:
        sizes.append(len(texts))
        return [np.zeros((40, WIDTH), np.float32)] * len(texts)

    rows = generation_speed(generate, ["a", "b"], 20.0, batches=(1, 5))["speed"]
    assert sizes == [1, 1, 5]
    assert [row["frames"] for row in rows] == [40, 200]
    for row in rows:
        assert row["frames_per_second"] == pytest.approx(row["frames"] / row["seconds"])
        assert row["real_time"] == pytest.approx(row["frames_per_second"] / 20)


@pytest.mark.parametrize(
    ("protocol", "complaint"),
    [
        ({"repeats": 0}, "repeats must be an integer of at least 1"),
        ({"batch": 1}, "batch must be an integer of at least 2"),
        ({"multimodality_generations": 1}, "multimodality_generations must be an integer of at least 2"),
    ],
)
def test_protocols_that_cannot_be_are_refused(protocol: dict[str, int], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Protocol(**protocol)


def test_data_and_evaluators_that_do_not_do_are_refused() -> None:
    known = clips(6)
    with pytest.raises(UserError, match="four clips with descriptions at least, and there are 3"):
        evaluate_generation(Copying(known), known[:3], make_evaluator())
    with pytest.raises(UserError, match="takes 272 features and the model has 263"):
        evaluate_generation(Copying(known), known, make_evaluator(input_dim=272))
    few = evaluate_generation(Copying(known), known, make_evaluator(), protocol=SHORT)
    assert "top1" not in few["generated"]
    assert any("fewer than a batch of 8" in note for note in few["notes"])
