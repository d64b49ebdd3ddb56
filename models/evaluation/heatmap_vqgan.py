"""How well a heatmap tokenizer keeps motions: pictures, joints in them, and the use of its codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvq import metrics
from fastvq.models.errors import UserError
from fastvq.models.evaluation.heatmaps import HeatmapScores
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.keypoints import joint_distances
from fastvq.models.motion.clip import Clip
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN


def windows_of(clips: Sequence[Clip], frames: int) -> Tensor:
    """Consecutive windows of clips, (N, frames, J, 3) metres; what is left at the end of a clip is left out.

    Raises:
        UserError: no clip is as long as a window.
    """
    found = [
        torch.from_numpy(clip.joints[start : start + frames]).float()
        for clip in clips
        for start in range(0, clip.frames - frames + 1, frames)
    ]
    if not found:
        raise UserError(
            f"evaluation needs clips of at least the {frames} frames of a window, and none of the {len(clips)} clips "
            "is that long: give longer ones"
        )
    return torch.stack(found)


@torch.no_grad()
def evaluate_heatmaps(
    model: HeatmapVQGAN,
    clips: Sequence[Clip],
    form: HeatmapFormat,
    *,
    batch_size: int = 4,
    most_windows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Renders windows of clips, every joint as sure as can be, and compares them with what their tokens decode to.

    Args:
        model: in evaluation mode.
        clips: at the frame rate that the model was trained with.
        form: what its heatmaps are like.
        batch_size: windows at once.
        most_windows: so many at most, evenly spread over all there are.
        progress: called with how many windows are done, and how many there are.

    Returns:
        ssim, psnr (dB), l1, t_std: see :mod:`fastvq.models.evaluation.heatmaps`, means over the windows.
        quantizer_loss: mean over the windows.
        keypoint_px: median distance of joints found in the reconstruction from where they are; joints are looked for
            there, and one whose limbs are not there counts with the radius of the search.
        keypoint_px_original: the same in the heatmap itself, the least that could be expected.
        keypoint_px_other: the same in the heatmap of another window, half of all windows further on, which is what a
            reconstruction comes to that shows another pose; None of one window.
        keypoints_found: share of the joints whose limbs are there.
        perplexity, utilisation: of all tokens.
        windows, tokens, seconds: how much was measured, and how long encoding and decoding took.

    Raises:
        UserError: no clip is as long as a window.
    """
    windows = windows_of(clips, model.config.frames)
    if most_windows is not None and most_windows < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, most_windows).round().long()]
    device = model.last_weight.device
    scores, usage = HeatmapScores(), metrics.CodeUsage(1, model.config.codebook_size)
    errors: dict[str, list[Tensor]] = {"keypoint_px": [], "keypoint_px_original": [], "keypoint_px_other": []}
    loss, seconds, found_share = 0.0, 0.0, []
    for rows in torch.arange(len(windows)).split(batch_size):
        joints = windows[rows]
        heatmaps, truth = form.render(joints), form.views(joints)
        start = time.perf_counter()
        result = model(heatmaps.to(device))
        decoded = result.heatmaps.float().cpu()
        seconds += time.perf_counter() - start
        scores.add(decoded, heatmaps)
        usage(result.indices.unsqueeze(-1).cpu())
        loss += float(result.loss) * len(joints)
        shown = decoded.clamp(0, 1)
        others = form.render(windows[(rows + len(windows) // 2) % len(windows)])
        found = form.find_drawn(shown, truth)
        found_share.append(found.isfinite().all(dim=-1).float().flatten())
        errors["keypoint_px"].append(joint_distances(found, truth).flatten())
        errors["keypoint_px_original"].append(joint_distances(form.find_drawn(heatmaps, truth), truth).flatten())
        errors["keypoint_px_other"].append(joint_distances(form.find_drawn(others, truth), truth).flatten())
        if progress is not None:
            progress(int(rows[-1]) + 1, len(windows))
    medians: dict[str, float | None] = {name: float(torch.cat(values).median()) for name, values in errors.items()}
    if len(windows) == 1:
        medians["keypoint_px_other"] = None
    use = usage.compute(over_ranks=False)
    return {
        **scores.means(),
        "quantizer_loss": loss / len(windows),
        **medians,
        "keypoints_found": float(torch.cat(found_share).mean()),
        "perplexity": float(use.perplexity[0]),
        "utilisation": float(use.utilisation[0]),
        "windows": len(windows),
        "tokens": int(usage.counts.sum()),
        "seconds": seconds,
    }
