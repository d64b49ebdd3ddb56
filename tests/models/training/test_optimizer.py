import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastvq.models.training.optimizer import DenseAdamW


def parameters():
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 7, 3, generator=draw)
    permuted = torch.randn(5, 3, 7, generator=draw).permute(0, 2, 1)
    return [torch.nn.Parameter(tensor) for tensor in (dense, permuted, torch.randn(5, generator=draw))]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_steps_and_states_are_torch_s_own(amsgrad):
    ours, theirs = parameters(), parameters()
    optimizers = [
        kind(params, lr=1e-2, weight_decay=0.1, amsgrad=amsgrad, fused=True)
        for kind, params in ((DenseAdamW, ours), (torch.optim.AdamW, theirs))
    ]
    for seed in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            draw = torch.Generator().manual_seed(seed)
            for parameter in params:
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draw))
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        states = [optimizer.state[key] for optimizer, key in zip(optimizers, (mine, other), strict=True)]
        for name, state in states[0].items():
            assert state.stride() == states[1][name].stride()
            torch.testing.assert_close(state, states[1][name], rtol=1e-6, atol=1e-7)


def test_nothing_is_copied():
    params = parameters()
    optimizer = DenseAdamW(params, fused=True)
    for parameter in params:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        optimizer.step()
    assert "aten::clone" not in {event.name for event in trace.events()}
