import copy
import dataclasses

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE


def test_the_default_is_the_published_model():
    with torch.device("meta"):
        model = MotionVQVAE()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 73_006_864
    assert model.get_codebook_embeddings().shape == (64, 512, 8)
    config = model.config
    assert (config.input_dim, config.width, config.depth, config.downsample, config.code_dim) == (272, 1024, 3, 4, 8)
    assert config.commitment_weight == 0.02


@pytest.fixture(scope="module")
def published():
    """The published sizes, but narrow."""
    torch.manual_seed(0)
    return MotionVQVAE(MotionVQVAEConfig(width=16)).eval()


def test_the_published_calls_and_shapes(published, motion):
    model = published
    walk = motion(120)
    tokens = model.encode(walk)
    assert tokens.shape == (64, 1, 30)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 512
    assert model.decode(tokens).shape == (1, 120, 272)
    motion_recon, same = model(walk)
    assert motion_recon.shape == (1, 120, 272)
    assert torch.equal(same, tokens)
    torch.testing.assert_close(motion_recon, model.decode(tokens), rtol=1e-5, atol=1e-5)
    assert isinstance(motion_recon.numpy(), np.ndarray)

    motions = [motion(frames, seed) for seed, frames in enumerate((100, 150, 80))]
    tokens = model.encode_batch(motions)
    assert tokens.shape == (64, 3, 38)
    assert [recon.shape for recon in model.decode_batch(tokens)] == [(100, 272), (152, 272), (80, 272)]
    assert model.get_codebook_embeddings().shape == (64, 512, 8)


def test_arrays_tensors_and_batches_are_alike(tiny_model, motion):
    walk = motion(64)
    expected = tiny_model.encode(walk)
    batch = np.stack([walk, walk[::-1]])
    for given in (walk.astype(np.float64), torch.from_numpy(walk), walk[None], np.asfortranarray(walk)):
        assert torch.equal(tiny_model.encode(given), expected)
    read_only = walk.copy()
    read_only.setflags(write=False)
    for given in (np.ascontiguousarray(walk[::-1])[::-1], walk.astype(">f4"), walk.astype(np.longdouble), read_only):
        assert torch.equal(tiny_model.encode(given), expected)
    assert torch.equal(tiny_model.decode(expected.numpy().astype(np.uint16)), tiny_model.decode(expected))
    backwards = np.ascontiguousarray(expected.numpy()[::-1])[::-1]
    assert torch.equal(tiny_model.decode(backwards), tiny_model.decode(expected))
    assert torch.equal(tiny_model.encode(batch)[:, :1], expected)
    assert torch.equal(tiny_model.decode(expected[:, 0].numpy()), tiny_model.decode(expected))


