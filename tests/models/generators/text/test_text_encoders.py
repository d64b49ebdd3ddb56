"""Text encoders: vectors of unit length, the same ones for a text whatever it is encoded with, and clear refusals."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvq.models.errors import UserError
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.generators.text.cached import CachedTextEncoder
from fastvq.models.generators.text.encoder import OneText, TextEncoder
from fastvq.models.generators.text.hashed import HashNgramEncoder

# Of "walk" in 8 dimensions: generators that were trained on these vectors live longer than a version.
PINNED_SIGNS = [False, False, False, False, False, True, True, False]
TEXTS = ["a person walks forward", "a person waves with the left hand and sits down"]


@pytest.fixture(params=["hash", "clip"], name="encoder")
def encoder_fixture(request, tmp_path):
    if request.param == "hash":
        return open_text_encoder("hash")
    return open_text_encoder(f"clip:{request.getfixturevalue('clip_folder')}", cache=tmp_path / "cache")


def test_vectors_have_unit_length_and_a_text_has_the_same_ones_alone(encoder):
    both = encoder.encode(TEXTS)
    assert both.tokens.shape == (2, both.mask.shape[1], encoder.dim)
    assert both.pooled.shape == (2, encoder.dim)
    torch.testing.assert_close(both.pooled.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(both.tokens[both.mask].norm(dim=-1), torch.ones(int(both.mask.sum())))
    assert not both.tokens[~both.mask].any()
    alone = encoder.encode(TEXTS[:1])
    length = int(both.mask[0].sum())
    assert alone.tokens.shape[1] == length < both.tokens.shape[1]
    assert torch.equal(alone.tokens[0], both.tokens[0, :length])
    assert torch.equal(alone.pooled[0], both.pooled[0])
    assert not torch.equal(both.pooled[0], both.pooled[1])


def test_clip_gives_what_transformers_gives(clip_folder):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPTextModelWithProjection.from_pretrained(str(clip_folder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(clip_folder))
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS[:1], return_tensors="pt")).text_embeds
    found = open_text_encoder(f"clip:{clip_folder}").encode(TEXTS[:1]).pooled
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True))


def test_hashed_texts_are_near_where_they_share_words():
    pooled = (
        HashNgramEncoder()
        .encode(["a person walks to the left", "a person walks to the right", "somebody jumps up twice"])
        .pooled
    )
    near, far = float(pooled[0] @ pooled[1]), float(pooled[0] @ pooled[2])
    assert 0.5 < near < 0.95
    assert abs(far) < 0.25  # directions in 512 dimensions are near to orthogonal
    same = HashNgramEncoder().encode(["Walk, LEFT!", "walk left"]).pooled
    assert torch.equal(same[0], same[1])
    first, other = HashNgramEncoder(), HashNgramEncoder(seed=1)
    assert first.identity != other.identity
    assert not torch.equal(first.encode(["walk"]).pooled, other.encode(["walk"]).pooled)


def test_hashed_vectors_stay_what_they_are():
    pooled = HashNgramEncoder(dim=8).encode(["walk"]).pooled[0]
    assert (pooled > 0).tolist() == PINNED_SIGNS


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one text"),
        ("walk", "list"),
        (["walk", "  "], r"texts\[1\] must say what to do"),
        (["?!"], "no words"),
        (["walk " * 78], "78 words, and this encoder takes 77: shorten it"),
    ],
    ids=str,
)
def test_empty_and_long_texts_are_refused_in_a_sentence(texts, message):
    with pytest.raises(UserError, match=message):
        open_text_encoder("hash").encode(texts)


def test_clip_refuses_a_text_that_it_would_cut(clip_folder, tmp_path):
    encoder = open_text_encoder(f"clip:{clip_folder}", cache=tmp_path)
    with pytest.raises(UserError, match="has 49 tokens, and this encoder takes 48: shorten it"):
        encoder.encode(["a" * 47])
    assert encoder.encode(["a" * 46]).tokens.shape[1] == 48
    with pytest.raises(UserError, match="must say what to do"):
        encoder.encode([""])


class Counting(TextEncoder):
    """Counts how often it is asked."""

    dim, identity = 3, "counting"

    def __init__(self) -> None:
        self.asked = 0

    def encode_one(self, text: str) -> OneText:
        self.asked += 1
        vectors = torch.full((len(text), 3), float(self.asked))
        return OneText(vectors, vectors[0])


def test_a_text_is_encoded_once_and_a_damaged_file_is_written_anew(tmp_path):
    inner = Counting()
    encoder = CachedTextEncoder(inner, tmp_path)
    first = encoder.encode(["walk", "run"])
    again = CachedTextEncoder(inner, tmp_path).encode(["run", "walk"])
    assert inner.asked == 2
    assert torch.equal(again.pooled, first.pooled.flip(0))
    path = encoder.path("walk")
    path.write_bytes(path.read_bytes()[:20])
    encoder.encode(["walk"])
    assert inner.asked == 3
    assert CachedTextEncoder(inner, tmp_path).encode(["walk"]).pooled[0, 0] == 3
    assert torch.equal(*inner.encode(["jump", "jump"]).pooled)
    assert inner.asked == 4
    inner.identity = "other weights"
    CachedTextEncoder(inner, tmp_path).encode(["walk"])
    assert inner.asked == 5
    assert not list(tmp_path.rglob("*.partial"))


def test_other_weights_have_another_identity(clip_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPTextModelWithProjection.from_pretrained(str(clip_folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(clip_folder))
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1
    for part in (model, tokenizer):
        part.save_pretrained(str(tmp_path / "other"))
    cache = tmp_path / "cache"
    first, other = (open_text_encoder(f"clip:{folder}", cache=cache) for folder in (clip_folder, tmp_path / "other"))
    assert first.identity != other.identity
    assert first.identity == open_text_encoder(f"clip:{clip_folder}", cache=cache).identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", "there is no text encoder 'bert': give hash, clip:FOLDER"),
        ("clip:", "there is no text encoder"),
        ("clip:nowhere", "there is no folder nowhere"),
        ("sentence:nowhere", "there is no folder nowhere"),
        ("open-clip:ViT-B-32", "there is no text encoder"),
        ("open-clip:ViT-B-32:nowhere.pt", "there is no file nowhere.pt"),
    ],
)
def test_what_is_not_there_is_named(name, message):
    with pytest.raises(UserError, match=message):
        open_text_encoder(name)


def test_a_folder_that_holds_something_else_is_named(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no CLIP that transformers reads"):
        open_text_encoder(f"clip:{tmp_path}")
    with pytest.raises(UserError, match=r"has no modules\.json"):
        open_text_encoder(f"sentence:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("clip:{}", "transformers", "pip install transformers"),
        ("sentence:{}", "sentence_transformers", "pip install sentence-transformers"),
        ("open-clip:ViT-B-32:{}/weights.pt", "open_clip", "pip install open_clip_torch"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(name, package, install, tmp_path, monkeypatch):
    for file in ("config.json", "modules.json", "weights.pt"):
        (tmp_path / file).write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=install):
        open_text_encoder(name.format(tmp_path))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tokens", torch.full((4, 3), torch.nan)),
        ("tokens", torch.zeros(0, 3)),
        ("tokens", torch.zeros(())),
        ("pooled", torch.zeros(3, dtype=torch.float16)),
    ],
    ids=["nan", "none", "scalar", "half"],
)
def test_a_kept_encoding_that_cannot_be_one_is_made_anew(tmp_path, name, wrong):
    encoder = CachedTextEncoder(Counting(), tmp_path)
    encoder.encode(["walk"])
    path = encoder.path("walk")
    save_file({**load_file(path), name: wrong}, path)
    found = encoder.encode(["walk"])
    assert bool((found.tokens == 2).all())
    assert found.tokens.shape == (1, 4, 3)
    assert torch.equal(load_file(path)["pooled"], torch.full((3,), 2.0))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"texts\[1\] holds bytes that are no text, 'walk \\udcff': write it in"):
        CachedTextEncoder(Counting(), tmp_path).encode(["walk", "walk \udcff"])
