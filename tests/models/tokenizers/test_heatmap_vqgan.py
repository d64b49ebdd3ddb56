import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq import ops
from fastvq.benchmarks.resident import peak_growth
from fastvq.models.errors import UserError
from fastvq.models.nn.conv3d import NonLocalBlock3d, ResidualBlock3d
from fastvq.models.nn.volume_autoencoder import VolumeDecoder, VolumeEncoder
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig

TINY = {
    "frames": 8,
    "size": 16,
    "channels": (8, 8, 16),
    "down_stages": 2,
    "latent_channels": 16,
    "code_dim": 12,
    "codebook_size": 32,
    "norm_groups": 4,
    "attention_size": 8,
}


def tiny(**changes):
    torch.manual_seed(0)
    return HeatmapVQGAN(HeatmapVQGANConfig(**{**TINY, **changes}))


def spread_codes(model, heatmaps):
    """Places codes among a batch's latents, so that many are used."""
    with torch.no_grad():
        rows = model.latents(heatmaps).movedim(1, -1).flatten(0, -2)
        model.quantizer.codebook[0] = rows[torch.linspace(0, len(rows) - 1, model.config.codebook_size).long()]


def volumes(batch=2, frames=8, size=16):
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("stages", "tokens"), [(3, (8, 16, 16)), (4, (4, 8, 8)), (5, (2, 4, 4))])
def test_the_published_models_have_2048_256_and_32_tokens(stages, tokens):
    config = HeatmapVQGANConfig(down_stages=stages)
    assert config.token_shape == tokens
    assert int(np.prod(tokens)) == {3: 2048, 4: 256, 5: 32}[stages]
    with torch.device("meta"):
        model = HeatmapVQGAN(config)
        result = model(torch.empty(1, 3, 64, 128, 128))
        assert model.encode(torch.empty(1, 3, 64, 128, 128)).shape == (1, *tokens)
    assert result.indices.shape == (1, *tokens)
    assert result.heatmaps.shape == (1, 3, 64, 128, 128)


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_the_published_channel_plan(stages):
    with torch.device("meta"):
        model = HeatmapVQGAN(HeatmapVQGANConfig(down_stages=stages))
    assert model.encoder.conv_in.weight.shape == (64, 3, 3, 3, 3)
    assert model.encoder.conv_out.weight.shape == (256, 256, 3, 3, 3)
    assert model.to_codes.weight.shape == model.from_codes.weight.shape == (256, 256, 1, 1, 1)
    assert model.quantizer.codebook.shape == (1, 1024, 256)
    assert model.decoder.conv_in.weight.shape == (256, 256, 3, 3, 3)
    assert model.last_weight.shape == (3, 64, 3, 3, 3)

    def plan(blocks):
        """Letters: r residual, with its channels; a attention; d down; u up."""
        words = []
        for block in blocks:
            if isinstance(block, ResidualBlock3d):
                words.append("r{}-{}".format(*block.conv_in.weight.shape[1::-1]))
            else:
                words.append({"NonLocalBlock3d": "a", "Downsample3d": "d", "Upsample3d": "u"}[type(block).__name__])
        return " ".join(words)

    encoders = {
        3: "r64-64 r64-64 d r64-64 r64-64 d r64-128 r128-128 d r128-128 a r128-128 a r128-256 a r256-256 a",
        4: "r64-64 r64-64 d r64-64 r64-64 d r64-128 r128-128 d r128-128 a r128-128 a d r128-256 r256-256",
        5: "r64-64 r64-64 d r64-64 r64-64 d r64-128 r128-128 d r128-128 a r128-128 a d r128-256 r256-256 d",
    }
    first, second = "r256-256 a r256-256 a r256-256 a", "r256-128 a r128-128 a r128-128 a"
    rest = ["r128-128 r128-128 r128-128", "r128-64 r64-64 r64-64", "r64-64 r64-64 r64-64"]
    decoders = {
        3: f"{first} {second} u {rest[0]} u {rest[1]} u {rest[2]}",
        4: f"{first} {second} u {rest[0]} u {rest[1]} u {rest[2]} u",
        5: f"{first} u {second.replace(' a', '')} u {rest[0]} u {rest[1]} u {rest[2]} u",
    }
    middle = "r256-256 a r256-256"
    assert plan(model.encoder.body) == f"{encoders[stages]} {middle}"
    assert plan(model.decoder.body) == f"{middle} {decoders[stages]}"


