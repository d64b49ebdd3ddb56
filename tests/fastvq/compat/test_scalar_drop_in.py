"""The quantizers without a learned codebook beside vector-quantize-pytorch itself: same seed, same everything."""

import pytest
import torch
from torch import nn

from fastvq.compat import vector_quantize_pytorch as ours

peer = pytest.importorskip("vector_quantize_pytorch", reason="the peer is not installed")

# Class, keywords of the constructor, shape of the input, keywords of forward. Every keyword occurs.
FSQ = [
    ("FSQ", {"levels": [8, 5, 5, 5]}, (2, 9, 4), {}),
    ("FSQ", {"levels": (8, 6, 5), "dim": 16, "projection_has_bias": False}, (2, 16, 3, 4), {}),
    ("FSQ", {"levels": [8, 5], "dim": 16, "num_codebooks": 2, "channel_first": True}, (2, 16, 5), {}),
    ("FSQ", {"levels": [8, 5], "keep_num_codebooks_dim": True, "return_indices": False}, (2, 5, 2), {}),
    ("FSQ", {"levels": [8, 5], "keep_num_codebooks_dim": True}, (2, 2, 3, 4, 2), {}),
    ("FSQ", {"levels": [2, 5, 4], "dim": 7, "preserve_symmetry": True, "noise_dropout": 0.5}, (2, 9, 7), {}),
    ("FSQ", {"levels": [5, 5, 5], "orthogonal_rotation": True, "bound_hard_clamp": True}, (2, 9, 3), {}),
    ("FSQ", {"levels": [8, 5], "force_quantization_f32": False, "allowed_dtypes": (torch.float32,)}, (2, 9, 2), {}),
    ("ResidualFSQ", {"dim": 16, "levels": [8, 5, 5, 3], "num_quantizers": 4}, (2, 9, 16), {}),
    ("ResidualFSQ", {"levels": [5, 3], "num_quantizers": 3}, (2, 9, 2), {"return_all_codes": True}),
    (
        "ResidualFSQ",
        {"levels": [5, 3], "num_quantizers": 3, "bound_hard_clamp": False, "soft_clamp_input_value": [2.0, 3.0]},
        (2, 9, 2),
        {},
    ),
    (
        "ResidualFSQ",
        {"dim": 16, "levels": [5, 5], "num_quantizers": 3, "bound_hard_clamp": False, "noise_dropout": 0.3},
        (2, 9, 16),
        {},
    ),
    (
        "ResidualFSQ",
        {"dim": 16, "levels": [5, 5], "num_quantizers": 3, "is_channel_first": True, "orthogonal_rotation": True},
        (2, 16, 3, 4),
        {},
    ),
    (
        "ResidualFSQ",
        {
            "dim": 16,
            "levels": [5, 3],
            "num_quantizers": 6,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        (2, 9, 16),
        {},
    ),
    (
        "ResidualFSQ",
        {"dim": 16, "levels": [5, 3], "num_quantizers": 6, "quantize_dropout": True},
        (2, 9, 16),
        {"rand_quantize_dropout_fixed_seed": 12345},
    ),
    ("GroupedResidualFSQ", {"dim": 16, "levels": [5, 3], "groups": 2, "num_quantizers": 3}, (2, 9, 16), {}),
    (
        "GroupedResidualFSQ",
        {
            "dim": 16,
            "levels": [5, 3],
            "groups": 2,
            "num_quantizers": 3,
            "accept_image_fmap": True,
            "is_channel_first": True,
        },
        (2, 16, 3, 4),
        {},
    ),
    (
        "GroupedResidualFSQ",
        {"dim": 16, "levels": [5, 3], "groups": 2, "num_quantizers": 5, "quantize_dropout": True},
        (2, 9, 16),
        {"return_all_codes": True},
    ),
]
LFQ = [
    ("LFQ", {"dim": 10}, (2, 9, 10), {}),
    ("LFQ", {"codebook_size": 64, "entropy_loss_weight": 0.3, "diversity_gamma": 2.0}, (2, 9, 6), {}),
    ("LFQ", {"dim": 11}, (2, 50, 11), {"inv_temperature": 1.0, "return_loss_breakdown": True}),
    ("LFQ", {"dim": 11, "codebook_scale": 0.5}, (2, 50, 11), {"inv_temperature": 10.0}),
    (
        "LFQ",
        {"dim": 16, "codebook_size": 64, "num_codebooks": 3, "commitment_loss_weight": 0.25},
        (2, 16, 4, 4),
        {"return_loss_breakdown": True},
    ),
    ("LFQ", {"dim": 6, "has_projections": True, "projection_has_bias": False}, (2, 9, 6), {}),
    ("LFQ", {"dim": 6, "channel_first": True, "keep_num_codebooks_dim": True}, (2, 6, 9), {}),
    (
        "LFQ",
        {"dim": 8, "spherical": True, "orthogonal_rotation": True, "force_quantization_f32": False},
        (2, 9, 8),
        {"inv_temperature": 3.0},
    ),
    (
        "LFQ",
        {"dim": 8, "experimental_softplus_entropy_loss": True, "entropy_loss_offset": 1.0},
        (2, 9, 8),
        {"inv_temperature": 3.0},
    ),
    (
        "LFQ",
        {"dim": 16, "codebook_size": 64, "cosine_sim_project_in": True, "cosine_sim_project_in_scale": 2.0},
        (2, 9, 16),
        {},
    ),
    (
        "LFQ",
        {
            "dim": 8,
            "frac_per_sample_entropy": 0.3,
            "straight_through_activation": nn.Tanh(),
            "soft_clamp_input_value": 2.0,
        },
        (2, 9, 8),
        {},
    ),
    ("ResidualLFQ", {"dim": 16, "codebook_size": 64, "num_quantizers": 4}, (2, 9, 16), {"return_all_codes": True}),
    (
        "ResidualLFQ",
        {
            "dim": 6,
            "codebook_size": 64,
            "num_quantizers": 3,
            "soft_clamp_input_value": 2.0,
            "commitment_loss_weight": 0.3,
        },
        (2, 9, 6),
        {},
    ),
    (
        "ResidualLFQ",
        {
            "dim": 16,
            "codebook_size": 64,
            "num_quantizers": 6,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        (2, 9, 16),
        {},
    ),
    ("GroupedResidualLFQ", {"dim": 16, "codebook_size": 64, "num_quantizers": 3, "groups": 2}, (2, 9, 16), {}),
    (
        "GroupedResidualLFQ",
        {"dim": 12, "codebook_size": 64, "num_quantizers": 3, "groups": 2, "accept_image_fmap": True},
        (2, 12, 3, 4),
        {},
    ),
]
OTHERS = [
    ("LatentQuantize", {"levels": [5, 5, 8], "dim": 16}, (2, 16, 3, 4), {}),
    ("LatentQuantize", {"levels": [5, 7, 8], "dim": 9, "num_codebooks": 3}, (2, 9, 4), {}),
    (
        "LatentQuantize",
        {
            "levels": 5,
            "dim": 9,
            "codebook_dim": 4,
            "optimize_values": False,
            "commitment_loss_weight": 0.5,
            "quantization_loss_weight": 0.25,
            "keep_num_codebooks_dim": True,
        },
        (2, 9, 4),
        {},
    ),
    ("BinaryMapper", {"bits": 6}, (3, 4, 6), {"return_indices": True}),
    ("BinaryMapper", {"bits": 6}, (3, 4, 6), {"deterministic": True}),
    ("BinaryMapper", {"bits": 6, "kl_loss_threshold": 0.1}, (5, 6), {"temperature": 0.5, "return_indices": True}),
    ("BinaryMapper", {"bits": 3, "deterministic_on_eval": True}, (4, 3), {"reduce_aux_kl_loss": False}),
    ("BinaryMapper", {"bits": 3}, (4, 3), {"straight_through": True, "calc_aux_loss": True}),
]
ALL = [*FSQ, *LFQ, *OTHERS]


def named(case):
    return "-".join([case[0], *case[1], *case[3]])


def pair(name, keywords):
    made = []
    for library in (peer, ours):
        torch.manual_seed(0)
        made.append(getattr(library, name)(**keywords))
    return made


def flat(value):
    """The tensors of a nested result."""
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in flat(part)]
    return [value]


def agree(a, b, tolerance, same_dtype=True):
    assert (a is None) == (b is None)
    if a is None:
        return
    assert a.shape == b.shape
    assert a.dtype == b.dtype or not same_dtype
    # A loss is a difference of entropies, which are about 1 themselves.
    scale = a.detach().double().abs().max().clamp_min(1e-3 if a.dim() > 1 else 1.0).item() if a.numel() else 1.0
    torch.testing.assert_close(b.double(), a.double(), rtol=0, atol=tolerance * scale)


def step(module, optimizer, x, seed, keywords):
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    out = module(x, **keywords)
    tensors = [t for t in flat(out) if t is not None]
    weights = [torch.linspace(-1, 1, t.numel(), dtype=x.dtype).view_as(t) for t in tensors]
    total = sum((t * w).sum() for t, w in zip(tensors, weights, strict=True) if t.is_floating_point())
    optimizer.zero_grad()
    if total.requires_grad:
        total.backward()
    optimizer.step()
    return out, x.grad, [p.grad for p in module.parameters()]


def train(case, steps, tolerance, dtype=torch.float32, together=False):
    name, keywords, shape, call = case
    modules = [module.to(dtype).train() for module in pair(name, keywords)]
    # A parameter of its own, since some modules have none.
    optimizers = [
        torch.optim.SGD([*m.parameters(), nn.Parameter(torch.zeros(1))], 0.02, momentum=0.5) for m in modules
    ]
    for number in range(steps):
        torch.manual_seed(1000 + number)
        x = torch.randn(shape, dtype=dtype)
        if together:
            modules[1].load_state_dict(modules[0].state_dict())
        a, b = (step(m, o, x, number, call) for m, o in zip(modules, optimizers, strict=True))
        dropped = keywords.get("quantize_dropout", False)  # which has int32 or int64 indices there, as stages fall
        for u, v in zip(flat(a), flat(b), strict=True):
            agree(u, v, tolerance, same_dtype=not dropped)
        for (_, u), (_, v) in zip(modules[0].named_parameters(), modules[1].named_parameters(), strict=True):
            agree(u, v, tolerance)


@pytest.mark.parametrize("case", [*FSQ, *OTHERS], ids=named)
def test_fifty_free_steps(case):
    """Elementwise work: float32 rounding never parts the two."""
    train(case, 50, 1e-5)


@pytest.mark.parametrize("case", LFQ, ids=named)
def test_steps_of_entropies(case):
    """Float32, the weights made equal before each step: the entropies are summed in another order."""
    train(case, 20, 1e-4, together=True)


@pytest.mark.parametrize(
    "case", [c for c in LFQ if "quantize_dropout" not in c[1] and "spherical" not in c[1]], ids=named
)
def test_fifty_free_steps_in_float64(case):
    """Free-running, in float64: what sets the two apart is rounding alone."""
    name, keywords, shape, call = case
    train((name, {**keywords, "force_quantization_f32": False}, shape, call), 50, 1e-9, torch.float64)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_eval_and_state_both_ways(case):
    name, keywords, shape, call = case
    theirs, mine = (module.eval() for module in pair(name, keywords))
    assert {k: v.dtype for k, v in theirs.state_dict().items()} == {k: v.dtype for k, v in mine.state_dict().items()}
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in mine.named_parameters()]
    torch.manual_seed(5)
    for key, parameter in theirs.named_parameters():
        if "values" not in key:  # whose indices the peer works out for its first values only
            nn.init.normal_(parameter)
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(shape)
    results = []
    for module in (theirs, mine):
        torch.manual_seed(1)
        results.append(flat(module(x, **call)))
    for a, b in zip(*results, strict=True):
        agree(a, b, 1e-5)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_public_attributes(case):
    """What a user of the peer reads off a module is there, and the same."""
    theirs, mine = pair(*case[:2])
    # Not reached for: helpers that only their forward passes use.
    inner = {"maybe_l2norm", "quantize_and_project"}
    for name in vars(theirs).keys() | {n for n in dir(type(theirs)) if n not in dir(nn.Module)}:
        if name.startswith("_") or name in inner:
            continue
        if not hasattr(theirs, name):
            continue
        assert hasattr(mine, name), name
        value = getattr(theirs, name)
        if isinstance(value, (int, float, bool, str)):
            assert getattr(mine, name) == value, name
    for name, value in theirs.named_buffers(recurse=False):
        agree(value, getattr(mine, name), 1e-6, same_dtype=value.is_floating_point())
    for name in ("codebooks", "split_dim"):
        if hasattr(theirs, name):
            agree(*(torch.as_tensor(getattr(m, name)) for m in (theirs, mine)), 1e-6)


