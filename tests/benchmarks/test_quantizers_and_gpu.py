"""Benchmarks of whole quantizers at toy sizes, and what the suite for a card does without one."""

import pytest
import torch

from fastvq.benchmarks import gpu, peers, quantizers
from fastvq.benchmarks.shapes import CUDA, Shape, make_data

TOYS = (Shape("plain", 1, 40, 16, 8), Shape("groups", 3, 40, 16, 8), Shape("stages", 1, 40, 16, 8, 3))


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
        torch.testing.assert_close(second[name], second["fastvq"], rtol=1e-3, atol=1e-3)


def test_rows_of_both_passes(capsys):
    rows = quantizers.run(TOYS[1:], reps=3, compiled=False)
    assert {(row.shape, row.pass_) for row in rows} == {
        (name, pass_) for name in ("groups", "stages") for pass_ in quantizers.PASSES
    }
    assert all(row.median_ms > 0 and row.gate == "pass" for row in rows)
    assert "stages train-step" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_suite_says_so(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "needs a CUDA or ROCm device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_floors_of_the_shapes_are_those_of_the_arithmetic():
    # 2 N K D operations at 990 TFLOP/s: 1.08 ms for a million rows, three times that for float32 accuracy.
    assert gpu.floor_ms(CUDA[0], 990e12, 4.8e12) == pytest.approx(3 * 1.11, rel=0.01)
    # 64 groups: 0.139 ms a product, and 0.14 ms for 672 MB of rows and indices.
    assert gpu.floor_ms(CUDA[2], 990e12, 4.8e12) == pytest.approx(0.417, rel=0.01)
