"""The motion-text evaluator of Guo et al. 2022 ("Generating Diverse and Natural 3D Human Motions from Text").

Motions and descriptions are embedded where those that belong together are near; the Fréchet distance of motions'
embeddings is the FID of the motion literature. The published weights are not at hand, so this one is trained here
(``fastvq.models.training.evaluator``) and says so wherever its numbers stand: they compare with each other, and never
with a paper's. Who has the published checkpoint reads it with ``official_evaluator``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer

FORMAT = "fastvq-evaluator/1"
CONFIG = "evaluator.json"
UNIT = 4  # frames of a movement
LEAKY = 0.2


@dataclass(frozen=True)
class EvaluatorConfig:
    """Sizes of a :class:`MotionTextEvaluator`; the defaults are the published ones.

    Raises:
        UserError: a value that no evaluator can have.
    """

    input_dim: int = 263
    """Features of a frame; of those that say which feet stand, that is left out."""
    movement_hidden: int = 512
    """Channels of the first convolution."""
    movement_dim: int = 512
    """Channels of a movement, four frames."""
    motion_hidden: int = 1024
    """Of the motions' recurrent network, for each direction."""
    text_hidden: int = 512
    """Of the descriptions'."""
    embedding_dim: int = 512
    """Of motions and descriptions."""
    word_dim: int = 300
    """Of a word."""
    tag_dim: int = 15
    """Parts of speech, one-hot; descriptions without tags have zeros."""
    buckets: int = 4096
    """Learned words: a word has the row of its hash. 0 means that words come as vectors, as the published ones do."""
    longest_text: int = 20
    """Words of a description; the rest is cut off."""
    longest: int = 196
    """Frames of a motion; the rest is cut off."""
    window: int = 32
    """Frames of the windows over which an FID is taken; 0 is whole clips, as the published protocol has it."""
    stride: int = 4
    """Frames from one window to the next."""

    def __post_init__(self) -> None:
        format_of(self.input_dim)
        for entry in dataclasses.fields(self):
            check_integer(entry.name, getattr(self, entry.name), 0 if entry.name in ("buckets", "window") else 1)
        for name in ("longest", "window"):
            if getattr(self, name) % UNIT:
                raise UserError(f"{name} must be a multiple of {UNIT} frames, got {getattr(self, name)}")

    @property
    def columns(self) -> int:
        """Features that are looked at: all but the contacts, which come last."""
        contact = format_of(self.input_dim).slices.get("contact")
        return self.input_dim if contact is None else contact.start


# About a minute of training on one thread; for half an hour of motion the published sizes are too many.
SMALL: Mapping[str, int] = {
    "movement_hidden": 256,
    "movement_dim": 128,
    "motion_hidden": 128,
    "text_hidden": 64,
    "embedding_dim": 128,
    "word_dim": 64,
}


class MovementEncoder(nn.Module):
    """(B, T, C) features -> (B, T / 4, movement_dim)."""

    def __init__(self, columns: int, hidden: int, output: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(columns, hidden, 4, 2, 1),
            nn.Dropout(0.2),
            nn.LeakyReLU(LEAKY),
            nn.Conv1d(hidden, output, 4, 2, 1),
            nn.Dropout(0.2),
            nn.LeakyReLU(LEAKY),
        )
        self.out_net = nn.Linear(output, output)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.out_net(self.main(features.transpose(1, 2)).transpose(1, 2))