def test_the_non_local_block_adds_to_its_normalised_input():
    block = NonLocalBlock3d(8).double()
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    rows = block.norm(x).flatten(2)
    query, key, value = (project(block.norm(x)).flatten(2) for project in (block.query, block.key, block.value))
    weights = (torch.einsum("bcn,bcm->bnm", query, key) / 8**0.5).softmax(dim=-1)
    attended = torch.einsum("bnm,bcm->bcn", weights, value).view(x.shape)
    torch.testing.assert_close(block(x), rows.view(x.shape) + block.out(attended), rtol=0, atol=1e-12)


def test_codes_may_follow_averages_instead_of_gradients():
    published, model = tiny(), tiny(codebook_update="ema")
    assert published.quantizer.codebook.abs().max() <= 1 / 32
    heatmaps = volumes()
    used = [len(m.train()(heatmaps).indices.unique()) for m in (published, model)]
    assert used[1] >= 16 > used[0], "they begin among the latents"
    assert isinstance(published.quantizer.codebook, torch.nn.Parameter)
    assert not isinstance(model.quantizer.codebook, torch.nn.Parameter)
    with torch.no_grad():  # a code that no latent takes any more
        model.quantizer.codebook[0, 5] = 1e4
    latents = model.latents(heatmaps).detach()
    for _ in range(300):
        model.quantizer(latents)
    assert model.quantizer.codebook.abs().max() < 1e3, "it was replaced"
    with pytest.raises(UserError, match="with quantizer gumbel, codebook_update must be learned"):
        tiny(codebook_update="ema", quantizer="gumbel")
    with pytest.raises(UserError, match="codebook_update must be one of learned, ema, got 'mean'"):
        tiny(codebook_update="mean")


