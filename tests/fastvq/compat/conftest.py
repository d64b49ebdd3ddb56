"""vector-quantize-pytorch and its drop-in side by side."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq.compat import vector_quantize_pytorch as ours

# Both sum up to 2^14 float32 terms, in orders of their own: 14 roundings each way, and a few more for what follows.
TOLERANCE = 32 * torch.finfo(torch.float32).eps


class Pair:
    """A class of the peer and ours, made from one seed, and stepped on the same data from one seed.

    Args:
        name: of the class. keywords: of both constructors.
    """

    def __init__(self, name: str, peer: Any, **keywords: Any) -> None:
        torch.manual_seed(0)
        self.peer = getattr(peer, name)(**keywords)
        torch.manual_seed(0)
        self.ours = getattr(ours, name)(**keywords)
        self.optimizers = [
            torch.optim.SGD(module.parameters(), lr=1e-3)
            for module in (self.peer, self.ours)
            if list(module.parameters())
        ]
        self.worst: dict[str, float] = {}

    def sync(self) -> None:
        """Ours takes the peer's state; strict, so that a key too many or too few fails."""
        self.ours.load_state_dict(self.peer.state_dict())

    def close(self, name: str, peer: Tensor | None, mine: Tensor | None, tolerance: float = TOLERANCE) -> None:
        """Asserts that two tensors agree to a share of the largest entry."""
        if peer is None or mine is None:
            both = peer is None and mine is None
            assert both or not bool((peer if mine is None else mine).any()), name  # no gradient, or one of zeros
            return
        assert peer.shape == mine.shape, name
        if not peer.numel():
            return
        peer, mine = peer.detach().double(), mine.detach().double()
        worst = float((peer - mine).abs().max() / peer.abs().max().clamp_min(1e-30))
        self.worst[name] = max(self.worst.get(name, 0.0), worst)
        assert worst <= tolerance, f"{name}: {worst:.1e} of the largest entry"

    def without_close_calls(self, x: Tensor, seed: int, keywords: dict[str, Any]) -> Tensor:
        """x, moved a little where float32 rounding could decide a code: the peer's distances are off by some
        roundings of |x|^2 + |c|^2, which is less than what moving x by 2^-18 of its largest entry does to them."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            nudge = torch.randn(x.shape, generator=generator) * x.abs().max() * 2**-18
            codes = []
            for rows in (x - nudge, x + nudge):
                torch.manual_seed(seed)
                codes.append(copy.deepcopy(self.ours)(rows, **keywords)[1])
            if torch.equal(*codes):
                return x
            x = x + 2**-6 * torch.randn(x.shape, generator=generator)
        raise AssertionError("no batch without a close call was found")

    def step(
        self,
        x: Tensor,
        seed: int,
        *,
        skip: tuple[str, ...] = (),
        grad: bool = True,
        keep: Tensor | None = None,
        tolerance: float = TOLERANCE,
        **keywords: Any,
    ) -> None:
        """One forward and backward pass of both, and a step of SGD on their parameters; all of it compared.

        Args:
            skip: names that start so are not compared. grad: whether x asks for gradients.
            keep: rows to compare, where indices may differ elsewhere; then neither state nor losses are.
        """
        if keep is None:
            x = self.without_close_calls(x, seed, keywords)
        inputs = [x.clone().requires_grad_(grad) for _ in range(2)]
        results = []
        for module, own in zip((self.peer, self.ours), inputs, strict=True):
            torch.manual_seed(seed)
            results.append(module(own, **keywords))
        (quantized, indices, loss, *_), mine = results[0], results[1]
        assert indices.shape == mine[1].shape
        if keep is not None:
            assert torch.equal(indices[keep], mine[1][keep])
            self.close("quantized", quantized[keep], mine[0][keep], tolerance)
            return
        assert torch.equal(indices, mine[1])
        torch.manual_seed(seed)
        towards = torch.randn(quantized.shape)
        for out in results:
            scale = torch.arange(1, out[2].numel() + 1).view(out[2].shape)
            total = (out[0] * towards).sum() + (out[2] * scale).sum()
            if total.requires_grad:
                total.backward()
        named = dict(self.ours.named_parameters())
        pairs = {"quantized": (quantized, mine[0]), "loss": (loss, mine[2]), "grad": (inputs[0].grad, inputs[1].grad)}
        pairs |= {f"grad {name}": (value.grad, named[name].grad) for name, value in self.peer.named_parameters()}
        for name, values in pairs.items():
            if not name.startswith(skip or ("\0",)):
                self.close(name, *values, tolerance=tolerance)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state = self.ours.state_dict()
        for name, value in self.peer.state_dict().items():
            if not name.startswith(skip or ("\0",)):
                self.close(name, value, state[name], tolerance)


@pytest.fixture
def pair():
    """Makes a :class:`Pair`; skips where the peer is not installed."""
    peer = pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")
    return lambda name, **keywords: Pair(name, peer, **keywords)


@pytest.fixture
def peer():
    """The peer's package; skips where it is not installed."""
    return pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")


class LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return out


@pytest.fixture
def largest_tensor():
    """A context that knows how large the largest tensor made in it was."""
    return LargestTensor
