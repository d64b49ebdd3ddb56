import dataclasses
import json

import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.evaluation.embedding import embedding_metrics
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.evaluation.evaluator import (
    EvaluatorConfig,
    MotionTextEvaluator,
    hashed_words,
    identity,
    load_evaluator,
)
from fastvq.models.evaluation.frechet import frechet_distance
from fastvq.models.evaluation.official_evaluator import load_official, open_evaluator
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAE, ResidualVQVAEConfig
from fastvq.models.training.data import FeatureClip

TINY = {
    "movement_hidden": 12,
    "movement_dim": 10,
    "motion_hidden": 8,
    "text_hidden": 6,
    "embedding_dim": 7,
    "word_dim": 5,
    "buckets": 50,
}


def make(**sizes):
    torch.manual_seed(0)
    config = EvaluatorConfig(**{**TINY, **sizes})
    width = config.input_dim
    mean, std = np.linspace(-1, 1, width), np.linspace(0, 2, width)
    return MotionTextEvaluator(config, mean=mean, std=std, label="test evaluator").eval()


def motions(*lengths, width=263):
    draw = np.random.default_rng(0)
    return [draw.normal(size=(length, width)).astype(np.float32) for length in lengths]


def test_the_published_sizes_are_the_default():
    with torch.device("meta"):
        model = MotionTextEvaluator(mean=np.zeros(263), std=np.ones(263), label="")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["movement_encoder.main.0.weight"] == (512, 259, 4)
    assert shapes["movement_encoder.main.3.weight"] == (512, 512, 4)
    assert shapes["motion_encoder.gru.weight_hh_l0_reverse"] == (3072, 1024)
    assert shapes["motion_encoder.output_net.3.weight"] == (512, 1024)
    assert shapes["text_encoder.pos_emb.weight"] == (300, 15)
    assert shapes["text_encoder.gru.weight_ih_l0"] == (1536, 512)


