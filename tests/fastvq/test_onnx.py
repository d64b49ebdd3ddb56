"""Encode and decode in onnxruntime."""

import pytest
import torch

import fastvq

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

MAKERS = {
    "vq": lambda: fastvq.VectorQuantize(6, 16),
    "cosine": lambda: fastvq.VectorQuantize(6, 16, metric="cosine"),
    "dot": lambda: fastvq.VectorQuantize(6, 16, metric="dot"),
    "heads": lambda: fastvq.VectorQuantize(6, 16, heads=2, codebook_dim=4),
    "grouped": lambda: fastvq.GroupedVQ(6, 16, groups=3),
    "residual": lambda: fastvq.ResidualVQ(6, 16, num_quantizers=3, codebook_dim=4),
    "mixed": lambda: fastvq.ResidualVQ(6, (16, 7), num_quantizers=2),
    "grouped residual": lambda: fastvq.GroupedResidualVQ(6, 16, groups=2, num_quantizers=2),
    "projected": lambda: fastvq.ProjectedResidualVQ(6, 16, num_quantizers=2, codebook_dim=3),
    "sim": lambda: fastvq.SimVQ(6, 16),
    "attention": lambda: fastvq.AttentionVQ(6, 16),
    "fsq": lambda: fastvq.FSQ(6, (5, 4, 3)),
    "lfq": lambda: fastvq.LFQ(6, 16),
}


def run(program, *inputs):
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, dict(zip(names, (i.numpy() for i in inputs), strict=True)))
    return torch.from_numpy(found[0])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore")
def test_encode_and_decode(name):
    torch.manual_seed(0)
    vq = MAKERS[name]()
    vq(torch.randn(4, 9, 6))
    vq.eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    example = torch.randn(2, 5, 6)
    encode = fastvq.onnx.export(fastvq.onnx.Encode(vq), (example,), dynamic_shapes=(axes,))
    decode = fastvq.onnx.export(fastvq.onnx.Decode(vq), (vq.encode(example),), dynamic_shapes=(axes,))
    for shape in ((2, 5, 6), (3, 8, 6)):
        x = torch.randn(shape)
        indices = vq.encode(x)
        assert torch.equal(run(encode, x), indices)  # no close calls among a few random rows
        torch.testing.assert_close(run(decode, indices), vq.decode(indices).detach())


@pytest.mark.filterwarnings("ignore")
def test_a_row_that_is_not_finite_has_no_code(tmp_path):
    vq = fastvq.GroupedVQ(6, 16, groups=3).eval()
    x = torch.randn(2, 5, 6)
    program = fastvq.onnx.export(fastvq.onnx.Encode(vq), (x,), tmp_path / "encode.onnx")
    assert (tmp_path / "encode.onnx").stat().st_size > 0
    x[0, 1, 2], x[1, 3, 5] = float("nan"), float("inf")
    found = run(program, x)
    assert torch.equal(found, vq.encode(x))
    assert (found < 0).sum() == 2
