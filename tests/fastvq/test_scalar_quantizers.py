"""FSQ, LFQ and their residual and grouped forms: what all of them keep to, and FSQ's arithmetic."""

import copy
import doctest
import pickle

import pytest
import torch
from torch import nn

import fastvq.finite_scalar
import fastvq.lookup_free
from fastvq import (
    FSQ,
    LFQ,
    CodeEntropy,
    GroupedResidualFSQ,
    GroupedResidualLFQ,
    QuantizeDropout,
    ResidualFSQ,
    ResidualLFQ,
)

# Each with the axes that its indices have behind those of the rows; 12 channels in, projected or not.
KINDS = {
    "fsq": (lambda **k: FSQ(12, [8, 5, 3], **k), ()),
    "fsq_symmetric": (lambda **k: FSQ(12, [2, 5, 4], symmetric=True, noise_dropout=0.5, **k), ()),
    "fsq_direct": (lambda **k: FSQ(12, [3, 4, 5] * 4, **k), ()),
    "residual_fsq": (lambda **k: ResidualFSQ(12, [5, 2, 3], num_quantizers=4, **k), (4,)),
    "grouped_fsq": (lambda **k: GroupedResidualFSQ(12, [5, 3], groups=3, num_quantizers=4, **k), (3, 4)),
    "grouped_fsq_direct": (lambda **k: GroupedResidualFSQ(12, [5, 4, 3], groups=4, num_quantizers=2, **k), (4, 2)),
    "lfq": (lambda **k: LFQ(12, 64, commitment_weight=0.25, **k), ()),
    "lfq_spherical": (lambda **k: LFQ(12, 2**12, spherical=True, entropy=CodeEntropy(groups=3), **k), ()),
    "residual_lfq": (lambda **k: ResidualLFQ(12, 32, num_quantizers=4, commitment_weight=0.25, **k), (4,)),
    "grouped_lfq": (lambda **k: GroupedResidualLFQ(12, 16, groups=3, num_quantizers=4, **k), (3, 4)),
}
every = pytest.mark.parametrize(("make", "trailing"), KINDS.values(), ids=KINDS)


@pytest.mark.parametrize("module", [fastvq.finite_scalar, fastvq.lookup_free])
def test_docstring_snippets(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@every
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 3, 4, 12), (2, 2, 3, 2, 12), (0, 12), (3, 0, 12)])
def test_shapes_and_the_round_trip(make, trailing, shape):
    torch.manual_seed(0)
    quantizer = make().eval()
    x = 3 * torch.randn(shape)
    out = quantizer(x)
    assert out.quantized.shape == shape
    assert out.indices.shape == (*shape[:-1], *trailing)
    assert out.indices.dtype == torch.int64
    assert out.loss.shape == ()
    assert torch.equal(quantizer.encode(x), out.indices)
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    assert ((out.indices >= 0) & (out.indices < quantizer.codebook_size)).all()
    assert quantizer.train()(x).quantized.shape == shape


@every
def test_channels_first_is_channels_last_transposed(make, trailing):
    torch.manual_seed(0)
    first, last = make(channel_dim=1).eval(), make().eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 12, 5, 3)
    a, b = first(x), last(x.movedim(1, -1))
    torch.testing.assert_close(a.quantized, b.quantized.movedim(-1, 1))
    assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(first.decode(a.indices), a.quantized)


@every
def test_masked_rows_count_for_nothing(make, trailing):
    torch.manual_seed(0)
    quantizer = make().eval()
    x = torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    short, whole = torch.cat([x[0], x[1, :2]]), x.clone()
    whole[~mask] = float("nan")
    whole.requires_grad_()
    out, expected = quantizer(whole, mask), quantizer(short)
    assert torch.equal(out.indices[mask], expected.indices)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    assert (quantizer.decode(out.indices)[~mask] == 0).all()
    torch.testing.assert_close(out.loss, expected.loss)
    (out.quantized.sum() + out.loss).backward()
    assert (whole.grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())
    nothing = quantizer(whole.detach(), torch.zeros(2, 5, dtype=torch.bool))
    assert nothing.loss == 0
    assert torch.equal(quantizer.encode(whole, mask), out.indices)