@pytest.mark.parametrize("frames", [4, 5, 6, 7, 8, 41])
def test_odd_lengths_are_continued_with_the_last_frame(tiny_model, motion, frames):
    walk = motion(frames)
    tokens = tiny_model.encode(walk)
    latents = -(-frames // 4)
    assert tokens.shape == (4, 1, latents)
    longer = np.concatenate([walk, np.repeat(walk[-1:], 4 * latents - frames, axis=0)])
    assert torch.equal(tiny_model.encode(longer), tokens)
    assert tiny_model(walk)[0].shape == (1, frames, 272)
    assert tiny_model.decode_batch(tokens, lengths=[frames])[0].shape == (frames, 272)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_padded_clip_has_the_tokens_of_the_clip_alone(tiny_model, motion, dtype):
    model = tiny_model.to(dtype)
    lengths = (80, 79, 4, 5, 77, 33, 131, 200)
    motions = [motion(frames, seed) for seed, frames in enumerate(lengths)]
    tokens = model.encode_batch(motions, batch_size=5)
    reconstructions = model.decode_batch(tokens, lengths, batch_size=3)
    differing = 0
    for row, walk in enumerate(motions):
        alone = model.encode(walk)[:, 0]
        here = tokens[:, row, : alone.shape[1]]
        differing += int((here != alone).sum())
        assert (tokens[:, row, alone.shape[1] :] == -1).all()
        expected = model.decode(here)[0, : len(walk)]
        # The sums of a convolution may be taken in another order in a batch: a few hundred roundings.
        tolerance = 500 * torch.finfo(dtype).eps
        torch.testing.assert_close(reconstructions[row], expected, rtol=tolerance, atol=tolerance)
    assert differing == 0


def test_without_the_masks_most_tokens_would_differ(tiny_model, motion):
    # What the test above guards against, so that it cannot pass for want of sensitivity.
    walk = torch.from_numpy(motion(80)).unsqueeze(0)
    padded = torch.cat([tiny_model.normalise(walk), torch.zeros(1, 40, 272)], dim=1)
    tokens = tiny_model.quantizer.encode(tiny_model.encoder(padded))[0, :20].t()
    changed = (tokens != tiny_model.encode(walk)[:, 0]).any(dim=0)
    assert changed.sum() >= 1


def test_decoding_fills_what_lies_beyond_the_end_with_zeros(tiny_model, motion):
    tokens = tiny_model.encode_batch([motion(40), motion(16, 1)])
    decoded = tiny_model.decode(tokens)
    assert decoded.shape == (2, 40, 272)
    assert not decoded[1, 16:].any()
    assert decoded[1, :16].abs().min(dim=1).values.max() > 0


def test_normalisation_uses_the_bundled_statistics(tiny_model, motion):
    walk = torch.from_numpy(motion(8))
    normal = tiny_model.normalise(walk)
    torch.testing.assert_close(normal, (walk - tiny_model.mean) / tiny_model.std)
    torch.testing.assert_close(tiny_model.denormalise(normal), walk)


def test_a_feature_that_never_varies_stays_at_its_mean(tiny_config, motion):
    std = np.ones(272)
    std[8] = 0
    model = MotionVQVAE(tiny_config, mean=np.full(272, 0.5), std=std).eval()
    recon, _ = model(motion(16))
    assert recon.isfinite().all()
    assert (recon[..., 8] == 0.5).all()


def test_gradients_only_where_they_are_wanted(tiny_model, motion):
    walk = torch.from_numpy(motion(16))
    assert not tiny_model(walk)[0].requires_grad
    asked = walk.clone().requires_grad_()
    tiny_model(asked)[0].sum().backward()
    assert asked.grad.abs().sum() > 0
    assert tiny_model.train()(walk)[0].requires_grad
    with torch.no_grad():
        assert not tiny_model(walk)[0].requires_grad


def test_only_training_moves_the_codebooks(tiny_model, motion):
    before = tiny_model.get_codebook_embeddings()
    tiny_model(motion(64))
    tiny_model.encode(motion(64))
    assert torch.equal(tiny_model.get_codebook_embeddings(), before)
    tiny_model.train()(motion(64))
    assert not torch.equal(tiny_model.get_codebook_embeddings(), before)


def test_a_copy_encodes_alike(tiny_model, motion):
    assert torch.equal(copy.deepcopy(tiny_model).encode(motion(32)), tiny_model.encode(motion(32)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((120, 263)), r"motion must have the shape \(T, 272\) or \(B, T, 272\), got \(120, 263\)"),
        (np.zeros(272), r"must have the shape.*got \(272,\)"),
        (np.zeros((3, 272)), r"at least 4 frames, got the shape \(3, 272\)"),
        (np.zeros((0, 8, 272)), "at least 4 frames"),
        ([[0.0] * 272] * 8, "must be a NumPy array or a tensor, got list"),
        (np.where(np.arange(8)[:, None] == 5, np.nan, np.zeros((8, 272))), "frame 5 is not .1 such frames"),
        (torch.full((2, 8, 272), torch.inf), "frame 0 is not .16 such frames"),
        (np.full((8, 272), 1e300), "must be finite in float32, but frame 0 is not"),
        (np.full((8, 272), 1j), "must hold real numbers, got torch.complex128"),
        (np.full((8, 272), "a"), "must hold numbers, got <U1"),
    ],
)
def test_wrong_motions_get_one_sentence(tiny_model, given, message):
    for call in (tiny_model.encode, tiny_model):
        with pytest.raises(UserError, match=message):
            call(given)


