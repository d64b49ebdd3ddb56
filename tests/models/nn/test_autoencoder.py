import pytest
import torch

from fastvq.models.nn.autoencoder import Decoder, Encoder
from fastvq.models.nn.conv import Conv1d, set_implementation


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(("dim", "width", "millions"), [(272, 1024, 73.007), (263, 512, 19.44)])
def test_number_of_parameters_is_the_literature_s(dim, width, millions):
    with torch.device("meta"):
        count = parameters(Encoder(dim, 512, width=width), Decoder(512, dim, width=width))
    assert abs(count / 1e6 - millions) < 0.006


@pytest.mark.parametrize(("stages", "frames"), [(0, 5), (1, 6), (2, 4), (3, 64)])
def test_shapes(stages, frames):
    encoder = Encoder(6, 10, width=8, down_stages=stages, depth=2)
    decoder = Decoder(10, 6, width=8, up_stages=stages, depth=2)
    latents = encoder(torch.randn(2, frames, 6))
    assert latents.shape == (2, frames // 2**stages, 10)
    assert decoder(latents).shape == (2, frames, 6)


def test_wide_dilations_come_first():
    for stage in (*Encoder(6, 10, width=8).stacks, *Decoder(10, 6, width=8).stacks):
        assert [block.conv_in.dilation for block in stage.blocks] == [9, 3, 1]


@pytest.mark.parametrize("implementation", ["conv1d", "taps"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_a_padded_sequence_is_treated_as_alone(activation, implementation):
    torch.manual_seed(0)
    encoder = Encoder(6, 10, width=8, activation=activation).double()
    decoder = Decoder(10, 6, width=8, activation=activation).double()
    for module in (encoder, decoder):
        set_implementation(module, implementation)
        for child in module.modules():
            if isinstance(child, Conv1d):  # a strong bias is what leaks where a mask is missing
                torch.nn.init.normal_(child.bias)
    lengths = [4, 8, 20, 32]
    # Padding holds NaN: it must not be looked at.
    batch = torch.full((4, 32, 6), float("nan"), dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :length] = torch.randn(length, 6, dtype=torch.float64)
    mask = torch.arange(32) < torch.tensor(lengths)[:, None]
    latents = encoder(batch, mask)
    frames = decoder(latents, mask[:, ::4])
    for row, length in enumerate(lengths):
        alone = encoder(batch[row : row + 1, :length])
        torch.testing.assert_close(latents[row, : length // 4], alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(frames[row, :length], decoder(alone)[0], rtol=1e-12, atol=1e-12)
        assert not latents[row, length // 4 :].any()
        assert not frames[row, length:].any()


def test_gradients_reach_every_parameter():
    encoder, decoder = Encoder(6, 10, width=8), Decoder(10, 6, width=8)
    decoder(encoder(torch.randn(2, 64, 6))).square().mean().backward()
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
