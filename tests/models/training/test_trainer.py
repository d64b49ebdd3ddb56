import dataclasses
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import fastvq.codebook
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.reporting import Reporter
from fastvq.models.training.run_folder import RunFolder
from fastvq.models.training.trainer import train
from fastvq.models.training.windows import WindowSampler

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def clips(feature_clip):
    return [*(feature_clip(frames, frames) for frames in (20, 40, 60)), feature_clip(50, 50, split="test")]


@pytest.fixture
def config(tiny_config):
    # Small enough to lose codes, so that dead ones are replaced; a milestone and a warm-up lie within the run.
    model = dataclasses.replace(tiny_config, codebook_size=64, dead_below=0.9)
    return TrainConfig(
        model=model,
        steps=20,
        batch_size=4,
        window=32,
        warmup=5,
        milestones=(12,),
        lr=1e-2,
        checkpoint_every=6,
        log_every=4,
        mirror=True,
    )


class Killed(BaseException):
    """Ends a run as a kill does, as far as its files are concerned."""


def stop_at(monkeypatch, step, action):
    """Makes the drawing of a step's windows do something else first."""
    draw = WindowSampler.batch

    def batch(self, number):
        if number == step:
            action()
        return draw(self, number)

    monkeypatch.setattr(WindowSampler, "batch", batch)
    return lambda: monkeypatch.setattr(WindowSampler, "batch", draw)


def kill():
    raise Killed


def same_weights(first, second):
    first, second = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"conv": "taps", "grad_clip": 0.5, "weight_decay": 0.01},
    ],
    ids=["fp32", "bf16", "taps"],
)
def test_a_killed_run_ends_with_the_same_weights(config, clips, tmp_path, monkeypatch, changes):
    config = dataclasses.replace(config, **changes)
    replaced = []
    replace = fastvq.codebook.Codebook._replace_dead_
    monkeypatch.setattr(
        fastvq.codebook.Codebook,
        "_replace_dead_",
        lambda self, dead, *rest: replaced.append(int(dead.sum())) or replace(self, dead, *rest),
    )
    whole = train(config, clips, tmp_path / "whole")

    restore = stop_at(monkeypatch, 10, kill)
    with pytest.raises(Killed):
        train(config, clips, tmp_path / "killed")
    restore()
    assert [row["step"] for row in rows(tmp_path / "killed")] == [4, 8]
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    torch.manual_seed(99)  # whatever happens between the two must not matter
    replaced.clear()
    resumed = train(config, clips, tmp_path / "killed", resume=True)
    assert (resumed.step, resumed.interrupted) == (20, False)
    assert sum(replaced) > 0, "no code died after the resume, so the random draw of new ones is not tested"
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    own, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert [row["step"] for row in rows(tmp_path / "killed")] == [4, 8, 12, 16, 20]
    unresumed, after = rows(tmp_path / "whole")[-1], rows(tmp_path / "killed")[-1]
    for name in set(after) - {"steps_per_second"}:
        assert after[name] == unresumed[name], name


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(config, clips, tmp_path, monkeypatch):
    train(config, clips, tmp_path / "whole")
    restore = stop_at(monkeypatch, 8, lambda: signal.raise_signal(signal.SIGINT))
    console = Console(record=True, width=200, file=io.StringIO())
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = train(config, clips, tmp_path / "run", console=console)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (stopped.step, stopped.interrupted) == (9, True)
    text = console.export_text()
    assert "Stopped at step 9 of 20; model and checkpoint are in" in text
    assert "Resume to go on." in text
    assert json.loads((tmp_path / "run" / "last.json").read_text())["step"] == 9
    assert MotionVQVAE.from_pretrained(tmp_path / "run").config == config.model
    restore()
    train(config, clips, tmp_path / "run", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_second_ctrl_c_ends_at_once(config, clips, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stop_at(monkeypatch, 8, twice)
    with pytest.raises(KeyboardInterrupt):
        train(config, clips, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "last.json").read_text())["step"] == 6


def test_a_process_that_is_killed_can_be_resumed(config, clips, tmp_path):
    """The real thing: SIGKILL at whatever moment."""
    script = textwrap.dedent("""
        import pickle, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import conftest
        from fastvq.models.training.trainer import train
        config, clips = pickle.loads(Path(sys.argv[2]).read_bytes())
        train(config, clips, Path(sys.argv[3]))
    """)
    (tmp_path / "job").write_bytes(
        pickle.dumps((dataclasses.replace(config, steps=10_000, checkpoint_every=1), clips))
    )
    run = tmp_path / "run"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as many as here, for the same sums
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT), str(tmp_path / "job"), str(run)], env={**os.environ, **threads}
    )
    while process.poll() is None and not (run / "last.json").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = json.loads((run / "last.json").read_text())["step"]
    assert step < 10_000
    config = dataclasses.replace(config, steps=step + 3)
    train(config, clips, run, resume=True)
    train(config, clips, tmp_path / "whole")
    assert same_weights(tmp_path / "whole", run)
    assert [file for file in run.rglob("*") if file.name.startswith(".")] == []