def test_wrong_motions_in_a_batch_are_named(tiny_model, motion):
    with pytest.raises(UserError, match=r"motions\[1\] must have the shape \(T, 272\), got \(8, 251\)"):
        tiny_model.encode_batch([motion(8), np.zeros((8, 251))])
    with pytest.raises(UserError, match="at least one motion, got none"):
        tiny_model.encode_batch([])
    for call, given in ((tiny_model.encode_batch, [motion(8)]), (tiny_model.decode_batch, np.zeros((4, 1, 3), int))):
        with pytest.raises(UserError, match="batch_size must be an integer of at least 1, got -1"):
            call(given, batch_size=-1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(5, 1, 3, dtype=torch.int64), r"shape \(4, B, T'\) and not be empty, got \(5, 1, 3\)"),
        (torch.zeros(4, 1, 0, dtype=torch.int64), "not be empty"),
        (torch.full((4, 1, 3), 16), "0 to 15.*got 16 to 16"),
        (torch.full((4, 1, 3), -2), "got -2 to -2"),
        (torch.zeros(4, 1, 3), "must be integers, got torch.float32"),
        ([[[0]]] * 4, "must be a tensor or a NumPy array, got list"),
    ],
)
def test_wrong_tokens_get_one_sentence(tiny_model, given, message):
    with pytest.raises(UserError, match=message):
        tiny_model.decode(given)


def test_lengths_must_fit_the_tokens(tiny_model, motion):
    tokens = tiny_model.encode_batch([motion(8), motion(16, 1)])
    with pytest.raises(UserError, match=r"lengths\[0\] must lie in 0 to 8.*got 9"):
        tiny_model.decode_batch(tokens, [9, 16])
    with pytest.raises(UserError, match=r"must hold 2 numbers.*got 1"):
        tiny_model.decode_batch(tokens, [8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "output_dim must be a multiple of groups, got output_dim=512 and groups=3"),
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"codebook_size": 12.5}, "codebook_size must be an integer"),
        ({"depth": True}, "depth must be an integer"),
        ({"activation": "tanh"}, "activation must be one of relu, silu, gelu, got 'tanh'"),
        ({"decay": 1.0}, "decay must be a number at least 0 and below 1, got 1.0"),
        ({"fps": float("nan")}, "fps must be a number at least 0.1 and at most 1000, got nan"),
        ({"fps": 1e300}, r"fps must be a number at least 0.1 and at most 1000, got 1e\+300"),
        ({"width": 10**5000}, "width must be an integer of at most 2147483647, got a larger one"),
        ({"down_stages": 20}, "down_stages must be an integer of at most 16"),
        ({"depth": 1000}, "depth must be an integer of at most 64"),
        ({"dilation_growth": 10**6}, "the widest dilation.*must be at most 2147483647, got dilation_growth=1000000"),
        ({"commitment_weight": -1}, "commitment_weight must be a number at least 0"),
    ],
)
def test_wrong_settings_get_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(MotionVQVAEConfig(), **changes)


def test_settings_return_from_their_dict():
    config = MotionVQVAEConfig(width=16, fps=20.0)
    assert MotionVQVAEConfig.from_dict({**config.to_dict(), "training": {"steps": 1}}) == config
    with pytest.raises(UserError, match="keys that a motion-vqvae does not know: nb_code; pass config="):
        MotionVQVAEConfig.from_dict({"nb_code": 512})
    with pytest.raises(UserError, match="has the format 'fastvq-motion-vqvae/2'"):
        MotionVQVAEConfig.from_dict({"format": "fastvq-motion-vqvae/2"})
