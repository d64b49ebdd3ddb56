import pytest
import torch

from fastvq.models.nn.conv3d import Conv3d, Downsample3d, Upsample3d


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    ("kernel", "padding", "frames"), [(3, 1, 2), (3, 1, 1), (4, 2, 1), (4, 1, 2), (4, 2, 3), (3, 1, 4)]
)
def test_weight_gradients_in_16_bits_are_right_for_few_frames(kernel, padding, frames, autocast):
    torch.manual_seed(0)
    conv = Conv3d(16, 16, kernel, padding=padding)
    x = torch.randn(2, 16, frames, 4, 4).bfloat16().float()
    wide = torch.nn.Conv3d(16, 16, kernel, padding=padding).double()
    wide.load_state_dict({name: tensor.bfloat16() for name, tensor in conv.state_dict().items()})
    expected = wide(x.double())
    upstream = torch.randn_like(expected).bfloat16()
    (wanted,) = torch.autograd.grad(expected, wide.weight, upstream.double())
    if not autocast:
        conv.bfloat16()
    torch.full((16 * 16 * kernel**3,), float("nan"))  # what memory that is not written holds
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = conv(x if autocast else x.bfloat16())
    (gradient,) = torch.autograd.grad(found, conv.weight, upstream.to(found.dtype))
    # Sums of products of 8 bits, kept in at least 8: half a unit in the last place of the largest, doubled.
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=2**-7 * float(wanted.abs().max()))


def test_halving_pads_behind_and_doubling_repeats():
    torch.manual_seed(0)
    down, up = Downsample3d(2).double(), Upsample3d(2).double()
    x = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64)
    padded = torch.zeros(1, 2, 5, 7, 9, dtype=torch.float64)
    padded[..., :4, :6, :8] = x
    expected = torch.nn.functional.conv3d(padded, down.conv.weight, down.conv.bias, stride=2)
    torch.testing.assert_close(down(x), expected, rtol=0, atol=1e-14)
    assert down(x).shape == (1, 2, 2, 3, 4)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(up(x), up.conv(repeated), rtol=0, atol=1e-14)