def test_the_run_folder_is_the_pinned_one(config, clips, tmp_path):
    result = train(config, clips, tmp_path / "run")
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "mean.npy", "std.npy"),
        *("checkpoints", "last.json", "metrics.jsonl", "environment.json", "tensorboard"),
    }
    checkpoints = sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["step_00000018", "step_00000020"]
    last = json.loads((tmp_path / "run" / "last.json").read_text())
    assert last == {"format": "fastvq-last/1", "step": 20, "checkpoint": "checkpoints/step_00000020"}
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"device", "threads", "commit", "command", "utc", "python", "fastvq"} <= set(environment)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["training"]["steps"] == 20
    assert (result.clips_used, result.clips_skipped, result.frames) == (2, 1, 100)

    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000018"):
        assert MotionVQVAE.from_pretrained(folder).config == config.model
    row = rows(tmp_path / "run")[-1]
    assert row == result.metrics
    assert row["step"] == 20
    assert row["lr"] == pytest.approx(5e-4)
    assert 1 <= row["perplexity"] <= 64
    assert 0 < row["utilisation"] <= 1


def test_a_small_model_learns(config, clips, tmp_path):
    model = dataclasses.replace(config.model, codebook_size=16, dead_below=0.1)
    config = dataclasses.replace(config, model=model, mirror=False, batch_size=8, steps=80, lr=3e-3, log_every=10)
    config = dataclasses.replace(config, milestones=(70,), checkpoint_every=80)
    train(config, clips, tmp_path / "run")
    losses = [row["recon_smooth_l1"] for row in rows(tmp_path / "run")]
    # It falls by three quarters; a half leaves room for another machine's rounding.
    assert losses[-1] < losses[0] / 2


