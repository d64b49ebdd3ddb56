"""The 3-D PatchGAN discriminator: real or not, patch by patch (Isola et al. 2017, section 3.2.2)."""

from __future__ import annotations

from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.nn.batch_norm import RankedBatchNorm3d
from fastvq.models.nn.conv3d import Conv3d


class PatchDiscriminator3d(nn.Module):
    """Convolutions of kernel 4 over time, height and width: one, ``layers`` more with batch normalisation, one that
    scores. All have stride 2 but the last two.

    Args:
        in_channels: of the volumes.
        width: channels after the first convolution; doubled at each of the next three.
        layers: convolutions with batch normalisation, at least one.
    """

    def __init__(self, in_channels: int, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        body: list[nn.Module] = [Conv3d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            body.append(Conv3d(before, after, 4, stride=stride, padding=1, bias=False))
            body += [RankedBatchNorm3d(after), nn.LeakyReLU(0.2)]
            before = after
        body.append(Conv3d(before, 1, 4, padding=2))
        self.body = nn.Sequential(*body)
        self.least = 2 ** (layers + 1)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) -> scores (B, 1, T', H', W'), larger for what looks real.

        Raises:
            UserError: an axis so short that no patch is left.
        """
        if min(x.shape[2:]) < self.least:
            raise UserError(
                f"the discriminator needs at least {self.least} frames, rows and columns, got {tuple(x.shape[2:])}: "
                "give larger heatmaps, or a discriminator of fewer layers"
            )
        return self.body(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
