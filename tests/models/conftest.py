"""Small motions and models shared by the tests of tokenizers, training and evaluation."""

import copy
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvq.models.motion.features272 import features_to_joints
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.data import FeatureClip

TINY = MotionVQVAEConfig(width=16, output_dim=32, groups=4, codebook_size=16, depth=2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Models this small gain nothing from a second thread, and lose much where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compile_afresh():
    """The training step is one code object for all models, and torch compiles one only so many times."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def smooth_motion(frames: int, seed: int = 0) -> np.ndarray:
    """(frames, 272) float32: sines of a few seconds' period, so that a small model can follow them."""
    draw = np.random.default_rng(seed)
    speed, phase, size = draw.uniform(0.5, 4, 272), draw.uniform(0, 6, 272), draw.uniform(0.2, 1, 272)
    return (np.sin(np.arange(frames)[:, None] / 30 * speed + phase) * size).astype(np.float32)


@pytest.fixture
def motion() -> Callable[..., np.ndarray]:
    return smooth_motion


@pytest.fixture
def feature_clip() -> Callable[..., FeatureClip]:
    def make(frames: int, seed: int = 0, name: str | None = None, split: str = "train") -> FeatureClip:
        features = smooth_motion(frames, seed)
        return FeatureClip(name or f"clip{seed}", features, features_to_joints(features), split)

    return make


@pytest.fixture
def tiny_config() -> MotionVQVAEConfig:
    return TINY


@pytest.fixture(scope="session")
def _trained() -> MotionVQVAE:
    torch.manual_seed(0)
    model = MotionVQVAE(TINY, mean=np.linspace(-1, 1, 272), std=np.linspace(0.5, 2, 272)).train()
    with torch.no_grad():
        for seed in range(3):
            model(smooth_motion(128, seed))
    return model.eval()


@pytest.fixture
def tiny_model(_trained: MotionVQVAE) -> MotionVQVAE:
    """A model with codebooks from data and statistics other than 0 and 1, in evaluation mode."""
    return copy.deepcopy(_trained)


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which the system refuses files above a size, as a full disk would."""
    resource = pytest.importorskip("resource", reason="limits of file size exist on POSIX only")

    @contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights and a vocabulary of letters, as transformers writes it."""
    transformers = pytest.importorskip("transformers", reason="CLIP folders are read by transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(str(folder))
    return folder
