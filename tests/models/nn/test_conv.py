import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastvq.models import storage
from fastvq.models.nn.conv import Conv1d, UpConv1d, set_implementation
from fastvq.models.training.optimizer import DenseAdamW

CASES = [
    # kernel, stride, padding, dilation; the last two read beside short sequences with whole taps
    (1, 1, 0, 1),
    (3, 1, 1, 1),
    (3, 1, 9, 9),
    (4, 2, 1, 1),
    (3, 2, 0, 2),
    (3, 3, 4, 2),
    (3, 1, 20, 20),
]


def pair(case, implementation="taps", channels=(5, 7)):
    """Our convolution and PyTorch's with the same weights, in float64."""
    kernel, stride, padding, dilation = case
    torch.manual_seed(0)
    theirs = nn.Conv1d(*channels, kernel, stride=stride, padding=padding, dilation=dilation).double()
    ours = Conv1d(
        *channels, kernel, stride=stride, padding=padding, dilation=dilation, implementation=implementation
    ).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("implementation", ["conv1d", "taps"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch", "frames"), [(3, 16), (1, 5), (0, 8)])
def test_values_and_gradients_are_those_of_conv1d(case, implementation, batch, frames):
    ours, theirs = pair(case, implementation)
    x = torch.randn(batch, frames, 5, dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), theirs(x.transpose(1, 2)).transpose(1, 2)
    # At most 3 * 5 or 4 * 5 products a sum, each of order 1: 1e-14 is 45 roundings.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(y, [x, ours.weight, ours.bias], upstream)
    wanted = torch.autograd.grad(expected, [x, theirs.weight, theirs.bias], upstream)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("batch", "frames"), [(3, 16), (1, 1), (0, 8)])
def test_doubling_frames_and_convolving_in_one_is_the_same(batch, frames):
    torch.manual_seed(0)
    folded = UpConv1d(5, 7).double()
    plain = Conv1d(5, 7, 3, padding=1).double()
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(batch, frames, 5, dtype=torch.float64, requires_grad=True)
    expected = plain(x.repeat_interleave(2, dim=1))
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], upstream)
    for implementation in ("conv1d", "taps"):
        set_implementation(folded, implementation)
        y = folded(x)
        # At most 3 * 5 products a sum, each of order 1.
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
        found = torch.autograd.grad(y, [x, *folded.parameters()], upstream)
        for gradient, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


def test_one_frame_and_strided_input():
    ours, theirs = pair((3, 1, 1, 1))
    x = torch.randn(2, 5, 1, dtype=torch.float64).transpose(1, 2)
    assert not x.is_contiguous() or x.shape[1] == 1
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2), rtol=0, atol=1e-14)


def test_weights_lie_as_the_implementation_reads_them():
    conv = Conv1d(6, 4, 3)
    before = conv.weight.clone()
    for implementation, order in (("taps", (2, 0, 1)), ("conv1d", (0, 1, 2)), ("auto", (0, 1, 2))):
        set_implementation(conv, implementation)
        assert conv.weight.shape == (4, 6, 3)
        assert torch.equal(conv.weight, before)
        assert conv.weight.permute(order).is_contiguous()
        conv.zero_grad()
        conv(torch.randn(2, 8, 6)).sum().backward()
        assert conv.weight.grad.stride() == conv.weight.stride()


def test_memory_order_survives_loading_copying_and_casting(tmp_path):
    ours, theirs = pair((3, 1, 1, 1))
    order = ours.weight.stride()
    assert order != theirs.weight.stride()
    storage.write_tensors(tmp_path / "weights.safetensors", ours.state_dict())
    loaded = copy.deepcopy(ours)
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded.weight, theirs.weight)
    for module in (ours, loaded, copy.deepcopy(ours).to(torch.bfloat16)):
        assert module.weight.stride() == order


