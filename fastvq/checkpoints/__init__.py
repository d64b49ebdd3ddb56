"""Quantizers out of the published checkpoints, and back: EnCodec, Mimi, DAC, SNAC, MoMask, T2M-GPT and others."""

from .api import LAYOUTS, detect, load, save

__all__ = ["LAYOUTS", "detect", "load", "save"]
