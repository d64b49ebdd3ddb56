"""The peer's README, snippet by snippet for the scalar quantizers, with only the import line changed."""

import doctest
import importlib
import re
from importlib.metadata import metadata

import pytest
import torch

pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")

NAMES = (
    "FSQ|ResidualFSQ|GroupedResidualFSQ|LFQ|ResidualLFQ|GroupedResidualLFQ|LatentQuantize|RandomProjectionQuantizer"
    "|BinaryMapper"
)
SNIPPETS = [
    block
    for block in re.findall(r"```python\n(.*?)```", metadata("vector-quantize-pytorch").get_payload(), re.DOTALL)
    if re.search(rf"from vector_quantize_pytorch import ({NAMES})\n", block)
]
# What the README's comments and assertions say of the variables, in its order.
SHAPES = [
    {"indices": (1, 1024, 16)},
    {"xhat": (1, 1024, 4), "indices": (1, 1024)},
    {"quantized": (1, 1024, 256), "indices": (1, 1024, 8), "quantized_out": (1, 1024, 256)},
    {"quantized": (1, 16, 32, 32), "indices": (1, 32, 32), "entropy_aux_loss": ()},
    {"quantized": (1, 16, 10, 32, 32)},
    {"quantized": (1, 16, 32, 32), "indices": (1, 32, 32, 4), "entropy_aux_loss": ()},
    {"quantized": (1, 1024, 256), "indices": (1, 1024, 8), "commit_loss": (8,)},
    {"quantized": (1, 16, 32, 32), "indices": (1, 32, 32), "loss": ()},
    {"quantized": (1, 16, 10, 32, 32)},
    {"output_tensor": (2, 3, 9), "indices": (2, 3, 3), "loss": ()},
]
CLASSES = [re.search(rf"import ({NAMES})\n", snippet).group(1) for snippet in SNIPPETS]


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
    # The last one asks for two names that it does not define.
    names = {"dim": 9, "num_codebooks": 3} if "torch.randn(2, 3, dim)" in snippet else {}
    if "codebook_dim = 256" in snippet:
        # Its projections before and after the search hold 268 million numbers each; a quarter of the width will do.
        changed = changed.replace("codebook_dim = 256", "codebook_dim = 32")
    exec(changed, names)
    for name, shape in shapes.items():
        assert names[name].shape == shape, name


@pytest.mark.parametrize(
    "name",
    ["finite_scalar", "residual_fsq", "lookup_free", "residual_lfq", "latent", "binary_mapper", "random_projection"],
)
def test_docstring_snippets(name):
    result = doctest.testmod(importlib.import_module(f"fastvq.compat.vector_quantize_pytorch.{name}"))
    assert result.attempted
    assert not result.failed