@every
def test_rows_that_are_not_finite_spoil_only_themselves(make, trailing):
    torch.manual_seed(0)
    quantizer = make().train()
    x = torch.randn(50, 12)
    x[7] = float("nan")
    x[8, 0] = float("inf")
    x.requires_grad_()
    out = quantizer(x)
    assert (out.indices[7] == -1).all()
    assert (out.indices[8].reshape(-1)[0] == -1).all()
    assert out.quantized[7].isnan().all()
    assert out.quantized[8, 0].isnan()
    others = torch.arange(50).sub(7.5).abs() > 1
    assert out.quantized[others].isfinite().all()
    assert (out.quantized[others].sum() + out.loss).isfinite()
    (out.quantized[others].sum() + out.loss).backward()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())
    assert x.grad[others].isfinite().all()
    with pytest.raises(ValueError, match=r"row \(7,\)"):
        make(check_finite=True)(x)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make, trailing, dtype):
    """The rounding is float32's: casting the module and the input changes only what the projections compute."""
    torch.manual_seed(0)
    quantizer = make()
    x = torch.randn(9, 12).to(dtype)
    exact = copy.deepcopy(quantizer).eval()(x.float())
    mixed = copy.deepcopy(quantizer).eval()(x)
    assert mixed.quantized.dtype == dtype
    assert torch.equal(mixed.indices, exact.indices)
    assert torch.equal(mixed.quantized, exact.quantized.to(dtype))
    quantizer.to(dtype).train()
    out = quantizer(x.requires_grad_())
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    (out.quantized.sum() + out.loss).backward()
    assert x.grad.isfinite().all()
    quantizer.eval()
    assert torch.equal(quantizer.decode(quantizer(x).indices).to(dtype), quantizer(x).quantized)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make()(nn.Linear(12, 12)(torch.randn(9, 12))).quantized.dtype == torch.bfloat16
    assert make().double()(torch.randn(9, 12).double()).quantized.dtype == torch.float64


@every
def test_copies_pickles_and_state(make, trailing):
    torch.manual_seed(0)
    quantizer, other = make().eval(), make().eval()
    x = torch.randn(9, 12)
    expected = quantizer(x)
    other.load_state_dict(quantizer.state_dict())
    for copied in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer)), other):
        assert torch.equal(copied(x).quantized, expected.quantized)
    assert all(name.startswith("project_") for name in quantizer.state_dict())


@every
def test_compiles_whole_in_training_and_exports(make, trailing):
    torch.manual_seed(0)
    quantizer = make()
    x = torch.randn(2, 9, 12, requires_grad=True)
    quantizer.noise_dropout = 0.0  # noise is drawn in another order in compiled code
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        quantizer.train(mode)
        got, expected = compiled(x), quantizer(x)
        assert torch.equal(got.indices, expected.indices)
        torch.testing.assert_close(got.quantized, expected.quantized)
        for a, b in zip(
            *(torch.autograd.grad(o.quantized.square().sum() + o.loss, x) for o in (got, expected)), strict=True
        ):
            torch.testing.assert_close(a, b)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    example = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    exported = torch.export.export(quantizer, example, dynamic_shapes=(dims, dims)).module()
    x, mask = torch.randn(4, 7, 12), torch.rand(4, 7) < 0.5
    assert torch.equal(exported(x, mask).indices, quantizer(x, mask).indices)


@every
def test_under_vmap_and_jacobians(make, trailing):
    torch.manual_seed(0)
    quantizer = make().eval()
    x = torch.randn(4, 9, 12)
    assert torch.equal(torch.func.vmap(lambda row: quantizer(row).indices)(x), quantizer(x).indices)
    jacobian = torch.func.jacrev(lambda row: quantizer(row).quantized)(x[0, :1])
    assert jacobian.shape == (1, 12, 1, 12)
    assert (jacobian != 0).any()