def test_checkpointing_changes_no_gradient():
    shape = {"channels": (8, 16), "norm_groups": 4}
    modules = (
        VolumeEncoder(3, 12, down_stages=2, size=16, attention_size=8, **shape).double(),
        VolumeDecoder(12, 3, up_stages=2, **shape).double(),
    )
    x = torch.randn(1, 3, 4, 16, 16, dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        for module in modules:
            module.checkpointing = checkpointing
            module.zero_grad()
        modules[1](modules[0](x)).square().mean().backward()
        gradients.append([p.grad.clone() for module in modules for p in module.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("quantizer", ["vq", "gumbel"])
def test_encode_decode_and_forward_agree(quantizer):
    model, heatmaps = tiny(quantizer=quantizer).eval(), volumes()
    spread_codes(model, heatmaps)
    result = model(heatmaps)
    tokens = model.encode(heatmaps)
    assert tokens.shape == (2, 2, 4, 4)
    assert len(tokens.unique()) > 8
    assert torch.equal(tokens, result.indices)
    torch.testing.assert_close(model.decode(tokens), result.heatmaps.detach())
    torch.testing.assert_close(model.decode(tokens.numpy()), result.heatmaps.detach())
    assert model.encode(volumes(1, 4, 24)).shape == (1, 1, 6, 6)


@pytest.mark.parametrize("quantizer", ["vq", "gumbel"])
def test_gradients_reach_every_parameter(quantizer):
    model, heatmaps = tiny(quantizer=quantizer).train(), volumes()
    spread_codes(model, heatmaps)
    result = model(heatmaps)
    (result.heatmaps.square().mean() + result.loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_quantizer_s_loss_has_a_quarter_of_its_weight_on_the_codes():
    model, heatmaps = tiny().train(), volumes()
    spread_codes(model, heatmaps)
    latents = model.latents(heatmaps).detach().requires_grad_()
    _, indices, loss = model.quantizer(latents)
    codes = model.quantizer.codebook[0].detach()[indices].movedim(-1, 1)
    error = (latents - codes).detach()
    torch.testing.assert_close(loss, 1.25 * error.square().mean())
    loss.backward()
    torch.testing.assert_close(latents.grad, 2 * error / error.numel())
    pull = torch.zeros_like(codes[:, 0, 0, 0, 0].new_zeros(32, 12))
    pull.index_add_(0, indices.flatten(), -0.25 * 2 * error.movedim(1, -1).flatten(0, -2) / error.numel())
    torch.testing.assert_close(model.quantizer.codebook.grad[0], pull)


def test_codes_begin_within_one_over_their_number():
    codes = tiny().quantizer.codebook
    assert codes.abs().max() <= 1 / 32
    assert codes.abs().max() > 0.9 / 32
    model = tiny().train()
    model(volumes())  # no batch replaces them
    assert torch.equal(model.quantizer.codebook, codes)


class _Copies(TorchDispatchMode):
    """Notes each operation that gives back as many numbers as there are latents, in memory of their own."""

    def __init__(self, size):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.size and not result._is_view():
            self.names.append(str(function))
        return result


def test_latents_are_searched_without_a_permutation_copy():
    model = tiny().eval()
    latents = torch.randn(2, 12, 3, 4, 5, requires_grad=True)
    for run in (model.quantizer.encode, model.quantizer):
        with _Copies(latents.numel()) as copies:
            run(latents)
        copying = {name.split(".")[1] for name in copies.names} & {"clone", "copy_", "_to_copy", "contiguous"}
        assert not copying
    rows, _, _ = model.quantizer._rows(latents.detach(), None, None, model.quantizer.codebook)
    assert rows.data_ptr() == latents.data_ptr()


def test_searching_a_latent_volume_takes_no_memory_of_its_size():
    """What an op copies inside, no dispatch mode sees; the system does."""
    if ops.explain("cpu")["nearest"][0] != "cpu":
        pytest.skip("the CPU kernels are not compiled")
    quantizer = tiny(code_dim=256, codebook_size=8).eval().quantizer
    latents = torch.randn(1, 256, 8, 64, 64)  # 32 MiB; F8 of a window eight times the published one
    quantizer.encode(latents[:, :, :1])
    peaks = [peak_growth(lambda: quantizer.encode(latents)) for _ in range(3)]
    if None in peaks:
        pytest.skip("no high-water mark on this system")
    # Rows by 8 bytes of indices and 4 of distances take 0.4 MiB, threads' tiles less than 1.
    assert min(peaks) < 4
    assert min(peak_growth(lambda: latents.movedim(1, -1).contiguous()) for _ in range(3)) > 30


def test_a_saved_model_is_the_same(tmp_path):
    model, heatmaps = tiny(quantizer="gumbel", temperature=0.5).eval(), volumes()
    model.save_pretrained(tmp_path / "model", extra_config={"training": {"steps": 3}})
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = HeatmapVQGAN.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(heatmaps).heatmaps, model(heatmaps).heatmaps)


def test_damaged_folders_are_named(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UserError, match="there is no folder"):
        HeatmapVQGAN.from_pretrained(tmp_path / "nowhere")
    for change, message in (
        ({"colour": 1}, "does not know: colour"),
        ({"kind": "rvqvae"}, "of the kind 'rvqvae', expected 'heatmap-vqgan'"),
        ({"code_dim": 16}, "must have the shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(UserError, match=message):
            HeatmapVQGAN.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 18}, "size must be a multiple of the 4 that a token covers, got 18: use 16"),
        ({"frames": 3}, "frames must be a multiple of the 4 that a token covers, got 3: use 4"),
        ({"norm_groups": 3}, "channels must be multiples of norm_groups"),
        ({"channels": ()}, "channels must name at least one level"),
        ({"channels": 8}, "channels must name the channels of each level, got 8"),
        ({"down_stages": 4}, "down_stages must be an integer of at most 3"),
        ({"quantizer": "ema"}, "quantizer must be one of vq, gumbel, got 'ema'"),
        ({"temperature": 0.0}, "temperature must be a number above 0"),
        ({"codebook_size": 0}, "codebook_size must be an integer of at least 1"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        HeatmapVQGANConfig(**{**TINY, **change})


@pytest.mark.parametrize(
    ("heatmaps", "message"),
    [
        (torch.zeros(1, 3, 8, 16, 18), "columns must be a multiple of the 4 that a token covers, got 18: use 16"),
        (torch.zeros(1, 3, 6, 16, 16), "frames must be a multiple of the 4"),
        (torch.zeros(1, 2, 8, 16, 16), r"shape \(B, 3, T, H, W\) and not be empty, got \(1, 2, 8, 16, 16\)"),
        (torch.zeros(0, 3, 8, 16, 16), "not be empty"),
        (torch.full((1, 3, 8, 16, 16), float("inf")), "must be finite"),
        ("picture", "must be a tensor or a NumPy array, got str"),
    ],
)
def test_bad_heatmaps_are_named(heatmaps, message):
    with pytest.raises(UserError, match=message):
        tiny().encode(heatmaps)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 2, 2, dtype=torch.long), r"integers \(B, T', H', W'\)"),
        (torch.zeros(1, 2, 2, 2), "must be integers"),
        (torch.full((1, 2, 2, 2), 32), "must lie in 0 to 31, got 32 to 32"),
        (torch.full((1, 2, 2, 2), -1), "must lie in 0 to 31, got -1 to -1"),
    ],
)
def test_bad_tokens_are_named(tokens, message):
    with pytest.raises(UserError, match=message):
        tiny().decode(tokens)
