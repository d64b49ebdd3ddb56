"""Encoders of texts behind one interface; none of them downloads anything."""

from fastvq.models.generators.text.encoder import TextEncoder, TextFeatures
from fastvq.models.generators.text.open import open_text_encoder

__all__ = ["TextEncoder", "TextFeatures", "open_text_encoder"]
