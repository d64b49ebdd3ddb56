"""What the sizes of all tokenizers have in common, and those of the multi-group motion VQ-VAE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import FeatureFormat, format_of
from fastvq.models.nn.autoencoder import Activation
from fastvq.models.tokenizers.saved_config import SavedConfig

# Sizes and counts fit what torch indexes and counts with.
MOST = 2**31 - 1


@dataclass(frozen=True)
class TokenizerConfig(SavedConfig, ABC):
    """Sizes of the convolutional auto-encoder and of its codebooks; subclasses add their quantizer's.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    input_dim: int = 263
    """Features of a frame."""
    width: int = 512
    """Channels of the convolutions."""
    output_dim: int = 512
    """Channels of a latent."""
    codebook_size: int = 512
    """Codes in each codebook."""
    down_stages: int = 2
    """Halvings of the frame rate."""
    depth: int = 3
    """Residual blocks per stage."""
    dilation_growth: int = 3
    """Ratio of the dilations of neighbouring residual blocks."""
    activation: Activation = "relu"
    """Non-linearity."""
    decay: float = 0.99
    """Decay of the codebooks' moving averages."""
    dead_below: float = 0.3
    """A code used less than this share of the mean is replaced."""
    commitment_weight: float = 0.02
    """Weight of the commitment loss."""

    stream: ClassVar[Literal["group", "stage"]]
    """What the tokens of one latent differ in."""

    def __post_init__(self) -> None:
        for name in ("input_dim", "width", "output_dim", "codebook_size", "depth", "dilation_growth"):
            check_integer(name, getattr(self, name), 1)
        check_integer("down_stages", self.down_stages, 0, 16)
        check_integer("depth", self.depth, 1, 64)
        if self.dilation_growth ** (self.depth - 1) > MOST:
            raise UserError(
                f"the widest dilation, dilation_growth ** (depth - 1), must be at most {MOST}, got "
                f"dilation_growth={self.dilation_growth} and depth={self.depth}"
            )
        if self.activation not in get_args(Activation):
            raise UserError(f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}")
        check_number("decay", self.decay, 0, 1, below=True)
        check_number("dead_below", self.dead_below, 0, 1, below=True)
        check_number("commitment_weight", self.commitment_weight, 0)

    @property
    @abstractmethod
    def fps(self) -> float:
        """Frame rate of the motion."""

    @property
    @abstractmethod
    def token_shape(self) -> tuple[int, int]:
        """Groups and stages; a latent has one token for each stage of each group."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """The model in a few words."""

    @property
    def pooled(self) -> bool:
        """Whether all streams of tokens use one codebook."""
        return False

    @property
    def streams(self) -> int:
        """Tokens of a latent."""
        return math.prod(self.token_shape)

    @property
    def parsed(self) -> int:
        """How many streams, the first ones, hold codes that are read off the motion and not learned."""
        return 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each stream; a token lies in 0 to one below its stream's."""
        return (self.codebook_size,) * self.streams

    @property
    def downsample(self) -> int:
        """Frames of one token."""
        return 2**self.down_stages

    @property
    def features(self) -> FeatureFormat:
        """What the features of a frame mean.

        Raises:
            UserError: no format has so many.
        """
        return format_of(self.input_dim)


@dataclass(frozen=True)
class MotionVQVAEConfig(TokenizerConfig):
    """Sizes of a :class:`~fastvq.models.tokenizers.motion_vqvae.MotionVQVAE`; the defaults are the published
    73 M parameter model's. Each group quantizes its own slice of the latent.

    Raises:
        UserError: a value that no model can have, naming it.
    """

    input_dim: int = 272
    """Features of a frame."""
    width: int = 1024
    """Channels of the convolutions."""
    groups: int = 64
    """Codebooks; they split the latent evenly."""
    fps: float = 30.0
    """Frame rate of the motion."""

    kind = "motion-vqvae"
    stream = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("groups", self.groups, 1)
        if self.output_dim % self.groups:
            raise UserError(
                f"output_dim must be a multiple of groups, got output_dim={self.output_dim} and "
                f"groups={self.groups}: choose groups that divide {self.output_dim}"
            )
        check_number("fps", self.fps, 0.1, 1000)

    @property
    def code_dim(self) -> int:
        """Channels of one code."""
        return self.output_dim // self.groups

    @property
    def token_shape(self) -> tuple[int, int]:
        return self.groups, 1

    @property
    def summary(self) -> str:
        return f"MG-VQVAE of width {self.width} with {self.groups} groups of {self.codebook_size} codes"


def check_integer(name: str, value: object, low: int, high: int = MOST) -> None:
    """Raises a UserError unless ``value`` is an integer from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"{name} must be an integer of at least {low}, got {value!r}")
    if value > high:
        raise UserError(f"{name} must be an integer of at most {high}, got a larger one")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> None:
    """Raises a UserError unless ``value`` is a finite number within the bounds (excluded by above, below)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        inside = (low < value if above else low <= value) and (value < high if below else value <= high)
        if inside:
            return
    bounds = f"{'above' if above else 'at least'} {low:g}"
    if high != math.inf:
        bounds += f" and {'below' if below else 'at most'} {high:g}"
    raise UserError(f"{name} must be a number {bounds}, got {value!r}")