@pytest.mark.parametrize("name", ["FSQ", "LFQ", "LatentQuantize"])
@pytest.mark.parametrize("codebooks", [1, 2])
def test_codes_of_indices(name, codebooks):
    sizes = {"codebook_size": 64} if name == "LFQ" else {"levels": [4, 4, 4]}
    theirs, mine = pair(name, {"dim": 10, "num_codebooks": codebooks, **sizes})
    shapes = [(2, 3, 5), (2, 7)] if codebooks == 1 else [(2, 3, 5, 2), (2, 7, 2)]
    for shape in shapes:
        indices = torch.randint(0, 64, shape, dtype=torch.int32)
        agree(theirs.indices_to_codes(indices), mine.indices_to_codes(indices), 1e-6)
    if name != "FSQ":
        agree(*(m.indices_to_codes(indices, project_out=False) for m in (theirs, mine)), 1e-6)
    if name == "LFQ":
        bits = torch.randint(0, 2, (3, 6)).float()
        agree(theirs.bits_to_codes(bits), mine.bits_to_codes(bits), 0)
        return
    codes = theirs.implicit_codebook
    agree(codes, mine.implicit_codebook, 1e-6)
    agree(theirs.codes_to_indices(codes), mine.codes_to_indices(codes), 0)
    assert mine.codes_to_indices(codes).tolist() == list(range(64))
    if name == "FSQ":
        agree(*(m.indices_to_level_indices(indices) for m in (theirs, mine)), 0)
        for method in ("bound", "symmetry_preserving_bound", "quantize"):
            z = torch.randn(50, 3)
            agree(*(getattr(m, method)(z) for m in (theirs, mine)), 1e-6)
    else:
        z, zhat = torch.randn(2, 5, 3)
        agree(theirs.quantize(z), mine.quantize(z), 1e-6)
        for method in ("commitment_loss", "quantization_loss"):
            agree(getattr(theirs, method)(z, zhat), getattr(mine, method)(z, zhat), 1e-6)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("ResidualFSQ", {"levels": [5, 3], "dim": 6}),
        ("ResidualLFQ", {"codebook_size": 8, "dim": 6}),
        ("GroupedResidualFSQ", {"levels": [5, 3], "dim": 6, "groups": 2}),
        ("GroupedResidualLFQ", {"codebook_size": 8, "dim": 6, "groups": 2}),
    ],
)
def test_outputs_of_indices(name, keywords):
    """Whole stacks, coarse ones, and ones with dropped stages."""
    theirs, mine = pair(name, {"num_quantizers": 4, "quantize_dropout": True, **keywords})
    lead = (2,) if "groups" in keywords else ()
    indices = torch.randint(0, 8, (*lead, 3, 5, 4))
    holed = indices.masked_fill(torch.rand(indices.shape) < 0.3, -1)
    for given in (indices, holed, indices[..., :2], indices.unflatten(-2, (5, 1))):
        agree(theirs.get_codes_from_indices(given), mine.get_codes_from_indices(given), 1e-6)
        if "groups" not in keywords or given.dim() == 4:
            agree(theirs.get_output_from_indices(given), mine.get_output_from_indices(given), 1e-6)


