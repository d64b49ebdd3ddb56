import pytest
import torch

from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.config import LossWeights
from fastvq.models.training.losses import motion_loss
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep


@pytest.fixture
def step(tiny_model):
    return lambda precision="fp32": TrainingStep(
        tiny_model, LossWeights(), precision, SectionTimer(False, torch.device("cpu"))
    )


def test_the_loss_is_that_of_the_model_s_own_output(step, tiny_model, motion):
    walk = torch.from_numpy(motion(32))[None]
    losses = step()(walk)
    recon, tokens = tiny_model(walk)
    expected = motion_loss(tiny_model.normalise(recon), tiny_model.normalise(walk), LossWeights())
    # Denormalising and normalising again rounds twice.
    torch.testing.assert_close(losses.terms, expected.terms, rtol=1e-4, atol=1e-6)
    assert torch.equal(losses.indices.permute(2, 0, 1), tokens)
    latents = tiny_model.encoder(tiny_model.normalise(walk))
    codes = tiny_model.quantizer.decode(losses.indices)
    torch.testing.assert_close(losses.commitment, 0.02 * (latents - codes).square().mean(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(losses.total, expected.total + losses.commitment, rtol=1e-4, atol=1e-6)


def test_padding_does_not_count(step, tiny_model, motion):
    motions = [torch.from_numpy(motion(frames, seed)) for seed, frames in enumerate((32, 16))]
    features, mask = tiny_model.collate(motions)
    together = step()(features, mask)
    alone = [step()(motion[None]) for motion in motions]
    mean = (2 * alone[0].smooth_l1 + alone[1].smooth_l1) / 3
    torch.testing.assert_close(together.smooth_l1, mean, rtol=1e-4, atol=1e-6)
    mean = (2 * alone[0].commitment + alone[1].commitment) / 3
    torch.testing.assert_close(together.commitment, mean, rtol=1e-4, atol=1e-7)
    assert (together.indices[1, 4:] == -1).all()


def test_bfloat16_stays_in_the_convolutions(step, tiny_model, motion):
    walk = torch.from_numpy(motion(32))[None]
    seen = {}

    def note(name):
        return lambda module, given, output: seen.update({name: (given[0].dtype, output)})

    for name in ("encoder", "quantizer", "decoder"):
        getattr(tiny_model, name).register_forward_hook(note(name))
    losses = step("bf16")(walk)
    assert seen["encoder"][1].dtype == torch.bfloat16
    assert seen["quantizer"][0] == torch.float32
    assert seen["quantizer"][1].quantized.dtype == torch.float32
    assert seen["decoder"][1].dtype == torch.bfloat16
    assert losses.total.dtype == losses.terms.dtype == torch.float32
    losses.total.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in tiny_model.parameters())


def test_bfloat16_learns_what_float32_learns(step, tiny_model, motion):
    walk = torch.from_numpy(motion(64))[None]
    gradients = []
    for precision in ("fp32", "bf16"):
        tiny_model.zero_grad()
        step(precision)(walk).total.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in tiny_model.parameters()]))
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    # Nine layers of 8-bit roundings (2^-9 each) turn a gradient by a few percent, and some codes change.
    assert cosine > 0.98


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_whole_step_is_one_graph(tiny_config, motion, precision):
    def run(compiled):
        torch.manual_seed(0)
        step = TrainingStep(
            MotionVQVAE(tiny_config), LossWeights(), precision, SectionTimer(False, torch.device("cpu"))
        ).train()
        call = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        totals = []
        for seed in range(3):  # the first initialises the codebooks
            losses = call(torch.stack([torch.from_numpy(motion(32, 2 * seed + clip)) for clip in range(2)]))
            losses.total.backward()
            totals.append(losses.total.detach())
        return torch.stack(totals), step.model.encoder.conv_in.weight.grad

    # fullgraph raises at the first break. The same operations run, on the same random numbers.
    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected)
