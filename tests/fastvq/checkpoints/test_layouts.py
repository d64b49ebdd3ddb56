"""Published layouts: the native module gives the source's codes, and is written back bit by bit."""

import doctest
import pickle

import pytest
import torch

import fastvq
from fastvq import EMA, AbsoluteUsage, CodebookRules, Learned, checkpoints

LAYOUTS = {
    "encodec": fastvq.ResidualVQ,
    "hf-encodec": fastvq.ResidualVQ,
    "mimi": fastvq.SplitResidualVQ,
    "hf-mimi": fastvq.SplitResidualVQ,
    "dac": fastvq.ProjectedResidualVQ,
    "dac-parametrized": fastvq.ProjectedResidualVQ,
    "hf-dac": fastvq.ProjectedResidualVQ,
    "snac": fastvq.ProjectedResidualVQ,
    "momask": fastvq.ResidualVQ,
    "t2m-gpt": fastvq.VectorQuantize,
}
FORMS = {"audiocraft": "encodec", "older mimi": "mimi", "mimi alone": "hf-mimi"}


def same_state(one, other):
    """Names, shapes, dtypes and bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.device == other[name].device, name
        assert torch.equal(tensor, other[name]), name


def codes_of(vq, x):
    """indices (N, Q) as the sources give them: strided stages repeated over their rows."""
    indices = vq.encode(x)
    if isinstance(indices, list):
        length = x.shape[-1]
        indices = torch.stack([part.repeat_interleave(length // part.shape[-1], -1) for part in indices], -1)
    return indices.flatten(0, 1)


def test_every_layout_is_tested():
    assert {*LAYOUTS, "vector-quantize-pytorch"} == set(checkpoints.LAYOUTS)


@pytest.mark.parametrize("name", [*LAYOUTS, *FORMS])
def test_codes_and_values_are_the_sources(name, sources):
    source = sources[name]()
    layout = FORMS.get(name, name)
    named = {"layout": layout} if name == "dac-parametrized" else {}
    vq = checkpoints.load(source.state, **named, **source.options)
    assert type(vq) is LAYOUTS[layout]
    assert not vq.training
    x = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, quantized = source.encode(x)
        codes, out = codes_of(vq, x), vq(x)
    clear = source.clear(x)
    assert clear.float().mean() > 0.8
    assert torch.equal(codes[clear], expected[clear])
    rows = out.quantized.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows[clear], quantized[clear], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vq.decode(vq.encode(x)), out.quantized, rtol=1e-4, atol=1e-4)
    # Most codes must be in use, or equal codes would prove little.
    assert len(expected.flatten().unique()) > 8


@pytest.mark.parametrize("name", [*LAYOUTS, *FORMS])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_written_back_bit_by_bit(name, suffix, sources, tmp_path):
    source = sources[name]()
    layout = FORMS.get(name, name)
    vq = checkpoints.load(source.state, layout, **source.options)
    path = tmp_path / f"quantizer.{suffix}"
    if suffix == "safetensors":
        pytest.importorskip("safetensors", reason="files in that format need it")
    written = checkpoints.save(vq, path, layout)
    same_state(written, source.quantizer)
    again = checkpoints.load(path, layout, **source.options)
    same_state(again.state_dict(), vq.state_dict())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    written[next(iter(written))].fill_(7)  # a copy
    same_state(checkpoints.save(vq, None, layout), source.quantizer)


@pytest.mark.parametrize("name", [*LAYOUTS, *FORMS])
def test_detected(name, sources):
    found = checkpoints.detect(sources[name]().state)
    assert found == {"dac-parametrized": "snac", **FORMS}.get(name, name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_trains_on(name, sources):
    """One step in training mode; then the written state is read into a module with the same codes."""
    source = sources[name]()
    vq = checkpoints.load(source.state, name, **source.options).train()
    before = vq.state_dict()
    before = {key: tensor.clone() for key, tensor in before.items()}
    x = torch.randn(4, 12, 40)
    out = vq(x)
    assert out.loss.isfinite()
    if name in ("dac", "dac-parametrized", "hf-dac", "snac"):
        out.loss.backward()
        torch.optim.SGD(vq.parameters(), 0.1).step()
    changed = [key for key, tensor in vq.state_dict().items() if not torch.equal(tensor, before[key])]
    assert any(key.endswith("codebooks.codebook") for key in changed)
    again = checkpoints.load(checkpoints.save(vq, None, name), name, **source.options)
    vq.eval()
    torch.testing.assert_close(again(x).quantized, vq(x).quantized, rtol=0, atol=0)


def test_rules_are_the_layouts(sources):
    encodec = checkpoints.load(sources["encodec"]().state)
    assert encodec.codebooks.rules.update == EMA(0.99)
    assert encodec.codebooks.rules.dead is None
    mimi = checkpoints.load(sources["mimi"]().state)
    assert mimi.parts[1].codebooks.rules.update == EMA(0.99, smoothing="none")
    dac = checkpoints.load(sources["dac"]().state)
    assert isinstance(dac.stages[0].codebooks.rules.update, Learned)
    for name in ("momask", "t2m-gpt"):
        rules = checkpoints.load(sources[name]().state).codebooks.rules
        assert rules.update == EMA(0.99, smoothing="none")
        assert rules.dead == AbsoluteUsage(1.0, reset=None)
    own = checkpoints.load(sources["momask"]().state, rules=CodebookRules(update=EMA(0.5)), channel_dim=-1)
    assert own.codebooks.rules.update.decay == 0.5
    assert own.encode(torch.randn(3, 12)).shape == (3, 3)


def test_codes_begin_from_data_only_where_the_file_says_so(sources):
    state = sources["encodec"]().state
    assert bool(checkpoints.load(state).codebooks.initted)
    for name, tensor in state.items():
        if name.endswith(("inited", "embed", "embed_avg")):
            tensor.zero_()
    vq = checkpoints.load(state).train()
    assert not vq.codebooks.initted
    assert not vq.codebooks.shared
    vq(torch.randn(2, 12, 50))
    assert vq.codebooks.initted
    assert vq.codebook.std() > 0.1
    state["quantizer.vq.layers.1._codebook.inited"].fill_(1)
    with pytest.raises(ValueError, match="stage 0 has not begun from data, but others have"):
        checkpoints.load(state)


def test_mimi_writes_codes_that_its_statistics_do_not_give(sources):
    """Codes that are no quotient of sums and sizes keep their bits; the others their statistics too."""
    vq = checkpoints.load(sources["hf-mimi"]().state)
    state = vq.parts[1].codebooks
    state.codebook[0, 2, 5] = torch.randn(4)
    again = checkpoints.load(checkpoints.save(vq, None, "mimi")).parts[1].codebooks
    assert torch.equal(again.codebook, state.codebook)
    kept = torch.arange(16) != 5
    assert torch.equal(again.cluster_size[0, 2, kept], state.cluster_size[0, 2, kept])
    assert 0.5 < again.cluster_size[0, 2, 5] / state.cluster_size[0, 2, 5] < 2


@pytest.mark.parametrize(("first", "second"), [("encodec", "hf-encodec"), ("hf-mimi", "mimi"), ("dac", "hf-dac")])
def test_from_one_layout_to_another(first, second, sources):
    source = sources[first]()
    vq = checkpoints.load(source.state)
    other = checkpoints.load(checkpoints.save(vq, None, second))
    x = torch.randn(2, 12, 30)
    torch.testing.assert_close(other(x).quantized, vq(x).quantized, rtol=1e-6, atol=1e-6)
    if first == "dac":  # without weight norm it is the same map
        back = checkpoints.load(checkpoints.save(other, None, "dac"))
        torch.testing.assert_close(back(x).quantized, vq(x).quantized, rtol=1e-5, atol=1e-5)


def test_weight_norm_is_kept_or_folded(sources):
    source = sources["dac"]()
    kept, folded = checkpoints.load(source.state), checkpoints.load(source.state, weight_norm=False)
    x = torch.randn(2, 12, 30)
    torch.testing.assert_close(kept(x).quantized, folded(x).quantized, rtol=1e-4, atol=1e-5)
    assert any("original0" in name for name, _ in kept.named_parameters())
    assert not any("original" in name for name, _ in folded.named_parameters())
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x).quantized, folded(x).quantized)


def test_strides_come_from_the_config_beside_the_file(sources, tmp_path):
    source = sources["snac"]()
    path = tmp_path / "pytorch_model.bin"
    torch.save(source.state, path)
    with pytest.raises(ValueError, match="does not tell its strides: give strides="):
        checkpoints.load(path)
    (tmp_path / "config.json").write_text('{"vq_strides": [4, 2, 1]}')
    assert checkpoints.load(path).strides == (4, 2, 1)
    assert checkpoints.load(path, strides=(2, 1, 1)).strides == (2, 1, 1)
    (tmp_path / "config.json").write_text('{"vq_strides": [4, 2')
    with pytest.raises(ValueError, match=r"config.json is not JSON .* damaged or cut short"):
        checkpoints.load(path)


def test_written_state_loads_into_the_source(sources):
    """A native module's weights go into the library's model."""
    transformers = pytest.importorskip("transformers", reason="its EnCodec takes the weights")
    config = transformers.EncodecConfig(
        sampling_rate=800,
        num_filters=4,
        hidden_size=12,
        codebook_size=16,
        upsampling_ratios=[2, 2],
        target_bandwidths=[2.4],
    )
    model = transformers.EncodecModel(config)
    vq = fastvq.ResidualVQ(12, 16, num_quantizers=3, channel_dim=1)
    x = torch.randn(2, 12, 50)
    vq(x)
    vq.eval()
    model.load_state_dict({**model.state_dict(), **checkpoints.save(vq, None, "hf-encodec")})
    torch.testing.assert_close(model.quantizer.decode(vq.encode(x).permute(2, 0, 1)), vq(x).quantized)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes(dtype, sources):
    source = sources["momask"]()
    state = {name: tensor.to(dtype) for name, tensor in source.quantizer.items()}
    vq = checkpoints.load(state)
    assert vq.codebook.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    written = checkpoints.save(vq, None, "momask")
    assert all(torch.equal(written[name], tensor.to(written[name].dtype)) for name, tensor in state.items())


@pytest.mark.parametrize("module", [checkpoints.api, fastvq.split])
def test_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
