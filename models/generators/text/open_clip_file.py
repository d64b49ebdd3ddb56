"""OpenCLIP's text tower from a local file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastvq.models.errors import UserError
from fastvq.models.generators.text.encoder import OneText, TextEncoder, check_length, files_sha256, first_line, unit


class OpenClipEncoder(TextEncoder):
    """A model of open_clip; its one token is the whole text, since its towers give out different ones.

    Args:
        architecture: a name of ``open_clip.list_models()``, such as ViT-B-32.
        path: the file of weights.

    Raises:
        UserError: open_clip is not installed, there is no such architecture or file, or they do not fit.
    """

    def __init__(self, architecture: str, path: Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no file {path}: give the weights of {architecture}; nothing is downloaded")
        try:
            import open_clip
        except ImportError as error:
            raise UserError("an open_clip file needs open_clip: pip install open_clip_torch") from error
        if architecture not in open_clip.list_models():
            raise UserError(f"open_clip knows no architecture {architecture!r}: take one of open_clip.list_models()")
        try:
            self._model: Any = open_clip.create_model(architecture, pretrained=str(path)).eval()
            self._tokenize: Any = open_clip.get_tokenizer(architecture)
        except Exception as error:  # what libraries raise of damaged files is nearly anything
            raise UserError(f"{path} holds no weights of {architecture} ({first_line(error)})") from error
        self._longest = int(self._tokenize.context_length)
        self.identity = f"open-clip/1 {architecture} sha256={files_sha256([path])}"
        self.dim = int(self._embed("a").shape[-1])

    def encode_one(self, text: str) -> OneText:
        """See the base class."""
        # The tokenizer cuts what is too long, so it is asked for one token more.
        count = int((self._tokenize([text], context_length=self._longest + 1) != 0).sum())
        check_length(text, count, self._longest, "tokens")
        pooled = self._embed(text)
        return unit(pooled[None], pooled)

    @torch.no_grad()
    def _embed(self, text: str) -> torch.Tensor:
        return self._model.encode_text(self._tokenize([text]))[0]
