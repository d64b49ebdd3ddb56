"""The registry of generators, and loading one with the tokenizer that it drives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer
from fastvq.models.generators.double_tier_gpt import DoubleTierGPT
from fastvq.models.generators.generator import MotionGenerator
from fastvq.models.generators.refine_transformer import RefineTransformer
from fastvq.models.kinds import load_tokenizer
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.generator import TOKENIZER, GeneratorTrainConfig
from fastvq.models.training.pgr2m_generators import BaseTrainConfig, RefineTrainConfig


@dataclass(frozen=True)
class GeneratorKind:
    """A kind of generator.

    Attributes:
        generator: the model, which names its settings (``config_class``).
        training: the settings of its training; their defaults are its recipe.
        description: a few words for the command line.
    """

    generator: type[MotionGenerator]
    training: type[GeneratorTrainConfig]
    description: str


GENERATORS: dict[str, GeneratorKind] = {
    kind.generator.config_class.kind: kind
    for kind in (
        GeneratorKind(DoubleTierGPT, GeneratorTrainConfig, "the text-to-motion GPT of T2M-HiFiGPT, on an rvqvae"),
        GeneratorKind(
            BaseTransformer, BaseTrainConfig, "PGR2M's Base Transformer, which writes a pgr2m's pose codes"
        ),
        GeneratorKind(
            RefineTransformer, RefineTrainConfig, "PGR2M's Refine Transformer, which adds the residual codes"
        ),
    )
}


def load_generator(folder: str | Path) -> MotionGenerator:
    """A trained generator of any kind, in evaluation mode.

    Args:
        folder: a run folder, a checkpoint in one, or a folder of ``save_pretrained``.

    Raises:
        UserError: files are missing or damaged, or the folder holds no generator.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the run folder of a generator")
    kind = pretrained.read_config(folder).get("kind")
    if not isinstance(kind, str) or kind not in GENERATORS:
        raise UserError(
            f"{folder / pretrained.CONFIG} is of the kind {kind!r}, which is no generator (these are "
            f"{', '.join(GENERATORS)}): give the run folder of fastvq train {next(iter(GENERATORS))}"
        )
    return GENERATORS[kind].generator.from_pretrained(folder)


def load_with_tokenizer(
    folder: str | Path, tokenizer: str | Path | None = None
) -> tuple[MotionGenerator, MotionTokenizer]:
    """A generator and the tokenizer whose codes it writes.

    Args:
        folder: as for :func:`load_generator`.
        tokenizer: the tokenizer's folder; if absent, the one in the run folder.

    Raises:
        UserError: as :func:`load_generator`; there is no tokenizer, or another one.
    """
    generator = load_generator(folder)
    if tokenizer is None:
        folder = Path(folder).resolve()
        places = [folder / TOKENIZER, folder.parent.parent / TOKENIZER]  # the second for checkpoints/step_...
        found = [place for place in places if (place / pretrained.CONFIG).is_file()]
        if not found:
            raise UserError(f"{folder} holds no tokenizer: give the folder of the one that it was trained with")
        tokenizer = found[0]
    model = load_tokenizer(tokenizer)
    generator.check_tokenizer(model)
    return generator, model
