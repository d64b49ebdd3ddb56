"""Swapped stand-ins for quantizers whose packages are not installed: encodec, audiocraft, T2M-GPT and MoMask."""

import copy

import pytest
import torch
from torch import nn

import fastvq


class Codebook(nn.Module):
    """As encodec's EuclideanCodebook: its attributes, and its steps in the textbook's form."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.decay, self.epsilon, self.codebook_size, self.threshold = 0.9, 1e-5, size, 2.0
        self.register_buffer("inited", torch.tensor([1.0]))
        self.register_buffer("cluster_size", torch.full((size,), 5.0))
        self.register_buffer("embed", torch.randn(size, dim))
        self.register_buffer("embed_avg", self.embed * 5.0)

    def init_embed_(self, data):
        assert self.inited

    def expire_codes_(self, rows):
        expired = self.cluster_size < self.threshold
        self.embed.data[expired] = rows[: int(expired.sum())]

    def quantize(self, x):
        return torch.cdist(x, self.embed).argmin(-1)

    def dequantize(self, indices):
        return nn.functional.embedding(indices, self.embed)

    def encode(self, x):
        return self.quantize(x.reshape(-1, x.shape[-1])).view(x.shape[:-1])

    def decode(self, indices):
        return self.dequantize(indices)

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        self.init_embed_(rows)
        indices = self.quantize(rows)
        quantized = self.dequantize(indices.view(x.shape[:-1]))
        if self.training:
            self.expire_codes_(rows)
            one_hot = nn.functional.one_hot(indices, self.codebook_size).to(x.dtype)
            self.cluster_size.data.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_(one_hot.T @ rows, alpha=1 - self.decay)
            total = self.cluster_size.sum()
            smooth = (self.cluster_size + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
            self.embed.data.copy_(self.embed_avg / smooth[:, None])
        return quantized, indices.view(x.shape[:-1])


EuclideanCodebook = type("EuclideanCodebook", (Codebook,), {})


class Layer(nn.Module):
    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self._codebook = EuclideanCodebook(dim, size)
        self.project_in = nn.Identity()

    def encode(self, x):
        return self._codebook.encode(x.mT)

    def decode(self, indices):
        return self._codebook.decode(indices).mT

    def forward(self, x):
        quantized, indices = self._codebook(x.mT)
        return quantized.mT, indices


class ResidualVectorQuantization(nn.Module):
    """As encodec's and audiocraft's."""

    def __init__(self, dim: int, size: int, stages: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, size) for _ in range(stages))

    def forward(self, x, n_q=None):
        residual, out, indices = x, 0.0, []
        for layer in self.layers[:n_q]:
            quantized, found = layer(residual)
            residual, out = residual - quantized, out + quantized
            indices.append(found)
        return out, torch.stack(indices)

    def encode(self, x, n_q=None):
        residual, indices = x, []
        for layer in self.layers[: n_q or len(self.layers)]:
            indices.append(layer.encode(residual))
            residual = residual - layer.decode(indices[-1])
        return torch.stack(indices)

    def decode(self, q_indices):
        return sum(layer.decode(indices) for layer, indices in zip(self.layers, q_indices, strict=False))


def test_encodecs_own_stack_in_training_and_outside():
    torch.manual_seed(0)
    original = ResidualVectorQuantization(6, 12, 3)
    swapped = copy.deepcopy(original)
    report = fastvq.swap(swapped)
    assert len(report.swapped) == 4
    for step in range(20):
        x = torch.randn(2, 6, 50)
        for ours, theirs in zip(swapped(x), original(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for name, value in original.state_dict().items():
            torch.testing.assert_close(swapped.state_dict()[name], value, rtol=1e-5, atol=1e-5)
        if step % 5 == 4:
            original.eval(), swapped.eval()
            assert torch.equal(swapped.encode(x), original.encode(x))
            assert torch.equal(swapped.encode(x, 2), original.encode(x, 2))
            torch.testing.assert_close(swapped.decode(original.encode(x)), original.decode(original.encode(x)))
            original.train(), swapped.train()
    assert fastvq.unswap(swapped) == 4
    assert type(swapped) is ResidualVectorQuantization
    assert len({layer._codebook.embed.untyped_storage().data_ptr() for layer in swapped.layers}) == 3


class QuantizeEMAReset(nn.Module):
    """As T2M-GPT's: the facts of the specification, in plain torch."""

    def __init__(self, nb_code: int, code_dim: int) -> None:
        super().__init__()
        self.nb_code, self.code_dim, self.mu = nb_code, code_dim, 0.99
        self.register_buffer("codebook", torch.randn(nb_code, code_dim))
        self.code_sum, self.code_count = self.codebook.clone(), torch.ones(nb_code)

    def init_codebook(self, x):
        raise AssertionError

    def _tile(self, x):
        return x.repeat(-(-self.nb_code // len(x)), 1)

    def quantize(self, x):
        return torch.cdist(x, self.codebook).argmin(-1)

    @torch.no_grad()
    def update_codebook(self, x, code_idx):
        one_hot = nn.functional.one_hot(code_idx, self.nb_code).float().T
        spare = self._tile(x)[: self.nb_code]
        self.code_sum = self.mu * self.code_sum + (1 - self.mu) * (one_hot @ x)
        self.code_count = self.mu * self.code_count + (1 - self.mu) * one_hot.sum(1)
        usage = (self.code_count >= 1.0).float()[:, None]
        self.codebook = usage * self.code_sum / self.code_count[:, None] + (1 - usage) * spare
        share = one_hot.sum(1) / len(x)
        return torch.exp(-(share * torch.log(share + 1e-7)).sum())

    def forward(self, x):
        rows = x.mT.reshape(-1, x.shape[1])
        indices = self.quantize(rows)
        quantized = self.codebook[indices]
        perplexity = self.update_codebook(rows, indices) if self.training else None
        return quantized.view(x.mT.shape).mT, indices, perplexity


def test_ema_reset_quantizers():
    torch.manual_seed(0)
    original = nn.ModuleDict({"quantizer": QuantizeEMAReset(16, 6)})
    swapped = copy.deepcopy(original)
    assert len(fastvq.swap(swapped).swapped) == 1
    for _ in range(20):
        x = torch.randn(3, 6, 40)
        ours, theirs = swapped["quantizer"](x), original["quantizer"](x)
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[2], theirs[2])
        for name in ("codebook", "code_sum", "code_count"):
            torch.testing.assert_close(getattr(swapped["quantizer"], name), getattr(original["quantizer"], name))


def test_what_is_left_is_said():
    class MyQuantizer(nn.Module):
        pass

    report = fastvq.swap(nn.Sequential(nn.Linear(2, 2), MyQuantizer(), fastvq.VectorQuantize(4, 8)))
    assert report.swapped == []
    assert [(left.name, left.kind) for left in report.left] == [("1", "MyQuantizer")]
    assert "no handler" in str(report)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        fastvq.swap("model")


def test_encodecs_own_codebook_trains_in_bfloat16():
    torch.manual_seed(0)
    swapped = ResidualVectorQuantization(6, 12, 2).bfloat16()
    fastvq.swap(swapped)
    swapped(torch.randn(2, 6, 50, dtype=torch.bfloat16))
