"""Files that are damaged, hostile or of another layout: one clear sentence, and nothing half-written."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastvq
from fastvq import checkpoints

ROOT = Path(__file__).resolve().parents[3]


def momask(stages=3):
    return {f"quantizer.layers.{stage}.codebook": torch.randn(16, 6) for stage in range(stages)}


def encodec(stages=3):
    state = {}
    for stage in range(stages):
        stem = f"quantizer.vq.layers.{stage}._codebook"
        state |= {f"{stem}.inited": torch.ones(1), f"{stem}.cluster_size": torch.rand(16)}
        state |= {f"{stem}.embed": torch.randn(16, 6), f"{stem}.embed_avg": torch.randn(16, 6)}
    return state


def dac():
    state = {}
    for stage in range(2):
        stem = f"quantizer.quantizers.{stage}"
        for side, shape in (("in_proj", (2, 6, 1)), ("out_proj", (6, 2, 1))):
            state[f"{stem}.{side}.weight_g"] = torch.rand(shape[0], 1, 1)
            state |= {f"{stem}.{side}.weight_v": torch.randn(shape), f"{stem}.{side}.bias": torch.randn(shape[0])}
        state[f"{stem}.codebook.weight"] = torch.randn(16, 2)
    return state


def mimi():
    state = {}
    for half, stages in (("rvq_first", 1), ("rvq_rest", 2)):
        for stage in range(stages):
            stem = f"quantizer.{half}.vq.layers.{stage}._codebook"
            state |= {f"{stem}._initialized": torch.ones(1), f"{stem}.cluster_usage": torch.rand(16) + 0.1}
            state[f"{stem}.embedding_sum"] = torch.randn(16, 4)
        state[f"quantizer.{half}.input_proj.weight"] = torch.randn(4, 6, 1)
        state[f"quantizer.{half}.output_proj.weight"] = torch.randn(6, 4, 1)
    return state


STATES = {"encodec": encodec, "dac": dac, "mimi": mimi, "momask": momask}


@pytest.mark.parametrize("name", STATES)
def test_every_missing_tensor_is_named(name):
    for missing in STATES[name]():
        state = STATES[name]()
        del state[missing]
        if name == "momask" and missing.endswith("2.codebook"):
            assert checkpoints.load(state).num_quantizers == 2  # nothing tells how many there were
            continue
        stem = missing.rsplit(".", 1)[0] if name == "encodec" else missing
        with pytest.raises(ValueError, match=r"(is missing, which the|lacks)") as raised:
            checkpoints.load(state, name)
        assert stem.replace("weight_g", "weight") in str(raised.value)


@pytest.mark.parametrize("name", STATES)
def test_every_wrong_shape_is_refused(name):
    """Where it is the first stage's that is wrong, its neighbours may be the ones that are named."""
    for wrong, tensor in STATES[name]().items():
        for other in (tensor[:-1], torch.cat([tensor, tensor]), tensor.unsqueeze(0)):
            if wrong.endswith(("inited", "_initialized")) and other.numel() == 1:
                continue
            state = {**STATES[name](), wrong: other}
            with pytest.raises(
                ValueError, match=r"quantizer\.\S+ must (have shape|be one flag)|must have equally many"
            ):
                checkpoints.load(state, name)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_every_tensor_must_be_finite(name, bad):
    for broken, tensor in STATES[name]().items():
        if broken.endswith(("inited", "_initialized")):
            continue
        state = STATES[name]()
        state[broken] = tensor.clone()
        state[broken].view(-1)[1 if tensor.numel() > 1 else 0] = bad
        with pytest.raises(ValueError, match=f"{broken} is not finite: training had broken down"):
            checkpoints.load(state)


@pytest.mark.parametrize("name", STATES)
def test_surplus_tensors_are_named(name):
    state = STATES[name]()
    stem = next(iter(state)).rsplit(".", 1)[0]
    state[f"{stem}.more"] = torch.ones(2)
    with pytest.raises(ValueError, match=rf"the {name} layout has no place for {stem}.more; the file is of another"):
        checkpoints.load(state)
    state = {**STATES[name](), "decoder.more": torch.ones(2)}
    checkpoints.load(state)  # outside the quantizer anything may be


