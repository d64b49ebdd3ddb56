"""How good generated motions are, by the protocol of Guo et al. 2022.

R-precision, MM-Dist, FID, Diversity and MultiModality are taken from embeddings, which are those of a motion-text
evaluator. It is trained here unless the user has the published one: every result carries its label, and compares with
others of the same evaluator only. Whole motions are embedded, their first 196 frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.evaluation.embedding import check_takes
from fastvq.models.evaluation.evaluator import UNIT, MotionTextEvaluator
from fastvq.models.evaluation.frechet import frechet_distance, matching
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.training.data import FeatureClip

FORMAT = "fastvq-generation/1"
METRICS = ("top1", "top2", "top3", "mm_dist", "fid", "diversity", "multimodality")
_Z = 1.96

# Features (T_i, C) of motions for texts, with a seed.
Generate = Callable[[Sequence[str], int], Sequence[np.ndarray]]
# Of one repeat, by metric.
_Numbers = dict[str, float]


@dataclass(frozen=True)
class Protocol:
    """Numbers of the evaluation; the defaults are the published ones.

    Raises:
        UserError: A number that cannot be.
    """

    repeats: int = 20
    """How often all is generated and measured again, for the intervals."""
    batch: int = 32
    """Descriptions among which a motion must find its own."""
    diversity_pairs: int = 300
    """Pairs of motions of different clips."""
    multimodality_texts: int = 100
    """Texts of which motions are compared with each other; 0 leaves MultiModality out."""
    multimodality_generations: int = 30
    """Motions of each of them."""
    multimodality_pairs: int = 10
    """Pairs of these that are compared."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("batch", 2), ("diversity_pairs", 1), ("multimodality_texts", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("multimodality_generations", "multimodality_pairs"):
            check_integer(name, getattr(self, name), 2 if name.endswith("generations") else 1)
        check_integer("seed", self.seed, 0, 2**31)


