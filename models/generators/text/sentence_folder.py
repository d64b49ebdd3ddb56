"""Any text encoder in a local folder of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.text.encoder import (
    OneText,
    TextEncoder,
    check_length,
    files_sha256,
    first_line,
    unit,
    weights_folder,
)


class SentenceFolderEncoder(TextEncoder):
    """A model of sentence-transformers; its one token is the whole text, since what its parts are called varies.

    Args:
        path: a folder with ``modules.json``, as ``SentenceTransformer.save`` writes it.

    Raises:
        UserError: sentence-transformers is not installed, or the folder holds no such model.
    """

    def __init__(self, path: Path) -> None:
        folder = weights_folder(Path(path), "a model of sentence-transformers", "modules.json")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "a folder of sentence-transformers needs that package: pip install sentence-transformers"
            ) from error
        try:
            self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except Exception as error:  # what libraries raise of damaged files is nearly anything
            raise UserError(f"{folder} holds no sentence-transformers model ({first_line(error)})") from error
        self._longest = self._model.get_max_seq_length()
        self.identity = f"sentence/1 sha256={files_sha256([file for file in folder.rglob('*') if file.is_file()])}"
        self.dim = len(self._embed("a"))

    def encode_one(self, text: str) -> OneText:
        """See the base class."""
        if self._longest is not None:
            count = len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            check_length(text, count, self._longest, "tokens")
        pooled = self._embed(text)
        return unit(pooled[None], pooled)

    def _embed(self, text: str) -> torch.Tensor:
        return self._model.encode([text], convert_to_tensor=True, show_progress_bar=False)[0]
