"""Contenders of whole quantizers at toy sizes, and what the suite for a card does without one."""

import pytest
import torch

from fastvq.benchmarks import gpu, peers, quantizers
from fastvq.benchmarks.shapes import Shape, make_data

TOYS = (
    Shape("plain", 1, 40, 16, 8),
    Shape("groups", 3, 40, 16, 8),
    Shape("stages", 1, 40, 16, 8, 3),
    Shape("shared", 1, 40, 16, 8, 3, shared=True),
)


@pytest.mark.parametrize("shape", TOYS, ids=lambda shape: shape.name)
def test_contenders_quantize_alike_and_move_their_codes_alike(shape):
    pytest.importorskip("vector_quantize_pytorch", reason="the peer is in the bench extra")
    x, codebooks = make_data(shape)
    flat = x.transpose(0, 1).reshape(1, shape.N, -1)
    modules = quantizers.contenders(shape, codebooks, compiled=False)
    first = {name: quantizers.forward(module, flat)[0] for name, module in modules.items()}
    second = {name: quantizers.forward(module, flat)[0] for name, module in modules.items()}
    assert set(modules) >= {"fastvq", "torch textbook", peers.VQP}
    for name in modules:
        torch.testing.assert_close(first[name], first["fastvq"], rtol=1e-5, atol=1e-5)
        if not (shape.shared and name == peers.VQP):  # each stage of which decays the statistics
            torch.testing.assert_close(second[name], second["fastvq"], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_suite_says_so(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "needs a CUDA or ROCm device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