def test_short_clips_are_skipped_and_counted(config, clips, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    train(dataclasses.replace(config, steps=1), clips, tmp_path / "run", console=console)
    text = console.export_text()
    assert "1 of 3 training clips are shorter than the window of 32 frames and are skipped" in text
    assert "2 clips with 100 frames remain" in text
    assert "step 1/1" in text


def test_sections_are_recorded_when_asked_for(config, clips, tmp_path):
    result = train(dataclasses.replace(config, steps=4, profile_sections=True), clips, tmp_path / "run")
    assert {"data", "encoder", "quantizer", "codebook_update", "decoder", "losses", "backward", "optimizer"} <= set(
        result.metrics["sections_ms"]
    )


@pytest.mark.parametrize("compiler", ["no-such-compiler", "true -O2"])
def test_without_a_compiler_training_goes_on_and_says_so(config, clips, tmp_path, monkeypatch, compiler):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    monkeypatch.setenv("CXX", compiler)
    console = Console(record=True, width=200, file=io.StringIO())
    plain = train(dataclasses.replace(config, steps=2), clips, tmp_path / "plain")
    result = train(dataclasses.replace(config, steps=2, compile=True), clips, tmp_path / "run", console=console)
    said = "torch.compile needs a C++ compiler, and no-such-compiler was not found: training goes on without it."
    assert (said in console.export_text()) == (compiler == "no-such-compiler") == (compiled == [])
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


def test_encoder_and_decoder_are_compiled_for_training_only(config, clips, tmp_path, monkeypatch):
    compiled, called = [], []

    def compile(module):
        compiled.append(type(module).__name__)

        class Compiled(torch.nn.Module):
            def forward(self, *inputs):
                called.append(type(module).__name__)
                return module(*inputs)

        return Compiled()

    monkeypatch.setattr(torch, "compile", compile)
    result = train(dataclasses.replace(config, steps=2, compile=True), clips, tmp_path / "run")
    assert compiled == ["Encoder", "Decoder"]
    assert called == ["Encoder", "Decoder"] * 2
    result.model(clips[0].features)
    assert len(called) == 4


def test_what_cannot_go_on_is_said(config, clips, tmp_path, feature_clip):
    run = tmp_path / "run"
    config = dataclasses.replace(config, steps=2)
    train(config, clips, run)
    with pytest.raises(UserError, match="holds a run already: resume it, or choose another folder"):
        train(config, clips, run)
    with pytest.raises(UserError, match=r"cannot resume with other settings: lr \(was 0.01, is 0.1\)"):
        train(dataclasses.replace(config, lr=0.1), clips, run, resume=True)
    with pytest.raises(UserError, match="with other training clips"):
        train(config, [*clips, feature_clip(40, 7)], run, resume=True)
    with pytest.raises(UserError, match="is at step 2 already: steps must be at least that, got 1"):
        train(dataclasses.replace(config, steps=1), clips, run, resume=True)
    again = train(config, clips, run, resume=True)
    assert (again.step, again.metrics) == (2, {})
    (run / "checkpoints" / "step_00000002" / "trainer.pt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"trainer.pt is damaged"):
        train(config, clips, run, resume=True)
    (run / "last.json").write_text('{"format": "fastvq-last/2", "checkpoint": "x"}')
    with pytest.raises(UserError, match="has the format 'fastvq-last/2'"):
        train(config, clips, run, resume=True)
    (run / "last.json").write_text("{")
    with pytest.raises(UserError, match=r"last.json is damaged"):
        train(config, clips, run, resume=True)
    with pytest.raises(UserError, match="is a file: give a folder for the run"):
        train(config, clips, run / "config.json")


def test_nothing_long_enough_leaves_nothing_behind(config, clips, tmp_path):
    for given in (clips[:1], [dataclasses.replace(clip, split="test") for clip in clips]):
        with pytest.raises(UserError, match="training needs clips of at least 32 frames"):
            train(config, given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(config, clips, tmp_path):
    broken = dataclasses.replace(config, lr=1e30, warmup=0, steps=8)
    with pytest.raises(UserError, match=r"the loss is .* at step 4: lower lr"):
        train(broken, clips, tmp_path / "run")
    assert not (tmp_path / "run" / "last.json").exists()


def test_weights_that_are_not_finite_become_no_checkpoint(config, clips, tmp_path):
    """A loss is looked at with every row only; checkpoints in between must not push the good ones out."""
    run = tmp_path / "run"
    good = dataclasses.replace(config, steps=2, warmup=0, checkpoint_every=1, log_every=100)
    train(good, clips, run)
    broken = dataclasses.replace(good, steps=20)

    def save_pretrained(*_, **__):
        raise AssertionError("broken weights were saved")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MotionVQVAE, "save_pretrained", save_pretrained)
        patch.setattr("fastvq.models.training.config.TrainConfig.learning_rate", lambda self, step: float("inf"))
        message = r"the weights are not finite at step 3: lower lr.*the checkpoint before that is .*step_00000002"
        with pytest.raises(UserError, match=message):
            train(broken, clips, run, resume=True)
    assert json.loads((run / "last.json").read_text())["step"] == 2
    assert train(broken, clips, run, resume=True).step == 20
    with pytest.raises(UserError, match="no checkpoint was written before that"):
        train(dataclasses.replace(good, lr=1e30, steps=20, checkpoint_every=2), clips, tmp_path / "other")
    assert not (tmp_path / "other" / "last.json").exists()


def test_a_process_killed_before_it_removed_old_checkpoints_leaves_none_for_ever(
    config, clips, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, steps=4, checkpoint_every=2, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_remove_old", lambda self, keep: None)
        train(config, clips, tmp_path / "run")
    train(config, clips, tmp_path / "run", resume=True)
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]


def test_two_processes_do_not_train_in_one_folder(config, clips, tmp_path):
    pytest.importorskip("fcntl", reason="folders can be locked on POSIX only")
    run = tmp_path / "run"
    with RunFolder(run).lock(), pytest.raises(UserError, match=r"another process is training in .*run: wait"):
        train(config, clips, run)
    assert list(run.iterdir()) == []
    assert train(dataclasses.replace(config, steps=2), clips, run).step == 2


def test_damaged_rows_of_the_metrics_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for rest in (b'{"step": 3, "lo', b"5", b"\xff\xfe", b"\0\0\0", b"[" * 100_000):
        folder.metrics.write_bytes(b'{"step": 1}\n{"step": 2}\n' + rest)
        folder.truncate_metrics(9)
        assert folder.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensorboard_s_thread_fails_without_a_traceback(tmp_path, small_disk, capsys):
    reporter = Reporter(RunFolder(tmp_path), 10, 0, Console(quiet=True))
    hook = threading.excepthook

    def write():
        with small_disk(10), reporter:
            for step in range(1000):
                reporter.log({"step": step, "loss": 1.0, "perplexity": 1.0, "steps_per_second": 1.0})

    with pytest.raises(UserError, match="cannot be written"):
        write()
    assert capsys.readouterr().err == ""
    assert threading.excepthook is hook


def test_a_full_disk_stops_the_run_and_keeps_the_earlier_checkpoint(config, clips, tmp_path, monkeypatch, small_disk):
    run = tmp_path / "run"
    limit = small_disk(50_000)
    stop_at(monkeypatch, 8, limit.__enter__)
    try:
        with pytest.raises(UserError, match="cannot be written"):
            train(config, clips, run)
    finally:
        limit.__exit__(None, None, None)
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step_00000006"]
    monkeypatch.undo()
    assert train(config, clips, run, resume=True).step == 20


def test_training_may_start_from_a_saved_model(config, clips, tmp_path):
    first = train(config, clips, tmp_path / "first")
    again = dataclasses.replace(config, start_from=str(tmp_path / "first"), lr=1e-12, warmup=0, steps=1)
    quiet = dataclasses.replace(again.model, dead_below=0.0)
    second = train(dataclasses.replace(again, model=quiet), clips[1:], tmp_path / "second")
    for name, value in first.model.state_dict().items():
        if "codebooks" not in name:
            torch.testing.assert_close(second.model.state_dict()[name], value, rtol=0, atol=1e-6)
    before, after = first.model.quantizer.codebook, second.model.quantizer.codebook
    assert (before - after).abs().max() < 0.5 * before.std()  # one step of the moving average
    assert torch.equal(second.model.mean, first.model.mean)
    other = dataclasses.replace(again, model=dataclasses.replace(config.model, width=config.model.width * 2))
    with pytest.raises(UserError, match="its model has other sizes"):
        train(other, clips, tmp_path / "third")
    assert not (tmp_path / "third" / "last.json").exists()
    with pytest.raises(UserError, match="there is no folder"):
        train(dataclasses.replace(again, start_from=str(tmp_path / "nowhere")), clips, tmp_path / "fourth")
