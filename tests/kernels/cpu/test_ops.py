"""The public ops on CPU tensors: C++ without Python where `impl` allows, Python where it asks, errors alike."""

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastvq.ops
from fastvq import functional
from fastvq.kernels import reference

ROOT = Path(__file__).resolve().parents[3]
OPS = ("nearest", "residual_nearest", "segment_sum", "residual_segment_sum", "ema_update_", "lookup")


def arguments(op: str) -> tuple[Any, ...]:
    """Canonical arguments of an op, the same for every call, without `impl`."""
    random = torch.Generator().manual_seed(0)
    x, codebooks = torch.randn(2, 30, 1, 5, generator=random), torch.randn(2, 3, 7, 5, generator=random)
    indices = torch.randint(-1, 7, (2, 30, 1, 3), generator=random)
    mask, stages = torch.arange(60).view(2, 30, 1) % 5 > 0, torch.arange(30).view(30, 1) % 4
    sizes, counts = torch.rand(2, 2, 7, generator=random)
    return {
        "nearest": (x, codebooks[:, 0], mask, "cosine", "exact"),
        "residual_nearest": (x.half(), codebooks, [7, 3, 5], stages, mask, "exact"),
        "segment_sum": (x, indices[..., 0], 7),
        "residual_segment_sum": (x, indices, codebooks),
        "ema_update_": (
            *(codebooks[:, stage].clone() for stage in (0, 1)),
            sizes,
            *(codebooks[:, 2], counts),
            *(0.9, 1e-5, "laplace", True, 0.5, True),
        ),
        "lookup": (indices, codebooks),
    }[op]


def results(op: str, call: Callable[..., Any], *last: str) -> list[Tensor]:
    """Everything that an op returns or changes."""
    given = arguments(op)
    returned = call(*given, *last)
    changed = given[:3] if op == "ema_update_" else ()
    return [*(returned if isinstance(returned, tuple) else (returned,)), *changed]


@pytest.fixture
def without_python(monkeypatch) -> None:
    """Fails a test in which an op reaches an implementation through Python."""

    def refuse(*_: Any) -> None:
        raise AssertionError("an op went through Python")

    monkeypatch.setattr(fastvq.ops, "_run", refuse)


@pytest.mark.usefixtures("without_python")
@pytest.mark.parametrize("impl", ["auto", "cpu"])
@pytest.mark.parametrize("op", OPS)
def test_ops_run_without_python(cpu, op, impl):
    expected = results(op, getattr(cpu, op))
    for got, wanted in zip(results(op, getattr(torch.ops.fastvq, op), impl), expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.stride() == wanted.stride()
        assert torch.equal(got.nan_to_num(-7), wanted.nan_to_num(-7))


@pytest.mark.parametrize("op", OPS)
def test_ops_come_back_to_python_for_another_implementation(cpu, op):
    expected = results(op, getattr(reference, op))
    for got, wanted in zip(results(op, getattr(torch.ops.fastvq, op), "reference"), expected, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got.nan_to_num(-7), wanted.nan_to_num(-7))


@pytest.mark.parametrize("impl", ["cpu", "tiled"])
@pytest.mark.parametrize("op", ["segment_sum", "residual_segment_sum", "lookup"])
def test_wrong_indices_raise_the_same_index_error(cpu, op, impl, capfd):
    given = [a + 9 if isinstance(a, Tensor) and a.dtype == torch.int64 else a for a in arguments(op)]
    with pytest.raises(IndexError) as expected:
        getattr(reference, op)(*given)
    with pytest.raises(IndexError) as raised:
        getattr(torch.ops.fastvq, op)(*given, impl)
    assert str(raised.value) == str(expected.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("op", OPS)
def test_implementations_that_cannot_run_raise_what_they_raise_in_python(cpu, op, monkeypatch, capfd):
    call = getattr(torch.ops.fastvq, op)
    for impl in ("triton", "best"):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            fastvq.ops.implementation(impl, "cpu", op)
        with pytest.raises(expected.type) as raised:
            call(*arguments(op), impl)
        assert str(raised.value) == str(expected.value)

    def fail(*_: Any) -> None:
        raise KeyError("ünknown")

    monkeypatch.setattr(fastvq.ops, "_run", fail)
    with pytest.raises(RuntimeError, match="KeyError: 'ünknown'"):
        call(*arguments(op), "tiled")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_metric_is_refused(cpu):
    with pytest.raises(ValueError, match="metric must be"):
        cpu.nearest(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 3), None, "l1")


@pytest.mark.parametrize("impl", ["cpu", "reference", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_arguments_are_given_back(cpu, op, impl):
    """Whether the op returns or raises, nothing keeps the tensors it was called with."""

    def call(offset: int) -> list[weakref.ref[Tensor]]:
        given = [a + offset if isinstance(a, Tensor) and a.dtype == torch.int64 else a for a in arguments(op)]
        with contextlib.suppress(IndexError, RuntimeError):
            getattr(torch.ops.fastvq, op)(*given, impl)
        return [weakref.ref(a) for a in given if isinstance(a, Tensor)]

    for offset in (0, 9):
        references = call(offset)
        gc.collect()
        assert not any(reference() is not None for reference in references)


def search(x: Tensor, codebook: Tensor) -> Tensor:
    return functional.nearest(x, codebook).distances


@pytest.mark.usefixtures("without_python")
def test_gradients_where_they_are_asked_for(cpu):
    x, codebook = torch.randn(9, 4), torch.randn(5, 4)
    assert not search(x, codebook).requires_grad
    with torch.no_grad():
        assert not search(x.requires_grad_(), codebook).requires_grad
    with torch.inference_mode():
        assert search(x, codebook).is_inference()
    for first, second in ((x, codebook), (x.detach(), codebook.clone().requires_grad_())):
        search(first, second).sum().backward()
        assert (first if first.requires_grad else second).grad is not None


def test_dispatch_modes_see_the_ops(cpu):
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    with Record():
        search(torch.randn(9, 4), torch.randn(5, 4))
    assert "fastvq.nearest.default" in seen


@pytest.fixture
def fresh() -> Callable[..., str]:
    """Runs code in a process of its own, where nothing is loaded yet."""

    def run(code: str, **environment: str) -> str:
        preamble = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport conftest, torch, fastvq\n"
        done = subprocess.run(
            [sys.executable, "-c", preamble + code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


CALLS = """
def registered():
    return torch._C._dispatch_has_kernel_for_dispatch_key("fastvq::nearest", "CPU")
def call(impl):
    return torch.ops.fastvq.nearest(torch.eye(3).view(1, 3, 1, 3), torch.eye(3)[None], None, "l2", "exact", impl)[0]
"""


def test_before_the_first_use_nothing_is_loaded(cpu, fresh):
    code = """
assert not registered()
assert call("tiled").flatten().tolist() == [0, 1, 2]
assert not registered()
assert call("auto").flatten().tolist() == [0, 1, 2]
assert registered()
assert call("auto").flatten().tolist() == [0, 1, 2]
"""
    fresh(CALLS + code)


def test_switched_off_everything_stays_in_python(cpu, fresh):
    code = """
assert call("auto").flatten().tolist() == [0, 1, 2]
assert not registered()
try:
    call("cpu")
except RuntimeError as error:
    print(error)
"""
    assert "FASTVQ_NATIVE=0 switches the C++ kernels off" in fresh(CALLS + code, FASTVQ_NATIVE="0")
