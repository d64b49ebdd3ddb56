"""The gate passes the oracle and fails what is wrong in any one operation."""

from types import SimpleNamespace

import pytest
import torch

from fastvq.benchmarks import gate
from fastvq.kernels import reference

SIZES = ((2, 2, 3, 5, 7),)
OPERATIONS = {name: getattr(reference, name) for name in ("nearest", "segment_sum", "ema_update_", "lookup")}


def nudged(name):
    """The operation with the first entry of its result off by far more than rounding, or by one code."""

    def operation(*arguments):
        result = OPERATIONS[name](*arguments)
        values = result if isinstance(result, torch.Tensor) else result[0]
        first = (0,) * values.dim()
        values[first] = ~values[first] if values.dtype == torch.bool else values[first] + 1
        return result

    return operation


def test_the_oracle_passes():
    checks = list(gate.gate(SimpleNamespace(**OPERATIONS), "cpu", SIZES))
    assert len(checks) == len(gate.DTYPES) * (len(gate.INPUTS) * 3 + 3) + 3
    assert [check for check in checks if check.mismatches] == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_operation_fails(name):
    impl = SimpleNamespace(**{**OPERATIONS, name: nudged(name)})
    failed = [check.name for check in gate.gate(impl, "cpu", SIZES) if check.mismatches]
    assert failed
    assert all(check.startswith(name) for check in failed)
