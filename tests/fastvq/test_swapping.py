"""Models that exist, swapped: the same codes, averages and audio, the same keys, and the way back."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import fastvq

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def fill(layers, rows: Tensor, set_codes) -> None:
    """Codebooks by k-means on what the stages before leave, since models made from a config have only zeros."""
    residual = rows
    for layer in layers:
        size = layer.codebook.codebook_size
        codes = fastvq.kmeans(residual, size, iters=8, generator=torch.Generator().manual_seed(0)).codebook
        set_codes(layer.codebook, codes)
        residual = residual - codes[torch.cdist(residual, codes).argmin(-1)]


def set_encodec(codebook, codes):
    codebook.embed.copy_(codes)
    codebook.embed_avg.copy_(codes)
    codebook.cluster_size.fill_(1.0)


def set_mimi(codebook, codes):
    usage = torch.rand(len(codes)) + 0.5
    codebook.cluster_usage.copy_(usage)
    codebook.embed_sum.copy_(codes * usage[:, None])
    codebook._embed = None


@torch.no_grad()
def encodec():
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=32, codebook_dim=32, codebook_size=64, target_bandwidths=[3.6], num_lstm_layers=1
    )
    model = transformers.EncodecModel(config).eval()
    audio = torch.randn(4, 1, 48000) * 0.3
    fill(model.quantizer.layers, model.encoder(audio).mT.reshape(-1, 32), set_encodec)
    return model, audio


@torch.no_grad()
def mimi():
    torch.manual_seed(0)
    config = transformers.MimiConfig(
        num_filters=4,
        hidden_size=48,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        codebook_size=64,
        num_quantizers=6,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=12,
        intermediate_size=64,
        upsample_groups=48,
        upsampling_ratios=[4, 4, 2, 2],
    )
    model = transformers.MimiModel(config).eval()
    audio = torch.randn(4, 1, 48000) * 0.3
    latents = model.encoder(audio).latents
    for stack in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        fill(stack.layers, stack.input_proj(latents).mT.reshape(-1, 16), set_mimi)
    return model, audio


@torch.no_grad()
def dac():
    torch.manual_seed(0)
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=64,
        n_codebooks=4,
        codebook_size=64,
        downsampling_ratios=[2, 4, 4, 5],
    )
    model = transformers.DacModel(config).eval()
    audio = torch.randn(4, 1, 32000) * 0.3
    residual = model.encoder(audio)
    for stage in model.quantizer.quantizers:
        latents = stage.in_proj(residual)
        rows = latents.mT.reshape(-1, latents.shape[1])
        codes = fastvq.kmeans(rows, 64, iters=8, generator=torch.Generator().manual_seed(0)).codebook
        stage.codebook.weight.copy_(codes)
        residual = residual - stage(residual)[0]
    return model, audio


def encode(model, audio) -> Tensor:
    """Codes, (Q, ...)."""
    out = model.encode(audio)
    codes = out.audio_codes
    return codes.squeeze(0).transpose(0, 1) if codes.dim() == 4 else codes.transpose(0, 1)


MODELS = {"encodec": encodec, "mimi": mimi, "dac": dac}


@pytest.fixture(scope="module", params=MODELS)
def made(request):
    return MODELS[request.param]()


@torch.no_grad()
def test_transformers_models_keep_their_codes_and_audio(made):
    original, audio = made
    model = copy.deepcopy(original)
    before, keys = encode(model, audio), list(model.state_dict())
    used = torch.stack([codes.flatten().bincount(minlength=64) > 0 for codes in before]).float().mean()
    assert used > 0.5, "the codebooks are hardly used, so that equal codes would prove nothing"
    report = fastvq.swap(model)
    assert report.swapped
    assert "swapped" in str(report)
    after = encode(model, audio)
    same = (before == after).all(0)
    assert same.float().mean() > 0.998  # close calls go to the truly nearest code
    assert list(model.state_dict()) == keys
    clips = same.flatten(1).all(1)
    assert clips.any()
    heard, wanted = (m(audio).audio_values.view(len(audio), -1) for m in (model, original))
    torch.testing.assert_close(heard[clips], wanted[clips], rtol=1e-4, atol=1e-5)
    assert fastvq.unswap(model) == len(report.swapped)
    assert type(model.quantizer) is type(original.quantizer)
    assert torch.equal(encode(model, audio), before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])


@pytest.mark.parametrize("make", [encodec, mimi])
@torch.no_grad()
def test_swapped_codes_are_the_nearest(make):
    """Where codes differ, the swapped ones are nearer in float64, by less than the original's rounding."""
    original, _ = make()
    swapped = copy.deepcopy(original)
    fastvq.swap(swapped)
    stacks = [m for m in original.modules() if type(m).__name__.endswith(("ResidualVectorQuantizer",))]
    stacks = [m for m in stacks if hasattr(m, "layers")]
    assert stacks
    for number, stack in enumerate(stacks):
        other = [m for m in swapped.modules() if isinstance(m, type(stack))][number]
        dim = stack.layers[0].codebook.embed.shape[1]
        hidden = torch.randn(2, stack.input_proj.in_channels if getattr(stack, "input_proj", None) else dim, 500)
        old, new = stack.encode(hidden), other.encode(hidden)
        rows = (stack.input_proj(hidden) if getattr(stack, "input_proj", None) else hidden).mT.reshape(-1, dim)
        same = torch.ones(len(rows), dtype=torch.bool)
        residual = rows.clone()
        for stage, layer in enumerate(stack.layers[: len(old)]):
            codes = layer.codebook.embed
            distances = (residual.double()[:, None] - codes.double()).square().sum(-1)
            a, b = old[stage].flatten(), new[stage].flatten()
            gap = (distances.gather(1, a[:, None]) - distances.gather(1, b[:, None])).squeeze(1)
            assert (distances.gather(1, b[:, None]).squeeze(1)[same] == distances.min(1).values[same]).all()
            scale = residual.square().sum(-1) + codes.square().sum(-1).max()
            assert (gap[same] <= 4 * (dim + 8) * 2**-24 * scale[same]).all()
            same &= a == b
            residual = residual - codes[b]
        assert same.float().mean() > 0.99