@pytest.mark.usefixtures("inductor")
def test_compiled_code_is_right_too():
    """One through the real compiler."""
    torch.manual_seed(0)
    quantizer, x = GroupedResidualLFQ(12, 16, groups=3, num_quantizers=2), torch.randn(2, 9, 12, requires_grad=True)
    got, expected = torch.compile(quantizer, fullgraph=True)(x), quantizer(x)
    assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(*(torch.autograd.grad(o.quantized.sum() + o.loss, x)[0] for o in (got, expected)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq_by_its_formula(symmetric):
    torch.manual_seed(0)
    levels = [3, 4, 5, 8]
    fsq = FSQ(4, levels, symmetric=symmetric).double()
    z = 2 * torch.randn(1000, 4, dtype=torch.float64)
    z.requires_grad_()
    out = fsq(z)
    expected = torch.empty_like(z)
    slope = torch.empty_like(z)
    for d, L in enumerate(levels):
        if symmetric:
            expected[:, d] = 2 * ((L - 1) * (z[:, d].tanh() + 1) / 2).round() / (L - 1) - 1
            slope[:, d] = 1 - z[:, d].tanh() ** 2
        else:
            h, o = (L - 1) * 1.001 / 2, 0.5 if L % 2 == 0 else 0.0
            inner = (z[:, d] + torch.atanh(torch.tensor(o / h, dtype=torch.float64))).tanh()
            expected[:, d] = (h * inner - o).round() / (L // 2)
            slope[:, d] = h * (1 - inner**2) / (L // 2)
    torch.testing.assert_close(out.quantized, expected.detach())
    (grad,) = torch.autograd.grad(out.quantized.sum(), z)
    torch.testing.assert_close(grad, slope.detach())
    assert out.indices.unique().numel() > 300


def test_fsq_indices_count_the_first_channel_fastest():
    fsq = FSQ(3, [8, 5, 3])
    codes = fsq.decode(torch.arange(120))
    assert codes.unique(dim=0).shape == (120, 3)
    assert codes[1, 0] - codes[0, 0] == 0.25
    assert codes.min() == -1
    assert codes[:, 0].max() == 0.75
    assert codes[:, 1:].max() == 1


def test_fsq_with_more_codes_than_float32_counts():
    """Indices are integers throughout; summed in float32 they would be wrong from 2^24 codes on."""
    torch.manual_seed(0)
    fsq = FSQ(12, [8] * 12)
    out = fsq(torch.randn(1000, 12))
    assert fsq.codebook_size == 2**36
    assert torch.equal(fsq.decode(out.indices), out.quantized)


@pytest.mark.parametrize("symmetric", [False, True])
def test_noise_dropout_takes_the_place_of_rounding(symmetric):
    torch.manual_seed(0)
    fsq = FSQ(4, [9] * 4, symmetric=symmetric, noise_dropout=0.5)
    x = torch.randn(5000, 4)
    noisy, plain = fsq.train()(x), fsq.eval()(x)
    changed = noisy.quantized != plain.quantized
    assert torch.equal(noisy.indices, plain.indices)
    assert abs(changed.float().mean() - 0.5) < 0.02
    bounded = x.tanh() * (1.0 if symmetric else 1.001)
    noise = (noisy.quantized - bounded)[changed] * 4  # one level is a quarter
    assert noise.abs().max() <= 0.5 + 1e-5
    assert abs(noise.var() - 1 / 12) < 0.005


@pytest.mark.parametrize("levels", [[5], [2], [8], [3]])
def test_residual_stages_are_a_uniform_quantizer(levels):
    """Q stages of L levels put a value in one of L^Q equal cells, at the cell's centre."""
    torch.manual_seed(0)
    L, Q = levels[0], 3
    fsq = ResidualFSQ(1, levels, num_quantizers=Q).double()
    z = 3 * torch.randn(2000, 1, dtype=torch.float64)
    out = fsq(z)
    c = L / (L - 1)
    v = c * (z / c).tanh()
    cell = ((v / c + 1) / 2 * L**Q).floor().clamp(0, L**Q - 1)
    torch.testing.assert_close(out.quantized, c * (2 * (cell + 0.5) / L**Q - 1))
    assert (out.quantized - v).abs().max() <= c / L**Q * (1 + 1e-9)
    assert torch.equal((out.indices * L ** torch.arange(Q - 1, -1, -1)).sum(-1), cell.squeeze(-1).long())
    far = fsq(torch.tensor([[1e4], [-1e4]], dtype=torch.float64)).indices
    assert far.tolist() == [[L - 1] * Q, [0] * Q]


def test_residual_stages_may_be_left_out():
    torch.manual_seed(0)
    for quantizer in (ResidualFSQ(3, [5, 4, 3], num_quantizers=4), ResidualLFQ(3, 8, num_quantizers=4)):
        x = torch.randn(500, 3).clamp(-1.5, 1.5)
        indices = quantizer.encode(x)
        errors = []
        for kept in range(1, 5):
            coarse = indices.clone()
            coarse[:, kept:] = -1
            errors.append((quantizer.decode(coarse) - quantizer.decode(indices)).abs().max().item())
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 0
        assert errors[-1] == 0


def test_residual_gradients_pass_once():
    torch.manual_seed(0)
    x = torch.randn(50, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(ResidualLFQ(3, 8, num_quantizers=4)(x).quantized.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))
    (grad,) = torch.autograd.grad(ResidualFSQ(3, [5] * 3, num_quantizers=4)(x).quantized.sum(), x)
    torch.testing.assert_close(grad, 1 - (0.8 * x.detach()).tanh() ** 2)


def test_groups_are_as_many_separate_quantizers():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 12)
    whole, part = (
        GroupedResidualFSQ(12, [5, 3, 4], groups=4, num_quantizers=4),
        ResidualFSQ(3, [5, 3, 4], num_quantizers=4),
    )
    out = whole(x)
    for group in range(4):
        alone = part(x[..., 3 * group : 3 * group + 3])
        assert torch.equal(alone.indices, out.indices[..., group, :])
        assert torch.equal(alone.quantized, out.quantized[..., 3 * group : 3 * group + 3])


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: GroupedResidualFSQ(12, [5, 3], groups=3, num_quantizers=4, **k),
        lambda **k: GroupedResidualLFQ(12, 16, groups=3, num_quantizers=4, commitment_weight=0.1, **k),
    ],
)
def test_dropout_of_stages(make):
    torch.manual_seed(0)
    quantizer = make(dropout=QuantizeDropout(per_sequence=True))
    x = torch.randn(40, 9, 12)
    out = quantizer(x)
    number = (out.indices >= 0).sum(-1)
    assert (number == number[:, :1, :1]).all()
    assert set(number.unique().tolist()) == {1, 2, 3, 4}
    expected = torch.where(torch.arange(4) < number.unsqueeze(-1), quantizer.eval()(x).indices, -1)
    assert torch.equal(out.indices, expected)
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    assert out.loss.isfinite()


def test_lengths_are_a_mask():
    x, lengths = torch.randn(3, 5, 12), torch.tensor([5, 0, 2])
    fsq = FSQ(12, [8, 5, 3])
    out, expected = fsq(x, lengths=lengths), fsq(x, torch.arange(5) < lengths.unsqueeze(-1))
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(fsq.encode(x, lengths=lengths), out.indices)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: FSQ(3, [8, 2, 5]), ValueError, "symmetric=True"),
        (lambda: FSQ(3, [8, 1, 5], symmetric=True), ValueError, "levels must be at least 2, got 1"),
        (lambda: FSQ(3, []), ValueError, "at least one channel"),
        (lambda: FSQ(3, 8), TypeError, "sequence of ints"),
        (lambda: FSQ(3, [8.0, 5]), TypeError, "levels must hold ints, got float"),
        (lambda: FSQ(3, [8], noise_dropout=2.0), ValueError, r"noise_dropout must lie in \[0, 1\]"),
        (lambda: FSQ(30, [8] * 21), ValueError, "below 2\\*\\*63"),
        (lambda: FSQ("3", [8]), TypeError, "dim must be an int"),
        (lambda: FSQ(3, [8])(torch.zeros(4, 5)), ValueError, "3 channels on axis -1"),
        (lambda: FSQ(3, [8])(torch.zeros(4, 3).long()), TypeError, "float16, bfloat16, float32 or float64"),
        (lambda: FSQ(3, [8])(torch.zeros(4, 3), torch.ones(4)), TypeError, "mask must be a bool tensor"),
        (lambda: FSQ(3, [8]).decode(torch.tensor([8])), IndexError, "another quantizer"),
        (lambda: FSQ(3, [8]).decode(torch.zeros(4)), TypeError, "indices must be int64"),
        (lambda: ResidualFSQ(3, [8], num_quantizers=0), ValueError, "num_quantizers must be at least 1"),
        (
            lambda: ResidualFSQ(3, [8], num_quantizers=2).decode(torch.zeros(4, 3).long()),
            ValueError,
            r"\(\*R, 1, 2\)",
        ),
        (lambda: ResidualFSQ(3, [8], num_quantizers=2, dropout=0.5), TypeError, "must be a QuantizeDropout or None"),
        (lambda: LFQ(3, 9), ValueError, "power of two"),
        (lambda: LFQ(3, 1), ValueError, "power of two from 2"),
        (lambda: LFQ(3, 2**30), ValueError, r"CodeEntropy\(groups=...\)"),
        (lambda: LFQ(3, 8, entropy=CodeEntropy(groups=2)), ValueError, "must divide the 3 bits"),
        (lambda: LFQ(3, 8, entropy=0.1), TypeError, "must be a CodeEntropy, got float"),
        (lambda: LFQ(3, 8, commitment_weight=-1.0), ValueError, "commitment_weight must be a finite number"),
        (lambda: CodeEntropy(temperature=0.0), ValueError, "temperature must be above 0"),
        (lambda: CodeEntropy(groups=0), ValueError, "groups must be at least 1"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 30, 64, 1000])
