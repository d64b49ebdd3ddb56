import time

import pytest
import torch

from fastvq.models.training.config import LossWeights
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep

CPU = torch.device("cpu")


class Slow(torch.autograd.Function):
    """Identity whose backward pass takes a given time."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


def test_the_backward_pass_is_split_where_the_parts_meet():
    timer = SectionTimer(True, CPU)
    x = torch.ones(3, requires_grad=True)
    first = Slow.apply(x, 0.04)
    second = Slow.apply(first, 0.01)
    timer.split_backward(second, "loss")
    timer.split_backward(first, "second")
    with timer.section("all"), timer.backward("first"):
        second.sum().backward()
    ms = timer.mean_ms()
    assert ms["first"] >= 40
    assert ms["second"] >= 10
    # Sleeps are at least as long as asked for, so only sums have an upper side.
    assert ms["all"] == pytest.approx(ms["loss"] + ms["second"] + ms["first"], abs=1)
    assert ms["loss"] < ms["all"] - 49
    assert timer.mean_ms(reset=True) == ms
    assert timer.mean_ms() == {}


def test_nothing_is_measured_unless_enabled():
    timer = SectionTimer(False, CPU)
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    timer.split_backward(y, "y")
    timer.wrap_method(timer, "mean_ms", "wrapped")
    assert timer.section("a") is timer.section("b")
    with timer.section("a"), timer.backward("rest"):
        y.sum().backward()
    assert timer.seconds == {}
    assert not y._backward_hooks
    assert "mean_ms" not in vars(timer)


def test_a_training_step_names_all_its_parts(tiny_model, motion):
    timer = SectionTimer(True, CPU)
    step = TrainingStep(tiny_model.train(), LossWeights(), "fp32", timer)
    timer.wrap_method(tiny_model.quantizer.codebooks, "update_", "codebook_update")
    for _ in range(2):
        losses = step(torch.from_numpy(motion(32))[None])
        with timer.backward("encoder_backward"):
            losses.total.backward()
    forward = {"encoder", "quantizer", "codebook_update", "decoder", "losses"}
    backward = {"losses_backward", "decoder_backward", "quantizer_backward", "encoder_backward"}
    assert set(timer.seconds) == forward | backward
    assert all(len(values) == 2 for values in timer.seconds.values())
    assert timer.mean_ms()["codebook_update"] < timer.mean_ms()["quantizer"]
