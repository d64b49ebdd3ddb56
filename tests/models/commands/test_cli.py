"""The frame around the commands: help, version, and errors as one sentence with the right exit code."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvq import __version__
from fastvq.models import cli
from fastvq.models.commands.doctor import compiler
from fastvq.models.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
START = (
    "import sys, pathlib; root = pathlib.Path({root!r}); sys.path.insert(0, str(root)); import fastvq._checkout; "
    "fastvq._checkout.install(root); "
)


def in_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that finds the checkout."""
    return subprocess.run(
        [sys.executable, "-c", START.format(root=str(ROOT)) + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Puts a command in doctor's place that fails."""

    def fail(command: object) -> int:
        raise error

    module = types.ModuleType("fastvq.models.commands.doctor")
    module.run = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_help_names_every_command(fastvq: Callable[..., Any]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        outcome = fastvq(*arguments)
        assert outcome.code == 0
        assert all(f"  {name} " in outcome.out for name in cli.COMMANDS)


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_says_that_a_command_takes_one(
    fastvq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    outcome = fastvq("doctor")
    assert (outcome.code, outcome.out) == (2, "")
    said = "fastvq: fastvq doctor runs in one process, got 2: launch it without torchrun, which is for train\n"
    assert outcome.err == ("" if rank else said)


def test_no_command_shows_the_help_and_fails(fastvq: Callable[..., Any]) -> None:
    outcome = fastvq()
    assert outcome.code == 2
    assert "usage: fastvq COMMAND" in outcome.out


def test_version(fastvq: Callable[..., Any]) -> None:
    assert fastvq("--version").out == f"fastvq {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "answer"), [("trian", "did you mean train?"), ("xyz", "the commands are demo"), ("--x", "option --x")]
)
def test_an_unknown_command_is_answered(fastvq: Callable[..., Any], typed: str, answer: str) -> None:
    outcome = fastvq(typed)
    assert outcome.code == 2
    assert answer in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(fastvq: Callable[..., Any], command: str) -> None:
    outcome = fastvq(command, "--help")
    assert outcome.code == 0
    assert f"usage: fastvq {command}" in outcome.out
    # Help texts come from the docstrings under the fields; a field without one has an empty line here.
    assert "(required)" in outcome.out or "(default:" in outcome.out


def test_a_wrong_option_is_answered_with_a_similar_one(fastvq: Callable[..., Any]) -> None:
    outcome = fastvq("encode", "--chekpoint", "x", "--data", "x", "--out", "x")
    assert outcome.code == 2
    assert "--checkpoint" in outcome.err


def test_help_loads_nothing_that_models_need() -> None:
    code = (
        "from fastvq.models.cli import main; main(['--help']); "
        "loaded = {'tyro', 'rich', 'accelerate', 'scipy', 'tensorboard', 'PIL'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    result = in_process(code)
    assert result.returncode == 0, result.stderr


def test_the_module_runs_as_a_program() -> None:
    code = (
        "import runpy; sys.argv = ['fastvq', '--version']; runpy.run_module('fastvq.models.cli', run_name='__main__')"
    )
    result = in_process(code)
    assert (result.returncode, result.stdout) == (0, f"fastvq {__version__}\n")


def test_without_the_extra_one_sentence_says_what_to_install() -> None:
    code = (
        "sys.modules['rich'] = None; from fastvq.models.cli import main; "
        "sys.exit(main(['encode', '--checkpoint', 'a', '--data', 'b', '--out', 'c']))"
    )
    result = in_process(code)
    assert result.returncode == 2
    assert result.stderr == 'fastvq: rich is not installed: pip install "fastvq-torch[models]"\n'


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ModuleNotFoundError("No module named 'scipy.spatial'", name="scipy.spatial"), 2, "scipy is not installed:"),
        (UserError("the file\n  is odd"), 2, "fastvq: the file is odd\n"),
        (KeyboardInterrupt(), 130, "fastvq: interrupted\n"),
        (PermissionError(13, "Permission denied", "/somewhere/x"), 1, "fastvq: /somewhere/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "fastvq: No space left on device\n"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory: use a smaller batch size or model"),
        (MemoryError(), 1, "out of memory: use a smaller batch size or model"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory: use a smaller",
        ),
        (UserError("x" * 5000), 2, "x ...\n"),
    ],
)
def test_errors_become_one_sentence(
    fastvq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    monkeypatch.delenv("FASTVQ_DEBUG", raising=False)
    failing(monkeypatch, error)
    outcome = fastvq("doctor")
    assert outcome.code == code
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ModuleNotFoundError("no module x", name="x")])
def test_defects_keep_their_traceback(
    fastvq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        fastvq("doctor")


def test_debugging_shows_where_it_happened(fastvq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UserError("the file is odd"))
    monkeypatch.setenv("FASTVQ_DEBUG", "1")
    with pytest.raises(UserError, match="odd"):
        fastvq("doctor")
    monkeypatch.setenv("FASTVQ_DEBUG", "0")
    assert fastvq("doctor").code == 2


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import types; from fastvq.models import cli\n"
        "module = types.ModuleType('doctor')\n"
        "module.run = lambda command: [print('x' * 1000) for _ in range(10000)] and 0\n"
        "sys.modules['fastvq.models.commands.doctor'] = module\n"
        "sys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(root=str(ROOT)) + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_a_terminal_that_lacks_a_character_gets_another() -> None:
    code = (
        "import types; from fastvq.models import cli\n"
        "module = types.ModuleType('doctor')\n"
        "module.run = lambda command: print('5 mm/frame\\u00b2 of \\udcff') or 0\n"
        "sys.modules['fastvq.models.commands.doctor'] = module\n"
        "sys.exit(cli.main(['doctor']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", START.format(root=str(ROOT)) + code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "5 mm/frame? of ?\n", "")


def test_doctor_tells_the_implementation_of_every_op(fastvq: Callable[..., Any]) -> None:
    outcome = fastvq("doctor", "--device", "cpu")
    assert outcome.code == 0
    for word in ("nearest", "segment_sum", "ema_update_", "lookup", torch.__version__, __version__, "C++ compiler"):
        assert word in outcome.out


def test_doctor_names_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    usual = compiler()
    monkeypatch.setenv("CXX", " ")
    assert compiler() == usual
    monkeypatch.setenv("CXX", "nowhere/c++ -O3")
    assert compiler() == "nowhere/c++ -O3 (from CXX) cannot be found"


def test_doctor_refuses_a_device_that_is_not_there(fastvq: Callable[..., Any]) -> None:
    outcome = fastvq("doctor", "--device", "toaster")
    assert outcome.code == 2
    assert "--device toaster cannot be used" in outcome.err


def test_tune_without_a_gpu_says_so(fastvq: Callable[..., Any]) -> None:
    outcome = fastvq("tune", "--device", "cpu")
    assert outcome.code == 2
    assert "there is nothing to tune on cpu" in outcome.err