def test_other_mistakes_are_explained():
    refused = (
        ((momask(), "vqgan"), r"layout must be one of 'mimi', .*, got 'vqgan'"),
        (({}, "auto"), "there are no tensors: give the state dict of a model"),
        (({"a.weight": torch.ones(2)}, "auto"), "no quantizer of any of the layouts .* is among a.weight; name"),
        ((dac(), "mimi"), "no quantizer of the mimi layout is among"),
        ((fastvq.ResidualVQ(6, 16, num_quantizers=2).state_dict(), "auto"), "fastvq's own tensors .*load_state_dict"),
        (({name: tensor.long() for name, tensor in momask().items()},), "must hold floating-point numbers, got"),
    )
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            checkpoints.load(*arguments)
    with pytest.raises(ValueError, match="there are no tensors under 'net'"):
        checkpoints.load(momask(), prefix="net")
    with pytest.raises(TypeError, match=r"no option 'decay' for a ResidualVQ from a checkpoint, choose from beam, "):
        checkpoints.load(momask(), decay=0.9)
    with pytest.raises(TypeError, match="no option 'dim' for a ResidualVQ"):
        checkpoints.load(momask(), dim=3)
    with pytest.raises(TypeError, match=r"a path or a state dict, got Linear; of a module give .state_dict\(\)"):
        checkpoints.load(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers.0.codebook is on the meta device and has no values"):
        checkpoints.load({name: tensor.to("meta") for name, tensor in momask().items()})
    zero = dac()
    zero["quantizer.quantizers.1.in_proj.weight_v"][1] = 0
    with pytest.raises(ValueError, match=r"quantizers.1.in_proj.weight_v has a row of zeros"):
        checkpoints.load(zero)


def test_the_prefix_and_the_best_state_choose():
    state = {"model": momask(), "best_state": momask(2), "opt": {"state": {0: {"step": torch.ones(())}}, "lr": 0.1}}
    assert checkpoints.load(state).num_quantizers == 2
    assert checkpoints.load(state, prefix="model").num_quantizers == 3
    assert checkpoints.load(state, prefix="model.quantizer").num_quantizers == 3
    del state["best_state"]
    state["ema"] = momask(2)
    with pytest.raises(ValueError, match=r"there are 2 quantizers, 'ema.quantizer' \(momask\), 'model.quantizer'"):
        checkpoints.load(state)
    with pytest.raises(ValueError, match="there are 2 quantizers"):
        checkpoints.detect(state)
    alone = {name.removeprefix("quantizer."): tensor for name, tensor in momask().items()}
    assert checkpoints.load(alone).num_quantizers == 3
    assert checkpoints.load({"net": momask(), "ep": 3}).num_quantizers == 3
    wrapped = {f"module.{name}": tensor for name, tensor in momask().items()}  # DataParallel's
    assert checkpoints.load(wrapped).num_quantizers == 3


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "tar", "safetensors"])
def test_nothing_in_a_file_is_run(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model.{suffix}"
    for dump in (lambda: torch.save({**momask(), "more": Attack()}, path), lambda: path.write_bytes(ATTACK)):
        dump()
        with pytest.raises(ValueError, match=r"was refused: it holds Python objects|is not a whole") as raised:
            checkpoints.load(path)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "attacked").exists()