@pytest.mark.parametrize("width", [263, 251, 272])
def test_contacts_are_not_looked_at_and_all_else_is(width):
    model = make(input_dim=width)
    (motion,) = motions(8, width=width)
    before = model.embed_motions([motion])
    for column in (1, width // 2, width - 5, width - 1):
        other = motion.copy()
        other[:, column] += 1
        changed = not np.array_equal(model.embed_motions([other]), before)
        assert changed == (width == 272 or column < width - 4), column


def test_a_motion_has_the_embedding_that_it_has_alone():
    model, clips = make(), motions(8, 20, 8, 4, 20, 8)
    together = model.embed_motions(clips, batch_size=2)
    alone = np.concatenate([model.embed_motions([clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert len({row.tobytes() for row in np.round(together, 5)}) == len(clips)


def test_both_directions_read_to_the_real_ends():
    """The last state of each direction is that of the real steps: what follows them changes nothing."""
    model = make()
    steps = torch.randn(2, 5, 10)
    lengths = torch.tensor([5, 3])
    changed = steps.clone()
    changed[1, 3:] = 9.0
    assert torch.equal(model.motion_encoder(steps, lengths), model.motion_encoder(changed, lengths))
    changed[0, 4] = 9.0
    assert not torch.equal(model.motion_encoder(steps, lengths)[0], model.motion_encoder(changed, lengths)[0])
    alone = model.motion_encoder(steps[1:, :3], torch.tensor([3]))
    torch.testing.assert_close(model.motion_encoder(steps, lengths)[1:], alone)


def test_texts_are_words_in_order():
    model = make(longest_text=3)
    rows = model.embed_texts(["walk on left", "Walk, on LEFT!", "left on walk", "walk on left foot", ""])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    np.testing.assert_allclose(rows[3], rows[0], atol=1e-6, err_msg="words beyond the longest are cut off")
    assert np.abs(rows[2] - rows[0]).max() > 1e-3
    assert np.isfinite(rows).all()
    assert all(1 <= row < 50 for row in hashed_words("a person walks 2 steps", 50))


def test_windows():
    clip = np.arange(11)[:, None].repeat(263, axis=1)
    assert [part[0, 0] for part in make(window=4, stride=3).windows(clip)] == [0, 3, 6]
    assert make(window=12).windows(clip) == []
    (whole,) = make(window=0).windows(clip)
    assert len(whole) == 8
    (cut,) = make(window=0, longest=4).windows(clip)
    assert len(cut) == 4
    assert make(window=0).windows(clip[:3]) == []


def test_saved_and_loaded(tmp_path):
    model = make(window=8)
    model.save(tmp_path / "evaluator", {"seed": 3})
    for other in (load_evaluator(tmp_path / "evaluator"), open_evaluator(tmp_path / "evaluator")):
        assert other.config == model.config
        assert other.name == "FID (test evaluator)"
        assert np.array_equal(other.embed_motions(motions(8)), model.embed_motions(motions(8)))
        assert np.array_equal(other.embed_texts(["walk"]), model.embed_texts(["walk"]))
        assert identity(other) == identity(model)
    assert json.loads((tmp_path / "evaluator" / "evaluator.json").read_text())["training"] == {"seed": 3}
    with torch.no_grad():
        model.motion_encoder.hidden[0, 0, 0] += 1e-3
    assert identity(load_evaluator(tmp_path / "evaluator")) != identity(model)


def test_what_is_no_evaluator_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no evaluator: give the folder of fastvq train-evaluator"):
        open_evaluator(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no evaluator"):
        open_evaluator(tmp_path)
    make().save(tmp_path / "e", {})
    file = tmp_path / "e" / "evaluator.json"
    values = json.loads(file.read_text())
    for changes, complaint in (
        ({"format": "other/2"}, "has the format 'other/2'"),
        ({"config": {"size": 3}}, "of another version of fastvq"),
        ({"config": {**TINY, "embedding_dim": 9}}, "must have the shape"),
        ({"config": {**TINY, "window": 6}}, "window must be a multiple of 4"),
    ):
        file.write_text(json.dumps({**values, **changes}))
        with pytest.raises(UserError, match=complaint):
            load_evaluator(tmp_path / "e")
    file.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_evaluator(tmp_path / "e")


def official(tmp_path, columns=259, **changes):
    """A file of the published layout, in small sizes."""
    model = make(input_dim=columns + 4, buckets=0)
    parts = {"movement_encoder": {}, "motion_encoder": {}, "text_encoder": {}}
    for name, tensor in model.state_dict().items():
        part, _, key = name.partition(".")
        if part in parts:
            parts[part][key] = tensor
    contents = {**parts, "opt_text_encoder": {"state": {}, "param_groups": []}, "epoch": 7, "iter": 1000, **changes}
    torch.save({name: value for name, value in contents.items() if value is not None}, tmp_path / "finest.tar")
    np.save(tmp_path / "mean.npy", model.mean.numpy())
    np.save(tmp_path / "std.npy", model.std.numpy())
    return model


@pytest.mark.parametrize("columns", [259, 247])
def test_the_published_layout_loads(tmp_path, columns):
    model = official(tmp_path, columns)
    loaded = open_evaluator(tmp_path / "finest.tar")
    assert loaded.config == dataclasses.replace(model.config, window=0)
    clip = motions(16, width=columns + 4)
    assert np.array_equal(loaded.embed_motions(clip), model.embed_motions(clip))
    assert loaded.name == "FID (official evaluator, finest.tar)"
    assert not loaded.training
    with pytest.raises(UserError, match="takes GloVe vectors for words, which are not at hand"):
        loaded.embed_texts(["walk"])
    words, tags = torch.randn(1, 3, 5), torch.eye(15)[None, :3]
    with torch.no_grad():
        plain, tagged = (loaded.text_encoder(words, torch.tensor([3]), given) for given in (None, tags))
    assert not torch.equal(plain, tagged)


def test_a_file_that_is_no_published_evaluator_is_refused(tmp_path):
    for changes, complaint in (
        ({"motion_encoder": None}, "it lacks motion_encoder"),
        ({"movement_encoder": {"main.0.weight": torch.zeros(3, 259, 4)}}, "lacks 'movement_encoder.main.3.weight'"),
        ({"text_encoder": {"input_emb.weight": "no tensor"}}, "must hold tensors in its networks"),
        ({"epoch": object}, "was refused: it holds Python objects"),
    ):
        official(tmp_path, **changes)
        with pytest.raises(UserError, match=complaint):
            load_official(tmp_path / "finest.tar")
    official(tmp_path, columns=268)
    with pytest.raises(UserError, match="takes 272 features, expected 259"):
        load_official(tmp_path / "finest.tar")
    official(tmp_path)
    (tmp_path / "std.npy").unlink()
    with pytest.raises(UserError, match=r"needs std\.npy beside it"):
        load_official(tmp_path / "finest.tar")
    (tmp_path / "finest.tar").write_bytes((tmp_path / "finest.tar").read_bytes()[:2000])
    with pytest.raises(UserError, match="is not a whole PyTorch file"):
        load_official(tmp_path / "finest.tar")


def test_metrics_are_over_windows():
    model, clips = make(window=8, stride=4), motions(20, 6, 12)
    decoded = [clip + np.float32(0.1) for clip in clips]
    found = embedding_metrics(model, clips, decoded, ["a", "b", ""])
    before, after = ([part for clip in x for part in model.windows(clip)] for x in (clips, decoded))
    assert (found["fid_windows"], found["fid_clips"], found["fid_dimensions"]) == (6, 2, 7)
    assert found["fid"] == frechet_distance(model.embed_motions(after), model.embed_motions(before))
    assert found["fid_name"] == "FID (test evaluator)"
    assert "top1" not in found
    assert embedding_metrics(model, clips, clips, ["", "", ""])["fid"] == pytest.approx(0, abs=1e-9)
    many = embedding_metrics(model, motions(200), [motion * 0 for motion in motions(200)], ["a person walks"])
    assert (many["top1"], many["original_top1"]) == (1.0, 1.0), "all say the same, so that any is right"
    with pytest.raises(UserError, match="needs two windows of 8 frames, and the clips have 1"):
        embedding_metrics(model, clips[:2][1:] + motions(9), clips[:2][1:] + motions(9), ["", ""])
    with pytest.raises(UserError, match="takes 263 features and the model has 272"):
        embedding_metrics(model, motions(9, width=272), motions(9, width=272), [""])


def test_an_evaluation_has_the_fid_of_its_own_motions():

    model = ResidualVQVAE(ResidualVQVAEConfig(width=16, output_dim=8, stages=2, codebook_size=8, depth=1)).train()
    clips = [
        FeatureClip(str(index), motion, format_of(263).to_joints(motion), text="walk")
        for index, motion in enumerate(motions(40, 30))
    ]
    with torch.no_grad():
        model(clips[0].features)
    model.eval()
    evaluator = make(window=8)
    result = evaluate(model, clips, evaluator=evaluator)
    decoded = [model(clip.features)[0][0].detach().numpy() for clip in clips]
    wanted = embedding_metrics(evaluator, [clip.features for clip in clips], decoded, ["walk", "walk"])
    assert result["fid"] == pytest.approx(wanted["fid"], rel=1e-3)
    assert result["fid_windows"] == wanted["fid_windows"] == 15
    assert "fid" not in evaluate(model, clips)
