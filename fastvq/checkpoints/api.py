"""Loading, saving, and telling layouts apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from .files import flat, read, read_config, write
from .keys import Tensors, join, roots, some, within
from .layouts import TABLE, Layout
from .trees import Tree, names_of

LAYOUTS = tuple(layout.name for layout in TABLE)
NATIVE = "codebooks.codebook"  # how fastvq's own modules name their codes
Source = str | os.PathLike[str] | Mapping[str, Any]


class _Place(NamedTuple):
    layout: Layout
    tree: Tree
    root: str


def load(source: Source, layout: str = "auto", *, prefix: str | None = None, **options: Any) -> nn.Module:
    """The quantizer of a published checkpoint as a native module, in eval mode.

    ====================================  ==================================================================
    layout                                native module
    ====================================  ==================================================================
    ``encodec``, ``hf-encodec``           :class:`fastvq.ResidualVQ`, EMA 0.99 (also AudioCraft's)
    ``mimi``, ``hf-mimi``                 :class:`fastvq.SplitResidualVQ`, EMA 0.99, relative usage 0.1
    ``dac``, ``hf-dac``, ``snac``,        :class:`fastvq.ProjectedResidualVQ`, learned codes
    ``dac-parametrized``
    ``momask``                            :class:`fastvq.ResidualVQ`, EMA 0.99, absolute usage 1
    ``t2m-gpt``                           :class:`fastvq.VectorQuantize`, EMA 0.99, absolute usage 1
    ``vector-quantize-pytorch``           :class:`fastvq.VectorQuantize` (:class:`fastvq.GroupedVQ` with a codebook
                                          for each head), :class:`fastvq.ResidualVQ`,
                                          :class:`fastvq.GroupedResidualVQ`, :class:`fastvq.SimVQ`,
                                          :class:`fastvq.ResidualSimVQ`; EMA 0.8
    ====================================  ==================================================================

    "hf" is Hugging Face transformers; "dac-parametrized" is DAC written by the newer form of weight norm, which
    looks as SNAC does. Channels lie where the source's module takes them: on axis 1, for vector-quantize-pytorch
    last; give ``channel_dim`` otherwise.

    Args:
        source: a file (safetensors, or one that torch.save wrote, of which only tensors are read), or a state dict,
            of the quantizer or of a whole model; nested dicts such as ``{"net": {...}}`` are searched.
        layout: one of the above, or "auto" to go by the names of the tensors.
        prefix: where the quantizer is, e.g. "quantizer" or "encoder.vq"; needed where there are several.
        options: arguments of the native module that the file does not tell, such as ``rules``, ``estimator``,
            ``commitment_weight``, ``channel_dim``, ``dropout``, and

            * ``strides``: of SNAC's stages; by default the ``vq_strides`` of the config.json beside the file.
            * ``weight_norm``: False folds the weight norm of DAC and SNAC, with which a module trains as the source
              does, but cannot be pickled as a whole.
            * ``metric``: "cosine" for a VectorQuantize with ``use_cosine_sim=True``.
            * ``heads``: of a VectorQuantize without projections.
            * ``shared``: whether stages share a codebook; by default where they are equal (vector-quantize-pytorch,
              MoMask).

    Returns:
        The module: float64 where the file is, else float32; already initialised where the file says so.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an unknown option.
        ValueError: an unknown layout, none or several quantizers found, tensors that are missing, left over, of other
            shapes than their neighbours, or not finite; a damaged file, or a pickle that could run code.

    Example:
        >>> import torch
        >>> from fastvq import checkpoints
        >>> state = {f"quantizer.layers.{q}.codebook": torch.randn(512, 64) for q in range(6)}
        >>> vq = checkpoints.load({"vq_model": state})
        >>> tuple(vq.encode(torch.randn(2, 64, 49)).shape)
        (2, 49, 6)
    """
    place, tensors = _find(_state(source), layout, prefix)
    if not isinstance(source, Mapping):
        options = place.tree.configured(options, lambda: read_config(Path(source)))
    module = place.tree.read(tensors, dict(options))
    tensors.finish()
    return module.eval()


def save(
    module: nn.Module, path: str | os.PathLike[str] | None, layout: str, *, prefix: str | None = None
) -> dict[str, Tensor]:
    """Writes a native module in a layout.

    What :func:`load` gave is written as it was read, bit by bit. Layouts without statistics (DAC, SNAC, MoMask,
    T2M-GPT) lose them. Mimi's have no codes but sums and sizes, whose quotient they are: where a code is not exactly
    that, its size is rounded to a power of two so that the code stays.

    Args:
        module: of the class that the layout is read into, see :func:`load`.
        path: a file to write, as safetensors where its name ends so, else by torch.save; or None.
        layout: one of ``fastvq.checkpoints.LAYOUTS``.
        prefix: of the tensors' names; None: that of the published files, e.g. "quantizer". "" for none.

    Returns:
        The tensors by name, on the CPU; ``model.load_state_dict({**model.state_dict(), **tensors})`` puts them into
        a model of the layout.

    Raises:
        ValueError: an unknown layout, a module that it cannot hold, a file that cannot be written: what stood there
            then still does.

    Example:
        >>> from fastvq import ResidualVQ, checkpoints
        >>> state = checkpoints.save(ResidualVQ(64, 512, num_quantizers=6, channel_dim=1), None, "momask")
        >>> sorted(state)[0], tuple(state["quantizer.layers.0.codebook"].shape)
        ('quantizer.layers.0.codebook', (512, 64))
    """
    chosen = _layout(layout)
    tree = next((tree for kind in type(module).__mro__ for tree in chosen.trees if tree.writes(kind)), None)
    if tree is None:
        raise ValueError(f"the {layout} layout holds a {names_of(chosen.trees)}, got {type(module).__name__}")
    prefix = chosen.prefix if prefix is None else prefix
    try:
        state = {join(prefix, name): tensor for name, tensor in tree.write(module).items()}
    except ValueError as error:
        raise ValueError(f"this module cannot be saved as {layout}: {error}") from error
    if path is not None:
        write(Path(path), state)
    return state


def detect(source: Source, *, prefix: str | None = None) -> str:
    """The layout of a file or state dict, by the names of its tensors.

    Raises:
        ValueError: none or several quantizers found.

    Example:
        >>> import torch
        >>> from fastvq import checkpoints
        >>> checkpoints.detect({"net": {"vqvae.quantizer.codebook": torch.randn(512, 512)}})
        't2m-gpt'
    """
    return _find(_state(source), "auto", prefix)[0].layout.name


def _state(source: Source) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        return flat(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be a path or a state dict, got {type(source).__name__}; of a module give .state_dict()"
        )
    return read(Path(source))


def _layout(name: str) -> Layout:
    for layout in TABLE:
        if layout.name == name:
            return layout
    raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {name!r}")


def _find(state: Mapping[str, Tensor], layout: str, prefix: str | None) -> tuple[_Place, Tensors]:
    """The one quantizer of a state."""
    prefix = (prefix or "").rstrip(".")
    inner = within(state, prefix)
    if layout == "auto":
        places = _places(inner, (item for item in TABLE if item.detected), hints=False)
    else:
        places = _places(inner, (_layout(layout),), hints=True)
    if len(places) > 1:
        # The prefix is the quantizer, or else what AudioCraft keeps as the best of its training.
        exact = [place for place in places if not place.root]
        best = [place for place in places if place.root.partition(".")[0] == "best_state"]
        places = exact or (best if len(best) == 1 else places)
    if not places:
        raise ValueError(_nothing(inner, layout, prefix))
    if len(places) > 1:
        found = some([f"{join(prefix, place.root)!r} ({place.layout.name})" for place in places])
        raise ValueError(f"there are {len(places)} quantizers, {found}: choose one with prefix=")
    place = places[0]
    return place, Tensors(within(inner, place.root), join(prefix, place.root), place.layout.name)


def _places(state: Mapping[str, Tensor], layouts: Iterable[Layout], *, hints: bool) -> list[_Place]:
    """Where quantizers are. A tensor belongs to the first layout that finds a quantizer above it."""
    left, places = [name for name in state if not name.endswith(NATIVE)], []
    for layout in layouts:
        for tree in layout.trees:
            marks = tree.marks + (tree.hints if hints else ())
            found = sorted({root for mark in marks for root in roots(left, mark)})
            for root in found:
                left = [name for name in left if root and not name.startswith(root + ".")]
                places.append(_Place(layout, tree, root))
    return places


def _nothing(state: Mapping[str, Tensor], layout: str, prefix: str) -> str:
    where = f" under {prefix!r}" if prefix else ""
    if not state:
        return f"there are no tensors{where}: give the state dict of a model, or another prefix"
    names = some(sorted(state))
    if any(name.endswith(NATIVE) for name in state):
        return f"these are fastvq's own tensors ({names}): give them to load_state_dict"
    known = f"the {layout} layout" if layout != "auto" else f"any of the layouts {', '.join(LAYOUTS)}"
    return f"no quantizer of {known} is{where} among {names}; name the layout, or save the quantizer's state alone"
