import dataclasses
import json

import pytest

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.training.config import LossWeights, TrainConfig, fastest_precision


def test_the_defaults_are_the_published_recipe():
    config = TrainConfig()
    assert (config.batch_size, config.steps, config.lr, config.window) == (128, 300_000, 2e-4, 64)
    assert (config.milestones, config.gamma, config.warmup) == ((50_000, 400_000), 0.05, 1000)
    assert (config.betas, config.weight_decay, config.grad_clip) == ((0.9, 0.99), 0.0, None)
    assert dataclasses.astuple(config.loss) == (3.0, 1.5, 0.1, 0.5, 5.0, 0.5)


def test_learning_rate_rises_then_steps_down():
    config = TrainConfig(lr=1.0, warmup=4, milestones=(10, 20), gamma=0.5)
    assert [config.learning_rate(step) for step in (0, 1, 3, 4, 9, 10, 19, 20, 99)] == [
        *(0.25, 0.5, 1.0, 1.0, 1.0),
        *(0.5, 0.5, 0.25, 0.25),
    ]
    assert TrainConfig(lr=1.0, warmup=0).learning_rate(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"window": 62}, "window must be a multiple of the 4 frames of a token, got 62: use 60"),
        ({"window": 3}, "window must be an integer of at least 4, got 3"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
        ({"conv": "fft"}, "conv must be one of auto, conv1d, taps, got 'fft'"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"lr": float("inf")}, "lr must be a number above 0, got inf"),
        ({"gamma": 1.5}, "gamma must be a number above 0 and at most 1, got 1.5"),
        ({"betas": (0.9, 1.0)}, "betas must be a number at least 0 and below 1, got 1.0"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"milestones": (0,)}, "milestones must be an integer of at least 1"),
        ({"grad_clip": -1.0}, "grad_clip must be a number above 0"),
        ({"warmup": -1}, "warmup must be an integer of at least 0"),
        ({"batch_size": 10**12}, "batch_size must be an integer of at most 2147483647"),
        ({"seed": 2**63}, "seed must be an integer of at most 9223372036854775807"),
    ],
)
def test_wrong_settings_get_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**changes)


def test_wrong_loss_weights_get_one_sentence():
    with pytest.raises(UserError, match=r"loss.joint_position must be a number at least 0, got -1"):
        LossWeights(joint_position=-1)


def test_a_resumed_run_keeps_its_settings():
    config = TrainConfig()
    earlier = json.loads(json.dumps(config.to_dict()))
    config.check_resumes(earlier)
    dataclasses.replace(config, steps=7, log_every=1, checkpoint_every=2).check_resumes(earlier)
    changed = dataclasses.replace(config, lr=1e-3, model=MotionVQVAEConfig(width=16))
    with pytest.raises(UserError, match=r"lr \(was 0.0002, is 0.001\), model.width \(was 1024, is 16\)"):
        changed.check_resumes(earlier)


def test_a_run_from_before_a_setting_existed_can_be_resumed():
    earlier = json.loads(json.dumps(TrainConfig().to_dict()))
    del earlier["speeds"], earlier["model"]["dead_below"]
    TrainConfig().check_resumes(earlier)
    with pytest.raises(UserError, match=r"with other settings: speeds \(was \[1.0\], is \[2.0\]\);"):
        TrainConfig(speeds=(2.0,)).check_resumes(earlier)


def test_fastest_precision_is_one_of_the_two():
    assert fastest_precision() in ("fp32", "bf16")
