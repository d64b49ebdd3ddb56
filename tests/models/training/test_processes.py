"""Training in several processes: real ones, over gloo."""

import contextlib
import dataclasses
import io
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file

from fastvq.models.training.loop import TrainingLoop
from fastvq.models.training.run_folder import RunFolder, load_trainer

ROOT = Path(__file__).resolve().parents[3]
RANKS = ROOT / "tests/models/training/ranks.py"
SCRIPT = "import sys; sys.path.insert(0, sys.argv[1]); import conftest, runpy; sys.argv[:] = sys.argv[2:]; "
SCRIPT += "runpy.run_path(sys.argv[0], run_name='__main__')"

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


def launch(folder: Path, world: int = 2, seconds: float = 400) -> None:
    """Runs ranks.py in several processes, all of which have to end well, and in time."""
    port, *others = free_ports(3)
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [folder / f"rank{rank}.log" for rank in range(world)]
    with contextlib.ExitStack() as held:
        ranks = []
        for rank, log in enumerate(logs):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(ROOT), str(RANKS), str(folder), *others],
                stdout=held.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
                env={**os.environ, **{name: str(value) for name, value in own.items()}},
            )
            ranks.append(held.enter_context(process))
            held.callback(process.kill)
        end = time.monotonic() + seconds
        codes = [None] * world
        while None in codes and not any(codes) and time.monotonic() < end:
            time.sleep(0.1)
            codes = [rank.poll() for rank in ranks]
    assert codes == [0] * world, "\n".join([str(codes), *(log.read_text() for log in logs)])


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory) -> Path:
    """The runs of two processes; what they check of themselves has held."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(folder)
    return folder


@pytest.fixture(scope="module", name="ranks")
def ranks_fixture():
    return runpy.run_path(str(RANKS))


def test_each_process_ends_with_the_same_weights_and_metrics(folder):
    """And resumes to the bit, and ends with the others where one is stopped, refused, or fails; see ranks.py."""
    assert (folder / "motion-vqvae" / "model.safetensors").is_file()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model, and of what is trained beside it."""
    judge = load_trainer(RunFolder(folder).last()).get("discriminator", {})
    return {
        **load_file(folder / "model.safetensors"),
        **{f"discriminator.{key}": value for key, value in judge.items()},
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["motion-vqvae", "padded", "rvqvae", "pgr2m", "heatmap-vqgan", "hifigpt"])
def test_two_processes_train_as_one_does(folder, ranks, tmp_path, monkeypatch, name):
    """Codes exactly; weights and losses within 1e-3 of how far training moved them. Rounding alone parts them, and
    where a gradient is little more than that, Adam makes a whole step of it: they differ by 1e-6 to 1e-4."""
    start = {}
    go = TrainingLoop.go

    def begun(run, **options):
        modules = {"": run.model, **{f"{key}.": module for key, module in run.other_modules().items()}}
        for prefix, module in modules.items():
            start.update({prefix + key: value.clone() for key, value in module.state_dict().items()})
        return go(run, **options)

    monkeypatch.setattr(TrainingLoop, "go", begun)
    ranks["trained"](ranks["EXACT"][name], tmp_path)
    one, two = weights(tmp_path), weights(folder / f"exact-{name}")
    assert one.keys() == two.keys()
    # Statistics start from the number of rows, which one process takes with the masked ones, several without them.
    uncounted = ("cluster_size", "embed_sum") if name == "padded" else ()
    moved = [key for key in one if one[key].is_floating_point() and not key.endswith(uncounted)]
    apart = sum(float((one[key] - two[key]).square().sum()) for key in moved) ** 0.5
    way = sum(float((one[key] - start[key]).square().sum()) for key in moved) ** 0.5
    assert apart < 1e-3 * way
    for own, shared in zip(rows(tmp_path), rows(folder / f"exact-{name}"), strict=True):
        for key in own.keys() - {"steps_per_second"}:
            exact = key in ("step", "lr") or key.startswith(("perplexity", "utilisation"))
            assert shared[key] == (own[key] if exact else pytest.approx(own[key], rel=1e-3)), key


def test_a_run_goes_on_with_another_number_of_processes(folder, ranks, tmp_path):
    """And says that it is not the same to the bit then."""
    shutil.copytree(folder / "motion-vqvae", tmp_path / "run")
    config = dataclasses.replace(ranks["CASES"]["motion-vqvae"], steps=8)
    said = io.StringIO()
    result = ranks["trained"](config, tmp_path / "run", resume=True, console=Console(file=said, width=500))
    assert result.step == 8
    assert "Trained by 2 processes so far, and now by 1:" in said.getvalue()
    states = load_trainer(RunFolder(folder / "motion-vqvae").last())["processes"]
    assert not torch.equal(states[0]["rng"], states[1]["rng"])
    assert "processes" not in load_trainer(RunFolder(tmp_path / "run").last())