@pytest.mark.parametrize("levels", [[3], [8, 5, 5, 5], [4] * 5, [7] * 70, [2**15] * 4])
def test_fsq_of_many_rows_at_once_is_that_of_one_row_after_another(rows, levels):
    torch.manual_seed(0)
    fsq = FSQ(len(levels), levels) if len(levels) < 70 else FSQ(20, levels[:20])
    x = torch.randn(rows, fsq.dim)
    x[0] = 20  # the outermost levels
    quantized, indices, _ = fsq(x)
    alone = [fsq(row.unsqueeze(0)) for row in x]
    assert torch.equal(indices, torch.cat([one.indices for one in alone]))
    assert torch.equal(quantized, torch.cat([one.quantized for one in alone]))
    assert torch.equal(fsq.encode(x), indices)
    assert torch.equal(fsq.decode(indices), quantized)
    assert indices.min() >= 0
    assert indices.max() < fsq.codebook_size


def test_fsq_is_made_without_data():
    with torch.device("meta"):
        fsq = FSQ(4, [8, 5, 5, 5])
    x = torch.randn(3, 4)
    made = FSQ(4, [8, 5, 5, 5])
    fsq = fsq.to_empty(device="cpu")
    fsq.levels.copy_(made.levels)
    fsq.basis.copy_(made.basis)
    assert torch.equal(fsq.encode(x), made.encode(x))