class SequenceEncoder(nn.Module):
    """(B, L, input) -> (B, output): a recurrent network both ways, its last states through two layers."""

    def __init__(self, inputs: int, hidden: int, output: int) -> None:
        super().__init__()
        self.input_emb = nn.Linear(inputs, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden))
        self.output_net = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(LEAKY), nn.Linear(hidden, output)
        )

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """``lengths`` (B) are the real steps of each row, at least 1."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.input_emb(inputs), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed, self.hidden.expand(-1, len(inputs), -1).contiguous())
        return self.output_net(last.transpose(0, 1).flatten(1))


class TextEncoder(SequenceEncoder):
    """(B, L, word_dim) words and (B, L, tag_dim) parts of speech -> (B, output)."""

    def __init__(self, words: int, tags: int, hidden: int, output: int) -> None:
        super().__init__(words, hidden, output)
        self.pos_emb = nn.Linear(tags, words)

    def forward(self, words: Tensor, lengths: Tensor, tags: Tensor | None = None) -> Tensor:
        """Without tags they are zeros."""
        blank = words.new_zeros(*words.shape[:2], self.pos_emb.in_features) if tags is None else tags
        return super().forward(words + self.pos_emb(blank), lengths)


class MotionTextEvaluator(nn.Module):
    """Embeds motions and descriptions.

    Its parameters have the names of the published checkpoint's three networks, and ``words`` is ours.

    Args:
        config: sizes; the published ones if absent.
        mean, std: (input_dim,) statistics of the features, those that the evaluator was trained with.
        label: what it is and was trained on, as it stands beside every number: "fastvq evaluator, trained on ...".

    Buffers:
        mean, std: as given.

    Raises:
        UserError: statistics of another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: EvaluatorConfig | None = None,
        *,
        mean: np.ndarray,
        std: np.ndarray,
        label: str,
    ) -> None:
        super().__init__()
        self.config = config = EvaluatorConfig() if config is None else config
        self.label = label
        self.movement_encoder = MovementEncoder(config.columns, config.movement_hidden, config.movement_dim)
        self.motion_encoder = SequenceEncoder(config.movement_dim, config.motion_hidden, config.embedding_dim)
        self.text_encoder = TextEncoder(config.word_dim, config.tag_dim, config.text_hidden, config.embedding_dim)
        self.words = nn.Embedding(config.buckets, config.word_dim) if config.buckets else None
        for name, values in (("mean", mean), ("std", std)):
            statistic = torch.as_tensor(values, dtype=torch.float32).clone()
            if statistic.shape != (config.input_dim,):
                raise UserError(f"{name} must have the shape ({config.input_dim},), got {tuple(statistic.shape)}")
            self.register_buffer(name, statistic)

    @property
    def name(self) -> str:
        """What a Fréchet distance of its embeddings is called."""
        return f"FID ({self.label})"

    def movements(self, features: Tensor) -> Tensor:
        """(B, T, input_dim) features, not normalised, T a multiple of 4 -> (B, T / 4, movement_dim)."""
        normal = (features - self.mean) / torch.where(self.std > 0, self.std, 1.0)
        return self.movement_encoder(normal[..., : self.config.columns])

    def windows(self, features: np.ndarray) -> list[np.ndarray]:
        """The parts of a clip that are embedded: windows, or its first 196 frames; none of one that is too short."""
        window, stride = self.config.window, self.config.stride
        if window:
            return [features[start : start + window] for start in range(0, len(features) - window + 1, stride)]
        length = min(len(features), self.config.longest) // UNIT * UNIT
        return [features[:length]] if length else []

    @torch.no_grad()
    def embed_motions(self, motions: Sequence[np.ndarray], *, batch_size: int = 64) -> np.ndarray:
        """(T_i, input_dim) features, not normalised, T_i a multiple of 4 -> (N, embedding_dim) float64.

        A motion has the embedding that it has alone, since only those of one length go together.
        """
        self.eval()
        found = np.empty((len(motions), self.config.embedding_dim))
        by_length: dict[int, list[int]] = {}
        for index, motion in enumerate(motions):
            by_length.setdefault(len(motion), []).append(index)
        for length, members in by_length.items():
            for start in range(0, len(members), batch_size):
                part = members[start : start + batch_size]
                batch = torch.from_numpy(np.stack([motions[index] for index in part])).to(self.mean)
                lengths = torch.full((len(part),), length // UNIT)
                found[part] = self.motion_encoder(self.movements(batch), lengths).double().cpu().numpy()
        return found

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, embedding_dim) float64.

        Raises:
            UserError: the evaluator takes words as vectors that are not at hand.
        """
        self.eval()
        return self.text_embeddings(texts).double().cpu().numpy()

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """The same with gradient."""
        if self.words is None:
            raise UserError(
                f"the {self.label} takes GloVe vectors for words, which are not at hand: it embeds motions"
            )
        rows = [hashed_words(text, self.config.buckets)[: self.config.longest_text] or [0] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return self.text_encoder(self.words(padded.to(self.mean.device)), lengths)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Writes ``evaluator.json`` with the facts of its training, ``model.safetensors``, ``mean.npy``, ``std.npy``.

        Raises:
            UserError: the folder cannot be written.
        """
        values = {
            "format": FORMAT,
            "label": self.label,
            "config": dataclasses.asdict(self.config),
            "training": dict(facts),
        }
        with storage.replacing_folder(folder) as partial:
            weights = {name: tensor for name, tensor in self.state_dict().items() if name not in ("mean", "std")}
            storage.write_tensors(partial / pretrained.SAFETENSORS, weights, {"format": "pt"})
            np.save(partial / pretrained.MEAN, self.mean.cpu().numpy())
            np.save(partial / pretrained.STD, self.std.cpu().numpy())
            (partial / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def identity(model: MotionTextEvaluator) -> str:
    """A SHA-256 over the evaluator's sizes and weights: two that differ measure different things."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hashed_words(text: str, buckets: int) -> list[int]:
    """A row from 1 on for each word of letters or digits, whatever its case; two words may share one."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [1 + zlib.crc32(word.encode()) % max(buckets - 1, 1) for word in words]


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of ``evaluator.json``.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no evaluator ({CONFIG}): train one with fastvq train-evaluator")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written_as = values["format"]
        if written_as == FORMAT and not {"label", "config", "training"} <= set(values):
            raise ValueError("entries are missing")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): train the evaluator again") from error
    if written_as != FORMAT:
        raise UserError(f"{path} has the format {written_as!r}, and this version of fastvq reads {FORMAT!r}")
    return values


def load_evaluator(folder: Path) -> MotionTextEvaluator:
    """An evaluator that :meth:`MotionTextEvaluator.save` wrote, in evaluation mode.

    Raises:
        UserError: files are missing or damaged, or do not fit each other.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    try:
        config = EvaluatorConfig(**facts["config"])
    except TypeError as error:
        raise UserError(f"{folder / CONFIG} is of another version of fastvq ({error}): train it again") from error
    mean, std = pretrained.read_statistics(folder, config.input_dim)
    model = MotionTextEvaluator(config, mean=mean, std=std, label=str(facts["label"]))
    state, source = pretrained.read_weights(folder)
    own = model.state_dict()
    state.update({name: own[name] for name in ("mean", "std")})
    pretrained.check_state(state, own, source)
    model.load_state_dict(state)
    return model.eval()
