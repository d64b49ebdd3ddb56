import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.evaluation.heatmap_vqgan import evaluate_heatmaps, windows_of
from fastvq.models.evaluation.heatmaps import HeatmapScores
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapReconstruction, HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.heatmap_data import prepare_joints

CONFIG = HeatmapVQGANConfig(
    frames=4,
    size=32,
    channels=(4, 8),
    down_stages=2,
    latent_channels=4,
    code_dim=4,
    codebook_size=8,
    norm_groups=2,
)


@pytest.fixture(scope="module", name="clips")
def clips_fixture():
    return prepare_joints(generate_clips(2, seed=0), fps=5.0, least=4)


class _Perfect(HeatmapVQGAN):
    """Gives back what it gets, to every frame but the first of each window."""

    def forward(self, heatmaps):
        result = super().forward(heatmaps)
        shown = heatmaps.clone()
        shown[:, :, 0] = 0
        return HeatmapReconstruction(shown, result.indices, result.loss)


def test_a_model_is_measured_by_its_definitions(clips):
    torch.manual_seed(0)
    model, form = HeatmapVQGAN(CONFIG).eval(), HeatmapFormat(size=32)
    windows = windows_of(clips, 4)
    assert len(windows) == sum(clip.frames // 4 for clip in clips)
    assert torch.equal(windows[1], torch.from_numpy(clips[0].joints[4:8]))
    calls = []
    found = evaluate_heatmaps(model, clips, form, batch_size=3, progress=lambda *at: calls.append(at))
    assert calls[-1] == (len(windows), len(windows))
    assert found["windows"] == len(windows)
    assert found["tokens"] == len(windows) * 8 * 8
    heatmaps = form.render(windows)
    with torch.no_grad():
        whole = model(heatmaps)
    scores = HeatmapScores()
    scores.add(whole.heatmaps, heatmaps)
    again = evaluate_heatmaps(model, clips, form, batch_size=1)
    assert all(again[name] == pytest.approx(found[name], rel=1e-4) for name in found if name != "seconds")
    for name, value in scores.means().items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    assert found["quantizer_loss"] == pytest.approx(float(whole.loss), rel=1e-4)
    counts = torch.bincount(whole.indices.flatten(), minlength=8).double()
    share = counts[counts > 0] / counts.sum()
    assert found["perplexity"] == pytest.approx(float((-share * share.log()).sum().exp()), rel=1e-4)
    assert found["utilisation"] == pytest.approx(float((counts > 0).double().mean()))


def test_what_shows_the_pose_is_better_than_what_shows_another(clips):
    found = evaluate_heatmaps(_Perfect(CONFIG).eval(), clips, HeatmapFormat(size=32), batch_size=2)
    assert found["keypoints_found"] == pytest.approx(0.75, abs=0.01)  # nothing is found in empty frames
    assert found["keypoint_px"] < 1.5
    assert found["keypoint_px_original"] <= found["keypoint_px"] < found["keypoint_px_other"]
    single = evaluate_heatmaps(_Perfect(CONFIG).eval(), [_short(clips[0])], HeatmapFormat(size=32))
    assert single["windows"] == 1
    assert single["keypoint_px_other"] is None


def test_some_windows_are_spread_over_all(clips):
    windows = windows_of(clips, 4)
    asked = []

    class Recording(HeatmapVQGAN):
        def forward(self, heatmaps):
            asked.append(heatmaps)
            return super().forward(heatmaps)

    form = HeatmapFormat(size=32)
    model = Recording(CONFIG).eval()
    assert evaluate_heatmaps(model, clips, form, most_windows=3)["windows"] == 3
    middle = round((len(windows) - 1) / 2)
    assert torch.equal(torch.cat(asked), form.render(windows[[0, middle, -1]]))
    assert evaluate_heatmaps(model, clips, form, most_windows=10**6)["windows"] == len(windows)


def _short(clip):
    return prepare_joints([type(clip)(clip.name, clip.fps, clip.joints[:5])], fps=5.0, least=4)[0]


def test_clips_that_are_too_short_are_named(clips):
    with pytest.raises(UserError, match=r"at least the 4 frames of a window, and none of the 1 clips is that long"):
        windows_of([type(clips[0])("short", 5.0, clips[0].joints[:3])], 4)
