"""What vector-quantize-pytorch's scalar quantizers get wrong, and the drop-in ones do not; and what all must do."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq.compat import vector_quantize_pytorch as ours
from fastvq.compat.vector_quantize_pytorch.lookup_free import floored_entropy

peer = pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")

ROOT = Path(__file__).resolve().parents[3]

KINDS = {
    "FSQ": ({"levels": [8, 5, 5], "dim": 12}, (2, 9, 12)),
    "FSQ image": ({"levels": [4, 4], "dim": 12, "orthogonal_rotation": True}, (2, 12, 3, 4)),
    "ResidualFSQ": ({"levels": [5, 3], "dim": 12, "num_quantizers": 3, "quantize_dropout": True}, (2, 9, 12)),
    "GroupedResidualFSQ": ({"levels": [5, 3], "dim": 12, "num_quantizers": 3, "groups": 2}, (2, 9, 12)),
    "LFQ": ({"dim": 12, "codebook_size": 64, "commitment_loss_weight": 0.25}, (2, 9, 12)),
    "LFQ part": ({"dim": 12, "codebook_size": 64, "frac_per_sample_entropy": 0.5}, (2, 9, 12)),
    "ResidualLFQ": ({"dim": 12, "codebook_size": 64, "num_quantizers": 3, "quantize_dropout": True}, (2, 9, 12)),
    "GroupedResidualLFQ": ({"dim": 12, "codebook_size": 64, "num_quantizers": 3, "groups": 2}, (2, 9, 12)),
    "LatentQuantize": ({"levels": [5, 8], "dim": 12}, (2, 12, 9)),
    "BinaryMapper": ({"bits": 6}, (2, 9, 6)),
    "RandomProjectionQuantizer": (
        {"dim": 12, "codebook_size": 30, "codebook_dim": 5, "num_codebooks": 2},
        (2, 9, 12),
    ),
}
every = pytest.mark.parametrize("kind", KINDS)


def make(kind, library=ours):
    torch.manual_seed(0)
    return getattr(library, kind.split()[0])(**KINDS[kind][0])


def tensors(out):
    return [out] if isinstance(out, torch.Tensor) else [t for t in out if t is not None]


def run(module, x, seed=3):
    torch.manual_seed(seed)
    return tensors(module(x))


@every
def test_compiles_whole_and_exports(kind):
    """The peer breaks the graph for a dropout of stages, a mask, and LatentQuantize's losses."""
    module, shape = make(kind), KINDS[kind][1]
    x = torch.randn(shape)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        module.train(mode)
        got, expected = run(compiled, x), run(module, x)
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape
            if kind not in ("BinaryMapper", "ResidualFSQ", "ResidualLFQ", "LFQ part") or not mode:
                torch.testing.assert_close(a, b)  # compiled code draws in an order of its own
    if kind != "BinaryMapper":
        exported = torch.export.export(module, (x,)).module()
        for a, b in zip(run(exported, x), run(module, x), strict=True):
            torch.testing.assert_close(a, b)


@every
def test_copies_and_pickles(kind):
    module, x = make(kind).eval(), torch.randn(KINDS[kind][1])
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for a, b in zip(run(copied, x), run(module, x), strict=True):
            assert torch.equal(a, b)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_and_decodes(kind, dtype):
    module = make(kind).to(dtype)
    x = torch.randn(KINDS[kind][1], dtype=dtype, requires_grad=kind != "RandomProjectionQuantizer")
    out = run(module, x)
    if kind == "RandomProjectionQuantizer":
        assert out[0].dtype == torch.int64
        return
    assert out[0].dtype == dtype
    (out[0].sum() + sum(t.sum() for t in out[1:] if t.is_floating_point())).backward()
    assert x.grad.isfinite().all()
    decode = getattr(module, "get_output_from_indices", getattr(module, "indices_to_codes", None))
    if decode is not None:
        quantized, indices = run(module.eval(), x)[:2]
        assert torch.equal(decode(indices).to(dtype), quantized)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(make(kind), x.detach().float())


@every
def test_non_contiguous_and_empty_input(kind):
    module, shape = make(kind).eval(), KINDS[kind][1]
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    for a, b in zip(run(module, x), run(module, x.contiguous()), strict=True):
        torch.testing.assert_close(a, b)
    for mode in (True, False):
        out = run(module.train(mode), x[:0])
        assert 0 in out[0].shape