def test_log_probabilities_of_bits():
    theirs, mine = pair("BinaryMapper", {"bits": 5})
    logits = torch.randn(3, 4, 5)
    one_hot, indices, _ = mine(logits, return_indices=True)
    for given in ({"indices": indices}, {"one_hot": one_hot}, {"indices": indices, "sum_bits": False}):
        agree(theirs.log_prob(logits, **given), mine.log_prob(logits, **given), 1e-6)
    agree(theirs.binary_entropy(logits), mine.binary_entropy(logits), 1e-6)
    agree(theirs.calc_aux_loss(logits), mine.calc_aux_loss(logits), 1e-5)
    assert torch.equal(theirs.codes, mine.codes)


@pytest.mark.parametrize(
    "keywords", [{}, {"num_codebooks": 3}, {"num_codebooks": 3, "norm": False, "kmeans_init": True}]
)
def test_random_projections(keywords):
    keywords = {"dim": 32, "codebook_size": 50, "codebook_dim": 8, **keywords}
    theirs, mine = pair("RandomProjectionQuantizer", keywords)
    assert theirs.state_dict().keys() == mine.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name]), name
    x = torch.randn(2, 40, 32)
    if "kmeans_init" in keywords:
        theirs(x)  # begins with k-means, and both with what it makes
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    labels = theirs(x)
    agree(labels, mine.train()(x), 0)
    losses = []
    for module in (theirs, mine):
        given = x.clone().requires_grad_()
        loss = module(given, indices=labels)
        losses.append((loss, *torch.autograd.grad(loss, given)))
    for a, b in zip(*losses, strict=True):
        agree(a, b, 1e-5)