ATTACK = pickle.dumps({"a": Attack()})


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    checkpoints.save(checkpoints.load(momask()), path, "momask")
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is not a whole \w+ file \(.*\); copy or|was refused"):
            checkpoints.load(path)
    path.write_bytes(whole)
    assert checkpoints.detect(path) == "momask"
    other = io.BytesIO()
    torch.save([torch.ones(2)], other)
    if suffix == "pt":
        path.write_bytes(other.getvalue())
        with pytest.raises(ValueError, match="must hold a dict of tensors by name, got list"):
            checkpoints.load(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model.pt: give a file of weights"):
        checkpoints.load(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is a folder: give the file of weights in it, e.g. model.safetensors"):
        checkpoints.load(str(tmp_path))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_failed_write_leaves_what_was_there(suffix, tmp_path, monkeypatch):
    vq = checkpoints.load(momask())
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"before")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"model.* cannot be written .No space left on device.: choose"):
        checkpoints.save(vq, path, "momask")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="cannot be written"):
        checkpoints.save(vq, tmp_path / "no" / path.name, "momask")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_written_files_have_ordinary_permissions(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    old = os.umask(0o027)
    try:
        checkpoints.save(checkpoints.load(momask()), path, "momask")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


UNFIT = (
    (lambda: nn.Linear(2, 2), "encodec", "the encodec layout holds a ResidualVQ, got Linear"),
    (lambda: fastvq.GroupedResidualVQ(6, 8, groups=2, num_quantizers=2), "momask", "holds a ResidualVQ, got Grouped"),
    (lambda: fastvq.FSQ(2, levels=[3, 3]), "vector-quantize-pytorch", "holds a GroupedResidualVQ or ResidualVQ or"),
    (lambda: fastvq.ResidualVQ(6, 8, num_quantizers=2, codebook_dim=2), "encodec", "has no place for projections"),
    (
        lambda: fastvq.ProjectedResidualVQ(6, [8, 4], num_quantizers=2, codebook_dim=2),
        "dac",
        r"equally many codes in all stages, got \[8, 4\]",
    ),
    (lambda: fastvq.ResidualVQ(6, [8, 4], num_quantizers=2), "momask", "equally many codes in all stages, got 8, 4"),
    (lambda: fastvq.VectorQuantize(6, 8, metric="cosine"), "t2m-gpt", "compares codes by l2, .* is 'cosine'"),
    (lambda: fastvq.VectorQuantize(6, 8, heads=2), "t2m-gpt", "no heads, got 1 groups and 2 heads"),
    (
        lambda: fastvq.ProjectedResidualVQ(6, 8, num_quantizers=2, codebook_dim=2, strides=(2, 1)),
        "hf-dac",
        "has no strides, got .2, 1.: use layout='snac'",
    ),
    (
        lambda: fastvq.ProjectedResidualVQ(6, 8, num_quantizers=2, codebook_dim=2, metric="l2"),
        "dac",
        "learned codes that are compared by angle, got metric 'l2'",
    ),
    (lambda: fastvq.ProjectedResidualVQ(6, 8, num_quantizers=2, codebook_dim=6), "dac", "projections in every stage"),
    (lambda: fastvq.SplitResidualVQ(6, 8, num_quantizers=(1, 1, 1)), "mimi", "has the parts rvq_first and rvq_rest"),
    (
        lambda: fastvq.GroupedResidualVQ(6, 8, groups=2, num_quantizers=2, codebook_dim=2),
        "vector-quantize-pytorch",
        "no place for projections",
    ),
    (
        lambda: fastvq.SimVQ(6, 8, transform=lambda: nn.Linear(6, 6)),
        "vector-quantize-pytorch",
        "linear layer without bias, got Linear",
    ),
)


@pytest.mark.parametrize(("make", "layout", "message"), UNFIT)
def test_modules_that_a_layout_cannot_hold(make, layout, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(make(), tmp_path / "model.pt", layout)
    assert not list(tmp_path.iterdir())


def test_learned_codes_get_statistics_that_give_them():
    rules = fastvq.CodebookRules(update=fastvq.Learned(), init=None, dead=None)
    vq = fastvq.ResidualVQ(6, 8, num_quantizers=2, rules=rules)
    with torch.no_grad():
        vq.codebooks.codebook.add_(1)
    state = checkpoints.save(vq, None, "encodec")
    assert torch.equal(
        state["quantizer.vq.layers.1._codebook.embed_avg"], state["quantizer.vq.layers.1._codebook.embed"]
    )
    assert not any(tensor.requires_grad for tensor in state.values())


def test_safetensors_is_needed_only_for_its_files(tmp_path):
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("raise ImportError('blocked')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch\n"
        "from fastvq import checkpoints\n"
        "vq = checkpoints.load({'quantizer.layers.0.codebook': torch.randn(4, 2)})\n"
        f"checkpoints.save(vq, {str(tmp_path / 'a.pt')!r}, 'momask')\n"
        f"try: checkpoints.save(vq, {str(tmp_path / 'a.safetensors')!r}, 'momask')\n"
        "except ImportError as error: print(error)\n"
    )
    run = [sys.executable, "-c", f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); import conftest\n{code}"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "pip install safetensors" in result.stdout, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "safetensors"]