@pytest.mark.parametrize("kind", ["FSQ", "ResidualFSQ", "LFQ", "ResidualLFQ", "LatentQuantize"])
def test_rows_with_nan_spoil_only_themselves(kind):
    """The peer's LFQ gives such a row a code like any other."""
    module, shape = make(kind).train(), KINDS[kind][1]
    x = torch.randn(shape)
    first = kind == "LatentQuantize"
    (x[0, :, 4] if first else x[0, 4])[:] = float("nan")
    for mode in (True, False):
        quantized, indices, *loss = run(module.train(mode), x)
        assert (indices[0, 4] == -1).all()
        quantized = quantized.mT if first else quantized
        assert quantized[0, 4].isnan().all()
        assert quantized[1].isfinite().all()
        assert (indices[1] >= -1 if mode else indices[1] >= 0).all()
        assert first or all(value.isfinite().all() for value in loss)


class Largest(TorchDispatchMode):
    """Notes the most elements that a tensor made inside has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_table_of_rows_by_codes():
    x = torch.randn(1, 300, 12)
    for library, most in ((peer, None), (ours, 300 * 2**7)):
        torch.manual_seed(0)
        lfq = library.LFQ(dim=12)
        with Largest() as largest:
            lfq(x.clone().requires_grad_()).entropy_aux_loss.backward()
        assert largest.numel >= 300 * 2**12 if most is None else largest.numel <= most


def test_large_codebooks_cost_nothing_until_they_are_read():
    """The peer makes a table of all codes when constructed: here it would have 2^40."""
    lfq = ours.LFQ(dim=40, entropy_loss_weight=0.0)
    quantized, indices, _ = lfq(torch.randn(1, 9, 40))
    assert torch.equal(lfq.indices_to_codes(indices), quantized)
    fsq = ours.FSQ(levels=[8] * 13)
    quantized, indices = fsq(torch.randn(1, 500, 13))
    assert indices.dtype == torch.int64
    assert torch.equal(fsq.indices_to_codes(indices), quantized)
    with pytest.raises(ValueError, match="entropy_loss_weight=0"):
        ours.LFQ(dim=40)(torch.randn(1, 9, 40))


@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.3, 3.0])
@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_floored_entropy_by_its_definition(bits, scale):
    torch.manual_seed(0)
    logits = (torch.randn(30, bits, dtype=torch.float64) / scale).requires_grad_()
    codes = (torch.arange(2**bits).unsqueeze(-1) >> torch.arange(bits - 1, -1, -1) & 1).double()
    prob = (logits @ codes.T).softmax(-1)
    expected = -(prob * prob.clamp_min(1e-5).log()).sum(-1)
    found = floored_entropy(logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(t.sum(), logits) for t in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_a_mask_keeps_the_batch_entropy():
    """The peer averages over nothing once there is a mask: an all-True one changes its loss."""
    x, everywhere = torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool)
    part = torch.rand(2, 9) < 0.6
    for library, right in ((peer, False), (ours, True)):
        torch.manual_seed(0)
        lfq = library.LFQ(dim=6, commitment_loss_weight=0.25)
        whole, masked = lfq(x, inv_temperature=3.0), lfq(x, inv_temperature=3.0, mask=everywhere)
        assert torch.allclose(whole.entropy_aux_loss, masked.entropy_aux_loss, atol=1e-5) == right
    alone = lfq(x[part].unsqueeze(0), inv_temperature=3.0).entropy_aux_loss
    expected = peer.LFQ(dim=6, commitment_loss_weight=0.25)(x[part].unsqueeze(0), inv_temperature=3.0)
    torch.testing.assert_close(lfq(x, inv_temperature=3.0, mask=part).entropy_aux_loss, alone)
    torch.testing.assert_close(alone, expected.entropy_aux_loss)
    assert lfq(x, mask=~everywhere).entropy_aux_loss == 0


def test_a_mask_breaks_no_graph():
    x, mask = torch.randn(2, 9, 6), torch.rand(2, 9) < 0.6
    for frac in (1.0, 0.5):
        lfq = ours.LFQ(dim=6, frac_per_sample_entropy=frac)
        out = torch.compile(lfq, fullgraph=True, backend="eager")(x, mask=mask)
        assert out.entropy_aux_loss.isfinite()
    image = ours.LFQ(dim=6)(torch.randn(2, 6, 3, 3), mask=mask.view(2, 3, 3))
    assert image.entropy_aux_loss.isfinite()


def test_a_fraction_of_the_rows():
    """Of the rows that the mask leaves, half; and a different half each time."""
    torch.manual_seed(0)
    lfq, x = ours.LFQ(dim=4, frac_per_sample_entropy=0.5, diversity_gamma=0.0), torch.zeros(1, 40, 4)
    x[:, 20:] = 100.0  # without entropy
    assert lfq(x, mask=torch.arange(40)[None] < 20).entropy_aux_loss > 0.27  # 0.1 * 4 log 2
    shares = {round(lfq(x).entropy_aux_loss.item(), 4) for _ in range(20)}
    assert len(shares) > 3


def test_codes_of_a_bfloat16_module_decode():
    x = torch.randn(2, 9, 12).bfloat16()
    theirs, mine = (make("FSQ", library).bfloat16() for library in (peer, ours))
    quantized, indices = theirs(x)
    with pytest.raises(RuntimeError, match="dtype"):
        theirs.indices_to_codes(indices)
    assert torch.equal(mine.indices_to_codes(indices), quantized)
    logits = torch.randn(3, 6).bfloat16()
    with pytest.raises(RuntimeError, match="BFloat16"):
        peer.BinaryMapper(6)(logits)
    assert ours.BinaryMapper(6)(logits)[0].dtype == torch.bfloat16


def test_scales_of_stages_stay_float32():
    """1 / 125 rounds by 0.2 % in bfloat16, and the codes of all rows with it."""
    theirs, mine = (lib.ResidualFSQ(levels=[5, 5], num_quantizers=4).bfloat16().eval() for lib in (peer, ours))
    exact = torch.tensor(5.0) ** -torch.arange(4)
    assert not torch.equal(theirs.scales[:, 0].float(), exact)
    assert torch.equal(mine.scales[:, 0], exact)
    x = torch.randn(1, 500, 2).bfloat16()
    expected = ours.ResidualFSQ(levels=[5, 5], num_quantizers=4).eval()(x.float())[1]
    assert torch.equal(mine(x)[1], expected)
    assert not torch.equal(theirs(x)[1], expected)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("ResidualFSQ", {"levels": [5, 5, 5], "orthogonal_rotation": True}),
        ("ResidualLFQ", {"codebook_size": 8, "dim": 3, "orthogonal_rotation": True}),
        ("ResidualLFQ", {"codebook_size": 8, "dim": 3, "spherical": True}),
    ],
)
def test_codes_of_indices_are_those_of_the_forward_pass(name, keywords):
    x = torch.randn(2, 9, 3)
    for library, right in ((peer, False), (ours, True)):
        module = getattr(library, name)(num_quantizers=3, **keywords).eval()
        quantized, indices, *_ = module(x)
        assert torch.allclose(module.get_output_from_indices(indices), quantized, atol=1e-6) == right


def test_channels_first_gives_its_codes_and_images_their_layout():
    keywords = {"levels": [5, 3], "dim": 8, "num_quantizers": 3, "is_channel_first": True}
    x = torch.randn(2, 8, 4, 5)
    with pytest.raises(Exception):  # noqa: B017, PT011  whichever it fails with
        peer.ResidualFSQ(**keywords)(x, return_all_codes=True)
    stack = ours.ResidualFSQ(**keywords)
    quantized, indices, codes = stack(x, return_all_codes=True)
    assert codes.shape == (3, 2, 4, 5, 2)
    assert indices.shape == (2, 3, 4, 5)
    assert torch.allclose(stack.get_output_from_indices(indices.movedim(1, -1)).movedim(-1, 1), quantized, atol=1e-6)
    with pytest.raises(ValueError, match=r"movedim\(1, -1\)"):
        stack.get_output_from_indices(indices)
    keywords = {"codebook_size": 16, "dim": 8, "groups": 2, "num_quantizers": 3, "accept_image_fmap": True}
    for library, right in ((peer, False), (ours, True)):
        grouped = library.GroupedResidualLFQ(**keywords).eval()
        quantized, indices, _ = grouped(x)
        assert (grouped.get_output_from_indices(indices).shape == quantized.shape) == right


def test_dropout_of_stages_asks_the_host_nothing():
    torch._dynamo.reset()
    theirs, mine = (make("ResidualLFQ", library) for library in (peer, ours))
    x = torch.randn(2, 9, 12)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(theirs, fullgraph=True, backend="eager")(x)
    step = torch.compile(mine, fullgraph=True, backend="eager")
    kept = {int((step(x)[1] >= 0).all(0).all(0).sum()) for _ in range(30)}
    assert kept == {1, 2, 3}
    stacks = [make("ResidualFSQ", library) for library in (peer, ours)]
    kinds = [{str(stack(x)[1].dtype) for _ in range(20)} for stack in stacks]
    assert len(kinds[0]) == 2  # as stages were dropped or not
    assert kinds[1] == {"torch.int32"}


def test_a_level_is_never_lost_to_truncation():
    """Of 15 levels, a thirteenth of the peer's indices are those of another value than was chosen."""
    x = torch.rand(1, 1, 4000) - 0.5
    for library, right in ((peer, False), (ours, True)):
        latent = library.LatentQuantize([15], dim=1)
        quantized, indices, _ = latent(x)
        wrong = (latent.indices_to_codes(indices) - quantized).abs() > 0.01
        assert (wrong.float().mean() < 0.01) == right
    assert torch.equal(latent.indices_to_codes(indices), quantized)
    with torch.no_grad():
        latent.values_per_latent[0].mul_(2.0)  # decoded as they are, not as they were made
    quantized, indices, _ = latent(x)
    assert torch.equal(latent.indices_to_codes(indices), quantized)


