"""CLIP's text tower from a local folder in the layout of transformers."""

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


class ClipFolderEncoder(TextEncoder):
    """CLIP (Radford et al. 2021); a token is projected as the whole text is, so that both have one length.

    Args:
        path: a folder with ``config.json``, weights and a tokenizer, as transformers' ``save_pretrained`` writes it.

    Raises:
        UserError: transformers is not installed, or the folder holds no CLIP.
    """

    def __init__(self, path: Path) -> None:
        folder = weights_folder(Path(path), "a CLIP model in the layout of transformers")
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
        except ImportError as error:
            raise UserError("a CLIP folder needs transformers: pip install transformers") from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model: Any = CLIPTextModelWithProjection.from_pretrained(str(folder), local_files_only=True).eval()
        except Exception as error:  # what libraries raise of damaged files is nearly anything
            raise UserError(f"{folder} holds no CLIP that transformers reads ({first_line(error)})") from error
        self.dim = int(self._model.config.projection_dim)
        self._longest = int(self._model.config.max_position_embeddings)
        files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json", ".txt")]
        self.identity = f"clip/1 sha256={files_sha256(files)}"

    @torch.no_grad()
    def encode_one(self, text: str) -> OneText:
        """See the base class."""
        inputs = self._tokenizer(text, return_tensors="pt", truncation=False, verbose=False)
        check_length(text, inputs["input_ids"].shape[1], self._longest, "tokens")
        found = self._model(input_ids=inputs["input_ids"])
        tokens = self._model.text_projection(found.last_hidden_state[0])
        return unit(tokens, found.text_embeds[0])
