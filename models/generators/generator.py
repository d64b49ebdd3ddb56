"""What all generators share: texts in, a tokenizer's codes out; saved and loaded as a folder."""

from __future__ import annotations

import copy
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import TextEncoder, TextFeatures, open_text_encoder
from fastvq.models.generators.text.hashed import HashNgramEncoder
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.saved_config import SavedConfig
from fastvq.models.tokenizers.token_file import model_sha256
from fastvq.models.tokenizers.tokenizer import MotionTokenizer

GenerationPrecision = Literal["exact", "fast"]


@dataclass(frozen=True)
class GeneratorConfig(SavedConfig, ABC):
    """What a generator knows of the texts that it reads and of the tokenizer that it drives; subclasses add sizes.

    Raises:
        UserError: a value that no generator can have, naming it.
    """

    text_encoder: str = "hash"
    """Of the texts: hash (no weights), clip:FOLDER, open-clip:ARCHITECTURE:FILE or sentence:FOLDER."""
    longest: int = 50
    """Most tokens in time of a motion."""
    text_identity: str = HashNgramEncoder().identity
    """The encoder and its weights."""
    text_dim: int = 512
    """Length of its vectors."""
    tokenizer_sha256: str = ""
    """The tokenizer, its weights included."""
    sizes: tuple[int, ...] = (512,) * 6
    """Codes of each stream of the tokenizer."""
    downsample: int = 4
    """Frames of one of its tokens."""
    fps: float = 20.0
    """Frame rate of its motions."""

    FITTED: ClassVar[tuple[str, ...]] = (
        *("text_identity", "text_dim", "tokenizer_sha256"),
        *("sizes", "downsample", "fps"),
    )
    """Fields that encoder and tokenizer decide."""

    def __post_init__(self) -> None:
        for name in ("text_encoder", "text_identity", "tokenizer_sha256"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} must be text, got {getattr(self, name)!r}")
        if not isinstance(self.sizes, (tuple, list)) or not self.sizes:
            raise UserError(f"sizes must hold the number of codes of each stream, got {self.sizes!r}")
        object.__setattr__(self, "sizes", tuple(self.sizes))
        for name in ("longest", "text_dim", "downsample"):
            check_integer(name, getattr(self, name), 1)
        for size in self.sizes:
            check_integer("sizes", size, 1)
        check_number("fps", self.fps, 0.1, 1000)

    def fitted(self, tokenizer: MotionTokenizer, encoder: TextEncoder) -> Self:
        """The same sizes for a tokenizer and a text encoder.

        Raises:
            UserError: a generator of this kind cannot drive such a tokenizer.
        """
        self.check_fits(tokenizer)
        return dataclasses.replace(
            self,
            text_identity=encoder.identity,
            text_dim=encoder.dim,
            tokenizer_sha256=model_sha256(tokenizer),
            sizes=tokenizer.config.sizes,
            downsample=tokenizer.config.downsample,
            fps=tokenizer.config.fps,
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether the generator looks at a text's tokens, and not only at the one vector for all of it."""
        return True

    @abstractmethod
    def check_fits(self, tokenizer: MotionTokenizer) -> None:
        """Raises a UserError unless a generator of this kind can drive tokenizers of that one."""


class TokenBatch(NamedTuple):
    """Motions as tokens, with their texts.

    Attributes:
        tokens: (B, T, S) int64, T the longest of the batch; -1 beyond the end of a motion.
        lengths: (B,) int64, tokens in time of each motion.
        ends: (B,), True where the motion ends there, False where it was cut.
        text: of each motion, as the generator's encoder gives it.
    """

    tokens: Tensor
    lengths: Tensor
    ends: Tensor
    text: TextFeatures

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device."""
        tokens, lengths, ends = (one.to(device, non_blocking=True) for one in self[:3])
        text = TextFeatures(*(one.to(device, non_blocking=True) for one in self.text))
        return TokenBatch(tokens, lengths, ends, text)


class GeneratorLosses(NamedTuple):
    """What a training step yields.

    Attributes:
        total: scalar to minimise, with gradient.
        terms: numbers for ``metrics.jsonl`` by name, scalars or vectors, without gradient.
        number: of what the total is the mean, by which parts of a batch weigh; the same for all where left out.
    """

    total: Tensor
    terms: dict[str, Tensor]
    number: Tensor | float = 1.0


class MotionGenerator(nn.Module, ABC):
    """Writes the tokens of a motion that a text asks for.

    Args:
        config: sizes; those of the published model if absent.
    """

    config_class: ClassVar[type[GeneratorConfig]]
    usual_sampling: ClassVar[Sampling] = Sampling()
    """How codes are drawn where nobody says it."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = self.config_class() if config is None else config
        self._encoder: TextEncoder | None = None

    @abstractmethod
    def losses(self, batch: TokenBatch) -> GeneratorLosses:
        """The losses of a training step, its random corruptions drawn from torch's generator."""

    @abstractmethod
    def sample(
        self,
        text: TextFeatures,
        lengths: Sequence[int] | None,
        sampling: Sampling,
        seed: int,
        places: Sequence[int],
        *,
        cached: bool,
    ) -> list[Tensor]:
        """Tokens (S, T_i) of a batch of texts, in evaluation mode.

        Args:
            text: of B texts, in the model's precision and on its device.
            lengths: tokens in time of each; None lets the model end.
            sampling: how codes are drawn.
            seed, places: what :func:`fastvq.models.generators.sampling.uniforms` takes.
            cached: keep keys and values; without, all positions are computed again for each token, to compare with.
        """

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder of the texts, opened when first asked for.

        Raises:
            UserError: it is not there, or not the one that the generator was trained with.
        """
        if self._encoder is None:
            self.use_text_encoder(open_text_encoder(self.config.text_encoder))
        assert self._encoder is not None
        return self._encoder

    def use_text_encoder(self, encoder: TextEncoder) -> None:
        """Reads texts with an encoder that is open already.

        Raises:
            UserError: it is not the one that the generator was trained with.
        """
        if encoder.identity != self.config.text_identity:
            raise UserError(
                f"the generator was trained with the text encoder {self.config.text_identity[:40]!r}, and this one "
                f"is {encoder.identity[:40]!r}: give the encoder that it was trained with"
            )
        self._encoder = encoder

    def check_tokenizer(self, tokenizer: MotionTokenizer) -> None:
        """Raises a UserError unless the generator was trained on this tokenizer's codes, and its settings say so."""
        found, wanted = model_sha256(tokenizer), self.config.tokenizer_sha256
        if found != wanted:
            raise UserError(
                f"the generator was trained with the tokenizer of sha256 {wanted[:12] or 'unknown'}, and this one "
                f"has {found[:12]}: its codes mean other motions; use the tokenizer in the generator's run folder"
            )
        for name in ("sizes", "downsample", "fps"):
            said, known = getattr(self.config, name), getattr(tokenizer.config, name)
            if said != known:
                raise UserError(
                    f"the generator's settings say {name}={said}, and its tokenizer has {known}: "
                    f"{pretrained.CONFIG} was changed; restore it"
                )

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_place: int = 0,
        batch_size: int = 32,
        precision: GenerationPrecision = "exact",
        cached: bool = True,
    ) -> list[Tensor]:
        """Tokens of motions that do what the texts say.

        Args:
            texts: one for each motion.
            lengths: tokens in time of each motion, at most ``config.longest``; None lets the model end.
            sampling: how codes are drawn; ``usual_sampling`` if absent.
            seed: of the draw. A motion depends on its text, its length, the seed and its place, and on nothing else.
            first_place: place of the first text; the others follow.
            batch_size: how many are generated at once.
            precision: "exact" computes in float64, so that neither the batch nor the cache moves a code; "fast" in
                the weights' own precision, where about one code in 10^5 may depend on them.
            cached: see :meth:`sample`.

        Returns:
            (S, T_i) int64 each, as the tokenizer's ``decode`` takes them.

        Raises:
            UserError: a text that is empty or too long, lengths that do not fit, another text encoder.
        """
        if precision not in get_args(GenerationPrecision):
            raise UserError(f"precision must be exact or fast, got {precision!r}")
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0, 2**63 - 1)
        sampling = self.usual_sampling if sampling is None else sampling
        self._check_lengths(lengths, len(texts))
        features = self.text_encoder.encode(texts)
        model, was_training = (self._exact_twin() if precision == "exact" else self), self.training
        model.eval()
        found = []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            places = [first_place + place for place in range(len(texts))[part]]
            wanted = None if lengths is None else lengths[part]
            text = model.on_model(TextFeatures(*(one[part] for one in features)))
            found += model.sample(text, wanted, sampling, seed, places, cached=cached)
        self.train(was_training)
        return found

    def on_model(self, text: TextFeatures) -> TextFeatures:
        """Features on the model's device, in its precision."""
        weight = next(self.parameters())
        return TextFeatures(text.tokens.to(weight), text.mask.to(weight.device), text.pooled.to(weight))

    def _exact_twin(self) -> Self:
        """The same model in float64, with the same text encoder."""
        return copy.deepcopy(self, {id(self._encoder): self._encoder}).to(torch.float64)

    def _check_lengths(self, lengths: Sequence[int] | None, count: int) -> None:
        if lengths is None:
            return
        if len(lengths) != count:
            raise UserError(f"lengths must hold {count} numbers, one for each text, got {len(lengths)}")
        for index, length in enumerate(lengths):
            check_integer(f"lengths[{index}]", length, 1, self.config.longest)

    def load_weights(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Loads weights by name.

        Raises:
            UserError: names or shapes that do not fit, or values that are not finite.
        """
        pretrained.check_state(state, self.state_dict(), source)
        self.load_state_dict(state)

    def save_pretrained(self, save_directory: str | Path, *, extra_config: Mapping[str, Any] | None = None) -> None:
        """Writes ``config.json`` and ``model.safetensors``, each whole or not at all; other files stay.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot save a model to {folder}: it is a file; give a folder")
        with storage.replacing_files(folder) as staged:
            storage.write_tensors(staged / pretrained.SAFETENSORS, self.state_dict(), {"format": "pt"})
            values = {**self.config.to_dict(), **(extra_config or {})}
            (staged / pretrained.CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Loads what :meth:`save_pretrained` or a training wrote, and sets the model to evaluation.

        Raises:
            UserError: a file or tensor that is missing, damaged, or does not fit, naming it.
        """
        folder = Path(folder)
        config = cls.config_class.from_dict(pretrained.read_config(folder), str(folder / pretrained.CONFIG))
        state, source = pretrained.read_weights(folder)
        model = cls(config)
        model.load_weights(state, source)
        return model.eval()
