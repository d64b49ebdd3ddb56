"""Compiling the kernels: whole or not at all, many processes at once, and one clear line where it cannot be done."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fastvq.kernels.cpu import build, native

ROOT = Path(__file__).resolve().parents[3]
USE = """
import sys
sys.path.insert(0, {root!r})
import conftest, torch
import fastvq.kernels.cpu as cpu
assert cpu.unavailable_reason() is None, cpu.unavailable_reason()
indices, _ = cpu.nearest(torch.eye(3).view(1, 3, 1, 3), torch.eye(3).view(1, 3, 3), None)
assert indices.flatten().tolist() == [0, 1, 2]
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process of its own session, so that its compilers can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTVQ_CPU_ISA": "portable", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_killed_build_then_four_at_once(cpu, tmp_path):
    code = USE.format(root=str(ROOT))
    killed = start(code, FASTVQ_CACHE_DIR=str(tmp_path))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("building-*/*.ninja")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    (left,) = tmp_path.glob("building-*")
    assert not list(tmp_path.glob("*.so"))

    together = [start(code, FASTVQ_CACHE_DIR=str(tmp_path)) for _ in range(4)]
    for process in together:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert len(list(tmp_path.glob("cpu-*.so"))) == 1
    assert list(tmp_path.glob("building-*")) == [left]  # young enough to belong to somebody

    os.utime(left, (0, 0))
    build.sweep(tmp_path)
    assert not left.exists()


def test_import_compiles_nothing(tmp_path):
    cache = tmp_path / "cache"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import conftest, fastvq.kernels.cpu"
    process = start(code, FASTVQ_CACHE_DIR=str(cache), CXX="/nonexistent")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output == ""
    assert not cache.exists()


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """A stand-in for the compiler in a fresh cache: it writes its output file at once, and logs each call."""
    program = tmp_path / "c++"
    program.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            echo called >> {tmp_path}/calls
            while [ $# -gt 0 ]; do [ "$1" = -o ] && echo compiled > "$2"; shift; done
            """
        )
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.setenv("FASTVQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTVQ_NATIVE", raising=False)
    monkeypatch.delenv("FASTVQ_CPU_ISA", raising=False)
    return program


def spoil(compiler: Path, message: str) -> None:
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ echo "{message}"; exit 1; }}\n')


def test_a_second_load_compiles_nothing(compiler, tmp_path):
    opened: list[Path] = []
    build.load(opened.append)
    calls = (tmp_path / "calls").read_text().count("called")
    build.load(opened.append)
    assert opened[0] == opened[1]
    assert opened[0].parent == tmp_path / "cache"
    assert (tmp_path / "calls").read_text().count("called") == calls + 1  # --version
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [opened[0].name]


def test_the_key_holds_what_the_result_depends_on(compiler, monkeypatch):
    keys = {build.build_key(build.find_compiler())}
    compiler.write_text("#!/bin/sh\necho another version\n")
    keys.add(build.build_key(build.find_compiler()))
    monkeypatch.setattr(build.torch, "__version__", "0.0")
    keys.add(build.build_key(build.find_compiler()))
    monkeypatch.setattr(build, "processor_features", lambda: "sse2 avx9")
    keys.add(build.build_key(build.find_compiler()))
    assert len(keys) == 4


def test_a_damaged_library_is_compiled_again(compiler, tmp_path):
    build.load(lambda library: library.write_text("damaged"))

    def open_library(library: Path) -> None:
        if library.read_text() == "damaged":
            raise OSError("file too short")

    build.load(open_library)
    (library,) = (tmp_path / "cache").iterdir()
    assert library.read_text() == "compiled\n"


def test_a_library_that_never_loads_is_a_reason(compiler):
    def open_library(library: Path) -> None:
        raise OSError("undefined symbol: f\nmore")

    with pytest.raises(build.BuildError, match=r"do not load: undefined symbol: f$"):
        build.load(open_library)


def test_a_cache_that_cannot_be_written_costs_a_build_per_process(compiler, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTVQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    seen = []
    build.load(lambda library: seen.append((library, library.read_text())))
    ((library, text),) = seen
    assert text == "compiled\n"
    assert not library.exists()
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("x.cpp:1:1: fatal error: no such file", "failed: x.cpp:1:1: fatal error: no such file"),
        ("cannot write: No space left on device", "No space left on device"),
    ],
)
def test_a_failed_build_is_one_line(compiler, tmp_path, message, reason):
    spoil(compiler, message)
    with pytest.raises(build.BuildError, match=reason) as raised:
        build.load(lambda library: None)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_compiler_is_a_reason_and_one_warning(compiler, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nonexistent --flag")
    assert native._load() == "CXX names the compiler '/nonexistent', which cannot be run"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "fastvq"
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler was found" in (native._load() or "")


def test_no_ninja_is_a_reason(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", "")
    assert "pip install ninja" in (native._load() or "")


def test_switched_off_without_a_word(compiler, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FASTVQ_NATIVE", "0")
    assert "FASTVQ_NATIVE=0" in (native._load() or "")
    assert not caplog.records
    assert not (tmp_path / "calls").exists()


def test_an_unknown_instruction_set_is_a_reason(compiler, monkeypatch):
    monkeypatch.setenv("FASTVQ_CPU_ISA", "avx1024")
    assert "avx1024" in (native._load() or "")


def test_unavailable_kernels_say_why(monkeypatch):
    monkeypatch.setattr(native, "_tried", True)
    monkeypatch.setattr(native, "_reason", "there is no compiler")
    assert not native.available()
    with pytest.raises(RuntimeError, match="there is no compiler"):
        native.isa()


def test_the_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTVQ_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_directory() in (tmp_path / "xdg" / "fastvq", tmp_path / "Library" / "Caches" / "fastvq")
