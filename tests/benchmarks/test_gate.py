"""The gate passes the oracle and fails what is wrong in any one operation."""

from types import SimpleNamespace

import pytest
import torch

from fastvq.benchmarks import gate
from fastvq.kernels import reference

SIZES = ((2, 2, 3, 5, 7),)
OPERATIONS = {name: getattr(reference, name) for name in gate.OPERATIONS}


def nudged(name, place):
    """The operation with the first entry of one of its results off by far more than rounding, or by one code."""

    def operation(*arguments):
        result = OPERATIONS[name](*arguments)
        values = result if isinstance(result, torch.Tensor) else result[place]
        first = (0,) * values.dim()
        values[first] = ~values[first] if values.dtype == torch.bool else values[first] + 1
        return result

    return operation


def test_the_oracle_passes():
    checks = list(gate.gate(SimpleNamespace(**OPERATIONS), "cpu", SIZES))
    # Three metrics, the nearest three, the residual search and its sums on every input; maps and sums besides.
    assert len(checks) == len(gate.DTYPES) * (len(gate.INPUTS) * 6 + 5) + 3
    assert [check for check in checks if check.mismatches] == []


def test_operations_that_are_not_there_are_named_and_left_out():
    impl = SimpleNamespace(**{name: OPERATIONS[name] for name in ("nearest", "segment_sum", "ema_update_", "lookup")})
    assert gate.missing(impl) == ["nearest_topk", "residual_nearest", "residual_segment_sum"]
    names = {check.name.split()[0] for check in gate.gate(impl, "cpu", SIZES)}
    assert names == {"nearest", "segment_sum", "ema_update_", "lookup"}


RESULTS = {"nearest": 2, "nearest_topk": 2, "residual_nearest": 3, "segment_sum": 2, "residual_segment_sum": 2}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in OPERATIONS for place in range(RESULTS.get(name, 1))]
)
def test_a_wrong_operation_fails(name, place):
    impl = SimpleNamespace(**{**OPERATIONS, name: nudged(name, place)})
    failed = [check.name for check in gate.gate(impl, "cpu", SIZES) if check.mismatches]
    assert failed
    assert all(check.split()[0] == name for check in failed)
