"""Text encodings kept on disk, so that a corpus goes through a slow encoder once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastvq.models import storage
from fastvq.models.files import replacing
from fastvq.models.generators.text.encoder import OneText, TextEncoder


class CachedTextEncoder(TextEncoder):
    """Another encoder whose results are kept in files, one a text, named by a hash of the text and the encoder.

    Files are written whole or not at all, so that several processes may share a folder; one that is damaged is
    written anew.

    Args:
        encoder: the one that is asked once a text.
        folder: made if need be.
    """

    def __init__(self, encoder: TextEncoder, folder: Path) -> None:
        self.encoder, self.folder = encoder, Path(folder)
        self.dim, self.identity = encoder.dim, encoder.identity

    def path(self, text: str) -> Path:
        """The file of a text."""
        name = hashlib.sha256(f"{self.identity}\0{text}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _fits(self, found: OneText) -> bool:
        """Whether that can be an encoding; files have no checksum."""
        tokens, pooled = found
        shapes = tokens.ndim == 2 and len(tokens) > 0 and tokens.shape[1:] == pooled.shape == (self.dim,)
        return shapes and all(one.dtype == torch.float32 and bool(one.isfinite().all()) for one in found)

    def encode_one(self, text: str) -> OneText:
        """See the base class.

        Raises:
            UserError: as the encoder, or the file cannot be written.
        """
        path = self.path(text)
        if path.is_file():
            try:
                held = load_file(str(path))
                found = OneText(held["tokens"], held["pooled"])
                if self._fits(found):
                    return found
            except (SafetensorError, OSError, KeyError):
                pass
        found = self.encoder.encode_one(text)
        with replacing(path) as partial:
            storage.write_tensors(partial, {"tokens": found.tokens, "pooled": found.pooled.clone()})
        return found
