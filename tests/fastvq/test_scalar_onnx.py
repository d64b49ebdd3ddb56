"""Encode and decode of the scalar quantizers as ONNX: the same indices and the same bits in onnxruntime."""

import pytest
import torch
from torch import nn

from fastvq import FSQ, LFQ, GroupedResidualFSQ, GroupedResidualLFQ

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package, reason=f"{package} is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

KINDS = {
    "fsq": lambda: FSQ(12, [8, 5, 3]),
    "residual_fsq": lambda: GroupedResidualFSQ(12, [5, 2], groups=3, num_quantizers=3),
    "lfq": lambda: LFQ(12, 64, spherical=True),
    "residual_lfq": lambda: GroupedResidualLFQ(12, 16, groups=3, num_quantizers=3),
}


class Method(nn.Module):
    """One method of a module as a forward pass."""

    def __init__(self, module, name):
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x):
        return getattr(self.module, self.name)(x)


@pytest.mark.filterwarnings("ignore")  # of the exporter's own packages
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_onnxruntime_agrees_for_any_number_of_rows(make, tmp_path):
    torch.manual_seed(0)
    quantizer = make().eval()
    small, large = torch.randn(2, 9, 12), torch.randn(3, 14, 12)
    axes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time")},)
    examples = {"encode": (small, large), "decode": (quantizer.encode(small), quantizer.encode(large))}
    for name, (example, given) in examples.items():
        method, path = Method(quantizer, name), str(tmp_path / f"{name}.onnx")
        torch.onnx.export(method, (example,), path, dynamo=True, verbose=False, dynamic_shapes=axes)
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        with torch.no_grad():
            expected = method(given)
        # The projection of decode is a matrix product of its own.
        torch.testing.assert_close(torch.from_numpy(found), expected)
