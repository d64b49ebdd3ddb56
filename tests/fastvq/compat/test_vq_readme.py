"""The peer's README, snippet by snippet for the quantizers with a codebook, with only the import line changed."""

import doctest
import importlib
import re
from importlib.metadata import metadata

import pytest
import torch

pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")

NAMES = "VectorQuantize|ResidualVQ|GroupedResidualVQ|SimVQ|ResidualSimVQ"
SNIPPETS = [
    block
    for block in re.findall(r"```python\n(.*?)```", metadata("vector-quantize-pytorch").get_payload(), re.DOTALL)
    if re.search(rf"from vector_quantize_pytorch import ({NAMES})\n", block)
]
CLASSES = [re.search(rf"import ({NAMES})\n", snippet).group(1) for snippet in SNIPPETS]
SEQUENCE = {"quantized": (1, 1024, 256), "indices": (1, 1024), "commit_loss": ()}
STACK = {"quantized": (1, 1024, 256), "indices": (1, 1024, 8), "commit_loss": (8,)}
# What the README's comments and assertions say of the variables, in its order. Where a comment has (1,) for a loss,
# or (1, 8) for those of a stack, the peer returns (), or (8,), and so do we.
SHAPES = [
    SEQUENCE,
    {**STACK, "all_codes": (8, 1, 1024, 256)},
    {},
    STACK,
    {"quantized": (1, 1024, 256), "indices": (2, 1, 1024, 8), "commit_loss": (2, 8)},
    {"quantized": (1, 1024, 256), "indices": (1, 1024, 4), "commit_loss": (4,)},
    {},
    None,
    SEQUENCE,
    SEQUENCE,
    SEQUENCE,
    {"quantized": (1, 256, 32, 32), "indices": (1, 32, 32), "loss": ()},
    {"quantized": (1, 256, 32, 32), "indices": (1, 32, 32, 8), "loss": ()},
    {"quantized": (1, 1024, 512), "indices": (1, 1024), "commit_loss": ()},
    {"quantized": (1, 1024, 512), "indices": (1, 1024, 4), "commit_loss": (4,)},
]


def test_all_snippets_are_found():
    assert len(SNIPPETS) == len(SHAPES)


@pytest.mark.parametrize(
    ("snippet", "shapes"), list(zip(SNIPPETS, SHAPES, strict=False)), ids=[f"{n}-{c}" for n, c in enumerate(CLASSES)]
)
def test_snippet(snippet, shapes):
    torch.manual_seed(0)
    changed = snippet.replace(
        "from vector_quantize_pytorch import", "from fastvq.compat.vector_quantize_pytorch import"
    )
    assert changed.count("fastvq") == 1
    names: dict = {}
    if shapes is None:
        # DiVeQ without dead codes' replacement, which the peer refuses as well.
        with pytest.raises(AssertionError, match="dead code"):
            exec(compile(snippet, "README", "exec"), {})
        with pytest.raises(ValueError, match="threshold_ema_dead_code above 0"):
            exec(compile(changed, "README", "exec"), names)
        return
    exec(compile(changed, "README", "exec"), names)
    for name, shape in shapes.items():
        assert tuple(names[name].shape) == shape


@pytest.mark.parametrize(
    "name", ["codebook", "vector_quantize", "residual", "grouped_residual", "sim_vq", "residual_sim_vq"]
)
def test_docstring(name):
    """Each has one runnable snippet, and says what users need to know."""
    module = importlib.import_module(f"fastvq.compat.vector_quantize_pytorch.{name}")
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert not result.failed
    (kind,) = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    assert all(f"{part}:" in kind.__doc__ for part in ("Args", "Raises", "Source"))
    assert "Buffers" in kind.__doc__
    assert "shape" in kind.__doc__