def test_latent_sequences_may_have_their_channels_last():
    x = torch.randn(1, 32, 16)
    theirs, mine = (library.LatentQuantize([5, 5, 8], dim=16) for library in (peer, ours))
    with pytest.raises(AssertionError):
        theirs(x)
    quantized, indices, _ = mine(x)
    assert quantized.shape == x.shape
    assert indices.shape == (1, 32)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x)[0], theirs(x.mT)[0].mT)


def test_a_one_hot_is_zero_and_one():
    mapper = ours.BinaryMapper(6)
    logits = torch.randn(50, 6, requires_grad=True)
    one_hot, indices, _ = mapper(logits, return_indices=True)
    assert torch.equal(one_hot, nn.functional.one_hot(indices, 64).float())
    assert torch.equal(mapper.codes[indices].long() @ mapper.power_two, indices)
    (grad,) = torch.autograd.grad((one_hot * torch.randn(64)).sum(), logits)
    assert (grad != 0).all()


PROCESSES = """
import sys, torch, torch.distributed as dist
from fastvq.compat.vector_quantize_pytorch import LFQ, GroupedResidualFSQ
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(2, 40, 6).requires_grad_()
lfq = LFQ(dim=6, entropy_loss_weight=1.0)
loss = lfq(x[rank : rank + 1], inv_temperature=3.0).entropy_aux_loss
loss.backward()
total = torch.stack([loss.detach(), x.grad[rank].abs().sum()])
dist.all_reduce(total)
torch.manual_seed(rank)
stack = GroupedResidualFSQ(dim=6, groups=2, levels=[3, 3, 3], num_quantizers=5, quantize_dropout=True)
kept = torch.tensor([int((stack(x[rank : rank + 1])[1] >= 0).any(0).any(0).any(0).sum()) for _ in range(8)])
both = [torch.zeros_like(kept) for _ in range(2)]
dist.all_gather(both, kept)
if rank == 0:
    print(float(total[0]) / 2, bool((both[0] == both[1]).all()), len(set(kept.tolist())))
dist.destroy_process_group()
"""