@torch.no_grad()
def test_weights_that_change_are_seen(made):
    model, audio = copy.deepcopy(made[0]), made[1]
    fastvq.swap(model)
    before = encode(model, audio)
    other = copy.deepcopy(made[0])
    for name, value in other.named_buffers():
        if name.endswith((".embed", ".embed_sum")):
            value.copy_(value.flip(0))
    for name, value in other.named_parameters():
        if name.endswith("codebook.weight"):
            value.copy_(value.flip(0))
    for module in other.modules():
        if hasattr(module, "_embed"):
            module._embed = None
    model.load_state_dict(other.state_dict())
    for module in model.modules():
        if hasattr(module, "_embed"):
            module._embed = None
    after = encode(model, audio)
    assert not torch.equal(before, after)
    assert (after == encode(other, audio)).float().mean() > 0.99
    model.double()
    assert (encode(model, audio.double()) == after).float().mean() > 0.9


@torch.no_grad()
def test_swapped_models_are_copied_and_pickled(made):
    model, audio = copy.deepcopy(made[0]), made[1]
    fastvq.swap(model)
    codes = encode(model, audio)
    assert torch.equal(encode(copy.deepcopy(model), audio), codes)
    model.quantizer = pickle.loads(pickle.dumps(model.quantizer))
    assert torch.equal(encode(model, audio), codes)
    assert fastvq.unswap(copy.deepcopy(model)) > 0
    assert fastvq.swap(model).swapped == []  # once is enough


@torch.no_grad()
def test_swapped_models_are_saved_and_loaded(made, tmp_path):
    model, audio = copy.deepcopy(made[0]), made[1]
    fastvq.swap(model)
    codes = encode(model, audio)
    model.save_pretrained(tmp_path)
    assert torch.equal(encode(type(made[0]).from_pretrained(tmp_path).eval(), audio), encode(made[0], audio))
    assert torch.equal(encode(model, audio), codes)


@torch.no_grad()
def test_writes_past_torchs_notice_are_seen(made):
    original, audio = copy.deepcopy(made[0]), made[1]
    swapped = copy.deepcopy(original)
    fastvq.swap(swapped)
    encode(swapped, audio)
    for model in (original, swapped):
        for name, value in model.quantizer.state_dict().items():
            if value.is_floating_point() and "initialized" not in name and "inited" not in name:
                value.data.mul_(1.1)  # as exchanging the weights for their averages does
        for module in model.modules():
            if hasattr(module, "_embed"):
                module._embed = None
    assert (encode(original, audio) == encode(swapped, audio)).float().mean() > 0.998


def test_gradients_still_reach_the_projections():
    original, _ = dac()
    swapped = copy.deepcopy(original)
    fastvq.swap(swapped)
    x = torch.randn(1, original.quantizer.quantizers[0].in_proj.in_channels, 20)
    for model in (original, swapped):
        for stage in model.quantizer.quantizers:
            stage.codebook.weight.requires_grad_(False)
        model.quantizer(x)[0].square().sum().backward()
    ours, theirs = (m.quantizer.quantizers[0].out_proj.weight.grad for m in (swapped, original))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    named = swapped.quantizer(hidden_state=x, n_quantizers=2)
    torch.testing.assert_close(named[0], original.quantizer(x, 2)[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rows_that_are_not_finite_get_a_code(made):
    model, audio = copy.deepcopy(made[0]), made[1]
    fastvq.swap(model)
    broken = audio.clone()
    broken[0, 0, 100] = float("nan")
    codes = encode(model, broken)
    assert (codes >= 0).all()


def test_inference_mode_leaves_usable_buffers():
    model, audio = encodec()
    fastvq.swap(model)
    with torch.inference_mode():
        codes = encode(model, audio)
    assert not any(buffer.is_inference() for buffer in model.buffers())
    with torch.no_grad():
        assert torch.equal(encode(model, audio), codes)