@pytest.mark.parametrize("implementation", ["conv1d", "taps"])
def test_fused_optimizer_and_clipping_agree_with_plain_ones(implementation):
    results = {}
    for fused in (False, True):
        ours, _ = pair((3, 1, 1, 1), implementation)
        optimizer = (DenseAdamW if fused else torch.optim.AdamW)(
            ours.parameters(), lr=1e-2, betas=(0.9, 0.99), fused=fused
        )
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            x = torch.randn(2, 8, 5, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            ours(x).square().sum().backward()
            assert nn.utils.clip_grad_norm_(ours.parameters(), 1.0) > 1.0
            optimizer.step()
        results[fused] = ours.weight.detach()
        assert optimizer.state[ours.weight]["exp_avg"].stride() == ours.weight.stride()
    # Five steps of size 1e-2 on weights below 1; the two differ by the order of a few float64 roundings.
    torch.testing.assert_close(results[True], results[False], rtol=0, atol=1e-13)


def test_auto_takes_taps_for_bfloat16_on_a_cpu_only():
    conv, x = Conv1d(5, 7, 3, padding=1), torch.randn(2, 8, 5)
    assert conv._form(x) == "conv1d"
    assert conv._form(x.to(torch.bfloat16)) == "taps"
    assert conv._form(x.to("meta", torch.bfloat16)) == "conv1d"
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16


def test_bfloat16_forms_agree():
    conv, x = Conv1d(5, 7, 3, padding=1), torch.randn(2, 8, 5)
    outputs = []
    for implementation in ("conv1d", "taps"):
        set_implementation(conv, implementation)
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(conv(x).float())
    # Both multiply the same bfloat16 numbers and add in float32. One rounds the sum to 8 bits, the other after each
    # of its three taps, sums below 2 in size: four roundings of at most 2**-8 apart.
    torch.testing.assert_close(*outputs, rtol=0, atol=4 * 2**-8)


@pytest.fixture
def nothing_is_zero_by_chance(monkeypatch):
    """Memory that nobody wrote to holds NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_frames_that_no_tap_reads_have_no_gradient(nothing_is_zero_by_chance):
    conv = Conv1d(2, 3, 1, stride=3, implementation="taps")
    x = torch.randn(2, 8, 2, requires_grad=True)
    conv(x).sum().backward()
    read = torch.arange(8) % 3 == 0
    assert torch.equal(x.grad != 0, read.view(1, 8, 1).expand(2, 8, 2))
    assert x.grad.isfinite().all()


def test_bias_gradients_are_summed_wide():
    conv = Conv1d(2, 1, 1, implementation="taps")
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.randn(1, 1001, 2)).sum().backward()
    assert conv.bias.grad.item() == 1001  # bfloat16 would make it 1000


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"must be one of.*got 'fft'"):
        set_implementation(Conv1d(1, 1, 1), "fft")


@pytest.mark.parametrize("case", CASES)
def test_a_kept_graph_gives_the_same_bfloat16_gradients_again(case):
    conv, _ = pair(case)
    conv.float()
    x = torch.randn(3, 16, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = conv(x).float().square().sum()
    inputs = [x, conv.weight, conv.bias]
    first, second = torch.autograd.grad(loss, inputs, retain_graph=True), torch.autograd.grad(loss, inputs)
    assert all(map(torch.equal, first, second))
    assert first[1].abs().sum() > 0
    conv.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = conv(x).float().square().sum()
    (alone,) = torch.autograd.grad(loss, [x])
    assert torch.equal(alone, first[0])


def saved_weight(conv):
    """Of a forward pass in bfloat16: the loss, and the rounded weight that waits for the backward pass."""
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(torch.randn(2, 8, 4))
    *_, rounded = y.grad_fn.next_functions[0][0].saved_tensors
    assert torch.equal(rounded, conv.weight.permute(2, 0, 1).to(torch.bfloat16))
    return y.float().sum(), rounded


def test_the_gradient_takes_over_the_memory_of_the_rounded_weight():
    conv = Conv1d(4, 6, 3, padding=1, implementation="taps")
    loss, rounded = saved_weight(conv)
    address, size = rounded.data_ptr(), rounded.untyped_storage().nbytes()
    del rounded
    loss.backward()
    assert (conv.weight.grad.data_ptr(), size) == (address, 4 * conv.weight.numel())
    _, rounded = saved_weight(conv)  # where a gradient is already, it takes no more than it needs
    assert rounded.untyped_storage().nbytes() == 2 * conv.weight.numel()


def test_a_weight_in_another_order_keeps_its_gradient_in_that_order():
    conv = Conv1d(4, 6, 3, padding=1)
    loss, rounded = saved_weight(conv)
    assert rounded.untyped_storage().nbytes() == 2 * conv.weight.numel()
    (gradient,) = torch.autograd.grad(loss, [conv.weight])
    assert gradient.stride() == conv.weight.stride()


def test_a_checkpoint_keeps_no_rounded_weight_and_gives_the_same_gradients():
    conv, x = Conv1d(4, 6, 3, padding=1, implementation="taps"), torch.randn(2, 8, 4)
    kept = []

    def pack(tensor):
        kept.append(tensor.dtype)
        return tensor.clone()

    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.autograd.grad(conv(x).float().sum(), [conv.weight])
        found = torch.autograd.grad(checkpoint(conv, x, use_reentrant=False).float().sum(), [conv.weight])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            packed = torch.autograd.grad(conv(x).float().sum(), [conv.weight])
    assert torch.equal(*expected, *found)
    assert torch.equal(*expected, *packed)
    assert kept.count(torch.bfloat16) == 2  # the input and the rounded weight


@pytest.mark.parametrize("case", CASES)
def test_one_graph_serves_every_length(case):
    conv, _ = pair(case)
    torch._dynamo.reset()
    compiled = torch.compile(conv.float(), backend="aot_eager", fullgraph=True)
    graphs = []
    for frames in (16, 24, 40, 18, 26, 48):
        x = torch.randn(2, frames, 5)
        torch.testing.assert_close(compiled(x), conv(x))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # One for any length; another where every second frame is read, or where whole taps read beside short sequences.
    assert graphs[-1] - graphs[0] <= 2
