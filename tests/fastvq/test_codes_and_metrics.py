"""Packed codes and usage metrics."""

import math

import pytest
import torch

from fastvq import codes, metrics


@pytest.mark.parametrize("K", [1, 2, 3, 255, 256, 511, 512, 1000, 65536])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (5, 4, 3)])
def test_pack_round_trip(K, shape):
    torch.manual_seed(0)
    indices = torch.randint(-1, K, shape)
    packed = codes.pack_codes(indices, K)
    assert packed.numel() == math.ceil(indices.numel() * math.ceil(math.log2(K + 1)) / 8)
    assert torch.equal(codes.unpack_codes(packed, K, shape), indices)


def test_packing_is_least_significant_bit_first():
    # Two bits a code, hole = 3: 1, 2, -1, 0 are 01, 10, 11, 00 from the low end up.
    assert codes.pack_codes(torch.tensor([1, 2, -1, 0]), 3).tolist() == [0b00111001]


@pytest.mark.parametrize("rows", [0, 1, 13])
def test_codes_of_several_sizes_take_the_bits_of_their_own(rows):
    torch.manual_seed(0)
    sizes = (18, 2, 1, 64, 10)
    indices = torch.stack([torch.randint(-1, size, (2, rows)) for size in sizes], dim=-1)
    packed = codes.pack_codes(indices, sizes)
    assert packed.numel() == math.ceil(2 * rows * (5 + 2 + 1 + 7 + 4) / 8)
    assert torch.equal(codes.unpack_codes(packed, sizes, indices.shape), indices)
    same = codes.pack_codes(indices.clamp_max(1).clamp_min(-1), (2,) * 5)
    assert torch.equal(same, codes.pack_codes(indices.clamp_max(1), 2))


def test_several_sizes_in_bits():
    # Five bits of the first code and two of the second; the holes are 18 and 2.
    assert codes.pack_codes(torch.tensor([[17, -1]]), (18, 2)).tolist() == [0b1010001]
    assert codes.pack_codes(torch.tensor([[-1, 1]]), (18, 2)).tolist() == [0b0110010]


def test_several_sizes_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"indices must lie in \[-1, 2\), got 0 to 2"):
        codes.pack_codes(torch.tensor([[17, 0], [3, 2]]), (18, 2))
    with pytest.raises(ValueError, match=r"one size for each place of the last axis, got 2 for the shape \(4, 3\)"):
        codes.pack_codes(torch.zeros(4, 3, dtype=torch.int64), (18, 2))
    with pytest.raises(ValueError, match="code 3, above the hole 2: the data is damaged"):
        codes.unpack_codes(torch.tensor([0b1110001], dtype=torch.uint8), (18, 2), (1, 2))


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[-1, 4\)"):
        codes.pack_codes(torch.tensor([4]), 4)
    with pytest.raises(ValueError, match="uint8 values"):
        codes.unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, (2,))
    with pytest.raises(ValueError, match="damaged"):
        codes.unpack_codes(torch.tensor([7], dtype=torch.uint8), 4, (2,))


def test_counts_perplexity_utilisation():
    indices = torch.tensor([[0, 1], [0, -1], [1, 1], [1, 1]])
    counts = metrics.code_counts(indices, 4)
    assert counts.tolist() == [[2, 2, 0, 0], [0, 3, 0, 0]]
    torch.testing.assert_close(metrics.perplexity(counts), torch.tensor([2.0, 1.0]))
    assert metrics.utilisation(counts).tolist() == [0.5, 0.25]
    assert metrics.perplexity(torch.zeros(1, 4, dtype=torch.int64)).tolist() == [0.0]


def test_counting_refuses_what_does_not_fit():
    for wrong in (4, 5, -2):  # 5 would count as the next group's first code
        with pytest.raises(IndexError, match=r"indices must lie in \[-1, 4\).*another codebook"):
            metrics.code_counts(torch.tensor([[wrong, 0], [0, 0]]), 4)
    with pytest.raises(ValueError, match="at least one group"):
        metrics.code_counts(torch.tensor(3), 4)
    with pytest.raises(ValueError, match=r"below 2\*\*32"):
        codes.pack_codes(torch.tensor([0]), 2**32)


def test_usage_over_batches():
    torch.manual_seed(0)
    usage = metrics.CodeUsage(2, 8)
    batches = [torch.randint(-1, 8, (3, 5, 2)) for _ in range(4)]
    for batch in batches:
        usage(batch)
    counts = metrics.code_counts(torch.cat(batches), 8)
    assert torch.equal(usage.counts, counts)
    assert torch.equal(usage.compute().perplexity, metrics.perplexity(counts))
    assert torch.equal(usage.compute().utilisation, metrics.utilisation(counts))
    usage.reset()
    assert usage.compute().perplexity.tolist() == [0.0, 0.0]
    assert list(usage.state_dict()) == []
    torch.compile(usage, fullgraph=True, backend="eager")(batches[0])
    with pytest.raises(ValueError, match=r"indices must be \(\.\.\., 2\)"):
        usage(torch.zeros(3, 3, dtype=torch.int64))


def test_dead_share():
    sizes = torch.tensor([[1.0, 1.0, 1.0, 0.05], [2.0, 2.0, 2.0, 2.0]])
    assert metrics.dead_share(sizes).tolist() == [0.25, 0.0]
    assert metrics.dead_share(sizes, 0.01).tolist() == [0.0, 0.0]