def evaluate_generation(
    generate: Generate,
    clips: Sequence[FeatureClip],
    evaluator: MotionTextEvaluator,
    *,
    protocol: Protocol | None = None,
    reconstructed: Sequence[np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Generates a motion for the description of every clip, ``repeats`` times, and compares them with the clips.

    Args:
        generate: The generator; a seed gives other motions.
        clips: With their descriptions; those without one are left out.
        evaluator: Without words, as the published one is loaded, R-precision and MM-Dist are left out.
        protocol: The published numbers if absent.
        reconstructed: (T_i, C) features of what the tokenizer makes of each clip: the best that a generator can do.
        progress: Called with the repeats done and their number.

    Returns:
        ``generated``, ``real``, ``shuffled`` (clips beside the description of another: chance) and ``reconstructed``:
        metric -> {"mean", "ci95"}, mean over the repeats and half of the 95 % interval, which tells what drawing
        other motions and batches changes, and not what another test set would. The real FID is that of one half
        of the clips to the other. ``top1`` to ``top3`` are absent below ``batch`` clips. Besides: ``evaluator``,
        ``protocol``, ``used`` (numbers that the data allowed) and ``notes``, sentences on what they fall short of.

    Raises:
        UserError: An evaluator of other features, or fewer than four clips with a description.
    """
    protocol = Protocol() if protocol is None else protocol
    kept = [index for index, clip in enumerate(clips) if clip.text.strip() and len(clip.features) >= UNIT]
    clips = [clips[index] for index in kept]
    if len(clips) < 4:
        raise UserError(
            f"generation is measured on four clips with descriptions at least, and there are {len(clips)}"
        )
    check_takes(evaluator, clips[0].features.shape[1])
    captions = [clip.text for clip in clips]
    texts = None if evaluator.words is None else _embed_texts(evaluator, captions)
    real = embed_whole(evaluator, [clip.features for clip in clips])
    rows: dict[str, list[_Numbers]] = {"generated": [], "real": [], "shuffled": []}
    decoded = None
    if reconstructed is not None:
        decoded = embed_whole(evaluator, [reconstructed[index] for index in kept])
        rows["reconstructed"] = []
    chosen = _different(captions, protocol)
    for repeat in range(protocol.repeats):
        seed = protocol.seed + repeat
        draw = np.random.default_rng([protocol.seed, repeat])
        made = embed_whole(evaluator, generate(captions, seed))
        numbers = _numbers(made, texts, captions, protocol, seed, draw) | {"fid": frechet_distance(made, real)}
        if chosen:
            numbers["multimodality"] = _multimodality(generate, evaluator, chosen, protocol, seed, draw)
        rows["generated"].append(numbers)
        halves = np.array_split(draw.permutation(len(real)), 2)
        rows["real"].append(
            _numbers(real, texts, captions, protocol, seed, draw)
            | {"fid": frechet_distance(real[halves[0]], real[halves[1]])}
        )
        if texts is not None:
            other = draw.permutation(len(captions))
            shuffled = _numbers(real, texts[other], [captions[index] for index in other], protocol, seed, draw)
            rows["shuffled"].append({name: shuffled[name] for name in shuffled if name != "diversity"})
        if decoded is not None:
            rows["reconstructed"].append(
                _numbers(decoded, texts, captions, protocol, seed, draw) | {"fid": frechet_distance(decoded, real)}
            )
        if progress is not None:
            progress(repeat + 1, protocol.repeats)
    used = {
        "clips": len(clips),
        "descriptions": len(set(captions)),
        "batches": len(clips) // protocol.batch,
        "embedding_dim": evaluator.config.embedding_dim,
        "multimodality_texts": len(chosen),
    }
    return {
        "format": FORMAT,
        "evaluator": evaluator.label,
        "protocol": asdict(protocol),
        "used": used,
        "notes": _notes(used, protocol, captions, told=texts is not None),
        **{name: _summary(found) for name, found in rows.items()},
    }


def generation_speed(
    generate: Generate, texts: Sequence[str], fps: float, *, batches: Sequence[int] = (1, 32)
) -> dict[str, Any]:
    """Frames a second, and how many times faster than they are played.

    Args:
        generate: The generator, whose first call is not counted.
        texts: At least one; repeated as needed.
        fps: Frames a second of the motions.
        batches: How many texts at once.

    Returns:
        For each batch ``{"batch", "frames", "seconds", "frames_per_second", "real_time"}``.
    """
    rows = []
    generate(list(texts[:1]), 0)
    for batch in batches:
        wanted = [texts[index % len(texts)] for index in range(batch)]
        start = time.perf_counter()
        frames = sum(len(motion) for motion in generate(wanted, 1))
        seconds = time.perf_counter() - start
        rate = frames / seconds
        rows.append(
            {
                "batch": batch,
                "frames": frames,
                "seconds": seconds,
                "frames_per_second": rate,
                "real_time": rate / fps,
            }
        )
    return {"speed": rows}


def embed_whole(evaluator: MotionTextEvaluator, motions: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D) embeddings of whole motions, of their first frames where they are longer than the evaluator takes.

    Raises:
        UserError: A motion below four frames.
    """
    short = [len(motion) for motion in motions if len(motion) < UNIT]
    if short:
        raise UserError(f"an evaluator takes motions of {UNIT} frames at least, and one has {short[0]}")
    longest = evaluator.config.longest
    return evaluator.embed_motions([motion[: min(len(motion), longest) // UNIT * UNIT] for motion in motions])


def _embed_texts(evaluator: MotionTextEvaluator, captions: Sequence[str]) -> np.ndarray:
    rows = list(dict.fromkeys(captions))
    place = {text: index for index, text in enumerate(rows)}
    embedded: np.ndarray = evaluator.embed_texts(rows)[[place[text] for text in captions]]
    return embedded


def _numbers(
    motions: np.ndarray,
    texts: np.ndarray | None,
    captions: list[str],
    protocol: Protocol,
    seed: int,
    draw: np.random.Generator,
) -> _Numbers:
    found: _Numbers = {}
    if texts is not None:
        found |= matching(motions, texts, captions, batch=protocol.batch, seed=seed)
        found["mm_dist"] = float(np.linalg.norm(motions - texts, axis=-1).mean())
    first = draw.integers(len(motions), size=protocol.diversity_pairs)
    second = (first + draw.integers(1, len(motions), size=protocol.diversity_pairs)) % len(motions)
    return {**found, "diversity": float(np.linalg.norm(motions[first] - motions[second], axis=-1).mean())}


def _different(captions: Sequence[str], protocol: Protocol) -> list[str]:
    """Descriptions for MultiModality, each once."""
    known = list(dict.fromkeys(captions))
    order = np.random.default_rng(protocol.seed).permutation(len(known))
    return [known[index] for index in order[: protocol.multimodality_texts]]


def _multimodality(
    generate: Generate,
    evaluator: MotionTextEvaluator,
    texts: Sequence[str],
    protocol: Protocol,
    seed: int,
    draw: np.random.Generator,
) -> float:
    count = protocol.multimodality_generations
    # The descriptions of the clips were asked with this seed already.
    motions = generate([text for text in texts for _ in range(count)], 10_000 + seed)
    found = embed_whole(evaluator, motions).reshape(len(texts), count, -1)
    first = draw.integers(count, size=(len(texts), protocol.multimodality_pairs))
    second = (first + draw.integers(1, count, size=first.shape)) % count
    rows = np.arange(len(texts))[:, None]
    return float(np.linalg.norm(found[rows, first] - found[rows, second], axis=-1).mean())


def _summary(repeats: Sequence[_Numbers]) -> dict[str, dict[str, float]]:
    """Mean and half of the 95 % interval of the mean; without an interval for a single repeat."""
    summary = {}
    for name in METRICS:
        values = np.array([numbers[name] for numbers in repeats if name in numbers])
        if len(values):
            summary[name] = {"mean": float(values.mean())}
        if len(values) > 1:
            summary[name]["ci95"] = float(_Z * values.std(ddof=1) / np.sqrt(len(values)))
    return summary


def _notes(used: Mapping[str, int], protocol: Protocol, captions: Sequence[str], *, told: bool) -> list[str]:
    notes = []
    if not told:
        notes.append("the evaluator embeds no descriptions, so there is no R-precision and no MM-Dist")
    elif not used["batches"]:
        notes.append(f"{used['clips']} clips are fewer than a batch of {protocol.batch}, so there is no R-precision")
    elif used["descriptions"] < used["clips"]:
        most = max(captions.count(text) for text in set(captions))
        notes.append(
            f"the {used['clips']} clips have {used['descriptions']} different descriptions (one of them {most} "
            "times), and a description in the same words counts as a motion's own, so chance is above 1 in "
            f"{protocol.batch}: it is what the shuffled row says"
        )
    if used["clips"] <= used["embedding_dim"]:
        notes.append(
            f"the FID is over {used['clips']} clips in {used['embedding_dim']} dimensions, too few for full "
            "covariances: it compares with others of the same clips only"
        )
    published = Protocol()
    asked = (used["multimodality_texts"], protocol.multimodality_generations, protocol.multimodality_pairs)
    usual = (
        published.multimodality_texts,
        published.multimodality_generations,
        published.multimodality_pairs,
    )
    if asked[0] and asked != usual:
        notes.append(
            f"MultiModality is over {asked[2]} pairs of {asked[1]} motions of {asked[0]} descriptions, in the "
            f"published protocol {usual[2]} of {usual[1]} of {usual[0]}"
        )
    if protocol.repeats != published.repeats:
        notes.append(f"{protocol.repeats} repeats, in the published protocol {published.repeats}")
    return notes
