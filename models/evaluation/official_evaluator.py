"""The published evaluator's checkpoint, for those who have it (``EricGuo5513/text-to-motion``, ``finest.tar``).

It is a torch file of the three networks' state dicts (``movement_encoder``, ``motion_encoder``, ``text_encoder``)
beside those of their optimizers. The statistics of its features lie elsewhere in the same archive, in a ``meta``
folder; they are wanted beside it as ``mean.npy`` and ``std.npy``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import CONFIG, EvaluatorConfig, MotionTextEvaluator, load_evaluator
from fastvq.models.files import check_readable
from fastvq.models.tokenizers import pretrained

NETWORKS = ("movement_encoder", "motion_encoder", "text_encoder")
# Columns of the features without contacts -> all.
_WIDTHS = {259: 263, 247: 251}


def open_evaluator(path: Path) -> MotionTextEvaluator:
    """One of ours, a folder, or the published one, a file.

    Raises:
        UserError: neither is there.
    """
    path = Path(path)
    if path.is_dir():
        return load_evaluator(path)
    if path.is_file() and path.name != CONFIG:
        return load_official(path)
    raise UserError(f"{path} is no evaluator: give the folder of fastvq train-evaluator, or the published finest.tar")


def load_official(path: Path) -> MotionTextEvaluator:
    """The published evaluator; it embeds whole clips of up to 196 frames, and descriptions only as GloVe vectors.

    Args:
        path: the checkpoint, ``mean.npy`` and ``std.npy`` beside it.

    Raises:
        UserError: the file is no such checkpoint, holds more than tensors, or lacks its statistics.
    """
    path = Path(path)
    check_readable(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it holds Python objects beside tensors, and unpickling them could run code; keep "
            f"its entries {', '.join(NETWORKS)} alone, where you trust it"
        ) from error
    except Exception as error:  # damage makes the unpickler raise nearly anything
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a whole PyTorch file ({first_line}); copy or download it again") from error
    state = _state(values, path)
    config = _config(state, path)
    missing = [name for name in (pretrained.MEAN, pretrained.STD) if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path} needs {' and '.join(missing)} beside it: copy those of the meta folder of the same archive, "
            "with which the evaluator was trained"
        )
    mean, std = pretrained.read_statistics(path.parent, config.input_dim)
    model = MotionTextEvaluator(config, mean=mean, std=std, label=f"official evaluator, {path.name}")
    own = model.state_dict()
    state.update({name: own[name] for name in ("mean", "std")})
    pretrained.check_state(state, own, path)
    model.load_state_dict(state)
    return model.eval()


def _state(values: Any, path: Path) -> dict[str, Tensor]:
    """The three networks as one state dict."""
    parts = {name: values.get(name) for name in NETWORKS} if isinstance(values, dict) else {}
    absent = [name for name in NETWORKS if not isinstance(parts.get(name), dict) or not parts[name]]
    if absent:
        raise UserError(f"{path} is no checkpoint of the published evaluator: it lacks {', '.join(absent)}")
    state = {f"{name}.{key}": tensor for name in NETWORKS for key, tensor in values[name].items()}
    strange = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise UserError(f"{path} must hold tensors in its networks, got something else as {strange[0]}")
    return state


def _config(state: dict[str, Tensor], path: Path) -> EvaluatorConfig:
    """The sizes that the tensors have."""
    try:
        first, second = state["movement_encoder.main.0.weight"], state["movement_encoder.main.3.weight"]
        text, tags = state["text_encoder.input_emb.weight"], state["text_encoder.pos_emb.weight"]
        motion, last = state["motion_encoder.input_emb.weight"], state["motion_encoder.output_net.3.weight"]
        columns = int(first.shape[1])
        sizes = {
            "movement_hidden": first.shape[0],
            "movement_dim": second.shape[0],
            "motion_hidden": motion.shape[0],
            "text_hidden": text.shape[0],
            "embedding_dim": last.shape[0],
            "word_dim": text.shape[1],
            "tag_dim": tags.shape[1],
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is no checkpoint of the published evaluator: it lacks {error}") from error
    if columns not in _WIDTHS:
        raise UserError(f"{path} takes {columns} features, expected 259 (HumanML3D) or 247 (KIT-ML)")
    named = {name: int(size) for name, size in sizes.items()}
    return EvaluatorConfig(input_dim=_WIDTHS[columns], buckets=0, window=0, **named)