def test_two_processes_share_a_batch_entropy_and_a_dropout(tmp_path):
    """The mean over two processes of half a batch each is that of the batch; the peer halves its own."""
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    found, same, several = outputs[0].split()
    torch.manual_seed(0)
    x = torch.randn(2, 40, 6)
    lfq = ours.LFQ(dim=6, entropy_loss_weight=1.0)
    expected = lfq(x, inv_temperature=3.0).entropy_aux_loss.item()
    assert abs(float(found) - expected) < 1e-5
    assert same == "True"
    assert int(several) > 1


FSQ, LFQ = ours.FSQ, ours.LFQ
residual = {"num_quantizers": 2}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FSQ([8, 2]), "preserve_symmetry=True"),
        (lambda: FSQ([8, 5], scale=1.0), "multiply the output"),
        (lambda: FSQ([8, 5], noise_dropout=0.5), "needs preserve_symmetry=True"),
        (lambda: FSQ([8, 5], num_codebooks=2, keep_num_codebooks_dim=False), "must not be False"),
        (lambda: FSQ([8, 5])(torch.zeros(2, 3, 4)), "2 channels on axis -1"),
        (lambda: FSQ([8, 5]).codes_to_indices(torch.zeros(2, 3)), "2 channels last"),
        (lambda: FSQ([8, 5]).indices_to_codes(None), "return_indices=False"),
        (lambda: ours.ResidualFSQ(levels=[5], **residual, num_codebooks=2), "cannot take num_codebooks=2"),
        (lambda: ours.ResidualFSQ(levels=[5], **residual, return_indices=False), "cannot take return_indices"),
        (lambda: ours.ResidualFSQ(levels=[5], **residual, scale=2.0), "multiply the output"),
        (lambda: ours.ResidualFSQ(levels=[5], **residual, projection_has_bias=False), "projection_has_bias"),
        (lambda: ours.ResidualFSQ(levels=[5], **residual, soft_clamp_input_value=2.0), "bound_hard_clamp=False"),
        (
            lambda: ours.ResidualFSQ(levels=[5], **residual, quantize_dropout=True, quantize_dropout_cutoff_index=2),
            r"lie in \[0, 2\)",
        ),
        (lambda: ours.ResidualFSQ(levels=[5], **residual).get_codes_from_indices(torch.zeros(2, 3, 1)), "fewer"),
        (lambda: ours.GroupedResidualFSQ(dim=5, groups=2, levels=[5], **residual), "multiple of groups"),
        (
            lambda: ours.GroupedResidualFSQ(dim=4, groups=2, levels=[5, 5], **residual, accept_image_fmap=True),
            "pass both or neither",
        ),
        (
            lambda: ours.GroupedResidualFSQ(dim=4, groups=2, levels=[5, 5], **residual)(torch.zeros(2, 3)),
            "4 channels",
        ),
        (lambda: LFQ(), "dim or codebook_size"),
        (lambda: LFQ(codebook_size=100), "power of two from 2, got 100; try 128"),
        (lambda: LFQ(dim=4, frac_per_sample_entropy=0.0), r"\(0, 1\]"),
        (lambda: LFQ(dim=4, soft_clamp_input_value=0.5), "at least codebook_scale"),
        (lambda: LFQ(dim=4, codebook_size=8, has_projections=False), "needs projections to 3"),
        (lambda: LFQ(dim=4, cosine_sim_project_in_scale=2.0), "needs cosine_sim_project_in=True"),
        (lambda: LFQ(dim=4)(torch.zeros(2, 3, 4), mask=torch.ones(2, 4) > 0), "rows' shape"),
        (lambda: ours.ResidualLFQ(dim=4, codebook_size=100, **residual), "power of two"),
        (lambda: ours.ResidualLFQ(dim=4, codebook_size=16, **residual, cosine_sim_project_in=True), "cannot take"),
        (lambda: ours.ResidualLFQ(dim=4, codebook_size=16, **residual, has_projections=True), "cannot take"),
        (lambda: ours.GroupedResidualLFQ(dim=5, groups=2, codebook_size=16, **residual), "multiple of groups"),
        (lambda: ours.LatentQuantize(5, 4), "codebook_dim must be given"),
        (lambda: ours.LatentQuantize([5, 5], 4, codebook_dim=3), "number of levels, 2"),
        (lambda: ours.LatentQuantize([5], 4, in_place_codebook_optimizer=torch.optim.Adam), "optimizer of your own"),
        (lambda: ours.LatentQuantize([5], 4)(torch.zeros(2, 3, 5)), "4 channels on axis 1"),
        (lambda: ours.BinaryMapper(40), "at most 30"),
        (lambda: ours.BinaryMapper(4)(torch.zeros(2, 3)), "4 bits last"),
        (lambda: ours.BinaryMapper(4).log_prob(torch.zeros(2, 4)), "and not both"),
        (
            lambda: ours.RandomProjectionQuantizer(dim=4, codebook_size=8, codebook_dim=2, heads=2),
            "give num_codebooks",
        ),
        (
            lambda: ours.RandomProjectionQuantizer(dim=4, codebook_size=8, codebook_dim=2)(torch.zeros(2, 4)),
            r"\(B, N, 4\)",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_rotations_of_uneven_levels_warn():
    with pytest.warns(UserWarning, match="as many levels in each"):
        FSQ([8, 5], orthogonal_rotation=True)
