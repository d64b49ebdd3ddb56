"""From the name of a text encoder on the command line and in ``config.json`` to the encoder."""

from __future__ import annotations

from pathlib import Path

from fastvq.cache import cache_directory
from fastvq.models.errors import UserError
from fastvq.models.generators.text.cached import CachedTextEncoder
from fastvq.models.generators.text.clip_folder import ClipFolderEncoder
from fastvq.models.generators.text.encoder import TextEncoder
from fastvq.models.generators.text.hashed import HashNgramEncoder
from fastvq.models.generators.text.open_clip_file import OpenClipEncoder
from fastvq.models.generators.text.sentence_folder import SentenceFolderEncoder

FORMS = "hash, clip:FOLDER, open-clip:ARCHITECTURE:FILE or sentence:FOLDER"


def open_text_encoder(name: str, *, cache: Path | None = None) -> TextEncoder:
    """The encoder of that name; nothing is ever downloaded.

    Args:
        name: "hash" (no weights), "clip:FOLDER" (transformers' layout), "open-clip:ARCHITECTURE:FILE", or
            "sentence:FOLDER" (sentence-transformers).
        cache: where the results of encoders with weights are kept; ``texts`` in fastvq's cache directory if absent.

    Raises:
        UserError: another name, files that are missing or do not fit, or a package that is not installed.
    """
    kind, _, rest = name.partition(":")
    if name == "hash":
        return HashNgramEncoder()
    if kind == "open-clip" and rest.count(":"):
        architecture, _, file = rest.partition(":")
        return _kept(OpenClipEncoder(architecture, Path(file)), cache)
    if kind == "clip" and rest:
        return _kept(ClipFolderEncoder(Path(rest)), cache)
    if kind == "sentence" and rest:
        return _kept(SentenceFolderEncoder(Path(rest)), cache)
    raise UserError(f"there is no text encoder {name!r}: give {FORMS}")


def absolute(name: str) -> str:
    """The same name with an absolute path, so that it means the same wherever it is read."""
    *head, path = name.split(":")
    return ":".join([*head, str(Path(path).expanduser().resolve())]) if head else name


def _kept(encoder: TextEncoder, cache: Path | None) -> TextEncoder:
    return CachedTextEncoder(encoder, cache_directory() / "texts" if cache is None else cache)
