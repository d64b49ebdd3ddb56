"""Compiles the C++ kernels once, in a few seconds, and keeps the result.

The library uses nothing of torch but its stable C interface, so one file serves every Python version. It is kept as
``cpu-<key>.so`` in ``FASTVQ_CACHE_DIR`` (default: the user's cache directory), where the key is a hash of the
sources, the flags, the compiler's and torch's versions and the processor's features. It is compiled in a directory
of its own and renamed into place whole: processes that build at the same time do not meet, a build that was killed
leaves only a directory that a later build sweeps away, and there is no lock to wait for.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastvq.kernels._cache import cache_directory

SOURCES = Path(__file__).resolve().parent
# Files compiled for any processor, and those compiled for each instruction set.
ONCE = ("ops", "parallel", "isa", "prepared", "schedule", "order", "stack", "kept")
PER_ISA = ("search", "topk", "oracle", "segment", "lookup", "ema", "residual", "residual_sum", "commitment")
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]
AVX512_NEEDS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}
ISA_FLAGS = {  # widest first
    "avx512bf16": ["-mavx512bf16", "-mavx512vnni", *AVX512_FLAGS],
    "avx512vnni": ["-mavx512vnni", *AVX512_FLAGS],
    "avx512": AVX512_FLAGS,
    "avx2": ["-mavx2", "-mfma"],
    "portable": [],
}
ISA_NEEDS = {
    "avx512bf16": {"avx512_bf16", "avx512_vnni", *AVX512_NEEDS},
    "avx512vnni": {"avx512_vnni", *AVX512_NEEDS},
    "avx512": AVX512_NEEDS,
    "avx2": {"avx2", "fma"},
    "portable": set(),
}
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"]
# Multiplications and additions may fuse in the coarse pass only: elsewhere every rounding is the oracle's.
CONTRACT = {"search": "-ffp-contract=fast", "topk": "-ffp-contract=fast"}
# Left to the compiler to vectorise, which -O2 does only where it knows how long a loop is.
PLAIN_LOOPS = {"ema"}
TIMEOUT = 600.0  # seconds before a compiler counts as hung
STALE = 3600.0  # seconds after which a half-built directory belongs to nobody

logger = logging.getLogger("fastvq")


class BuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message is one line that says why."""


def load(open_library: Callable[[Path], None]) -> None:
    """Calls ``open_library`` with the compiled library, compiling it first where no earlier call has.

    Args:
        open_library: loads the file; raises OSError where it is damaged.

    Raises:
        BuildError: there is no compiler or no ninja, or compiling failed.
    """
    compiler = find_compiler()
    name = f"cpu-{build_key(compiler)}.so"
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        library = directory / name
        if library.is_file():
            try:
                return open_library(library)
            except OSError:
                library.unlink()  # damaged, by a full disk for one; a fresh build decides
        with_cache = compile_into(directory, name, compiler)
    except OSError as error:
        logger.warning(
            "FASTVQ_CACHE_DIR cannot be written (%s): compiling the CPU kernels for this process only", error
        )
        return load_uncached(open_library, name, compiler)
    try:
        return open_library(with_cache)
    except OSError as error:
        raise BuildError(f"the compiled CPU kernels do not load: {first_line(str(error))}") from error


def load_uncached(open_library: Callable[[Path], None], name: str, compiler: list[str]) -> None:
    """As :func:`load`, in a temporary directory that goes once the library is open."""
    try:
        with tempfile.TemporaryDirectory(prefix="fastvq-", ignore_cleanup_errors=True) as directory:
            open_library(compile_into(Path(directory), name, compiler))
    except OSError as error:
        raise BuildError(f"no directory to compile the CPU kernels in: {first_line(str(error))}") from error


def compile_into(directory: Path, name: str, compiler: list[str]) -> Path:
    """Compiles in a fresh directory below ``directory``, then renames the result to ``directory / name``."""
    ninja = find_ninja()
    sweep(directory)
    logger.info("compiling the CPU kernels once, a few seconds, into %s", directory)
    workplace = Path(tempfile.mkdtemp(prefix="building-", dir=directory))
    try:
        (workplace / "build.ninja").write_text(ninja_file(compiler), encoding="utf-8")
        run_ninja(ninja, workplace)
        os.replace(workplace / "cpu.so", directory / name)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return directory / name


def sweep(directory: Path) -> None:
    """Removes what killed builds left behind."""
    for left in directory.glob("building-*"):
        try:
            abandoned = time.time() - left.stat().st_mtime > STALE
        except OSError:
            continue  # its owner has just finished
        if abandoned:
            shutil.rmtree(left, ignore_errors=True)


def run_ninja(ninja: str, workplace: Path) -> None:
    """Runs the build; raises OSError for a full disk and BuildError for everything else that goes wrong."""
    command = [ninja, "-C", str(workplace)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"compiling the CPU kernels took longer than {TIMEOUT:.0f} s") from None
    if done.returncode == 0:
        return
    output = done.stdout.decode(errors="replace")
    if "No space left on device" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workplace))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "fatal" in line] or lines[-1:] or ["no message"]
    raise BuildError(f"compiling the CPU kernels failed: {telling[0]}")


def ninja_file(compiler: list[str]) -> str:
    """The build: every object by its own command, all in parallel, then one link."""
    include = Path(torch.__file__).parent / "include"
    lines = ["rule run", "  command = $command", "  description = $out"]
    objects = []

    def add(out: str, command: list[str], inputs: list[str]) -> None:
        text = shlex.join(command).replace("$", "$$")
        lines.extend([f"build {out}: run {' '.join(inputs)}", f"  command = {text}"])

    def add_object(source: str, out: str, flags: list[str]) -> None:
        add(out, [*compiler, *FLAGS, *flags, "-c", str(SOURCES / f"{source}.cpp"), "-o", out], [])
        objects.append(out)

    for isa in isas():
        for source in PER_ISA:
            flags = [*ISA_FLAGS[isa], f"-DFASTVQ_ISA={isa}", CONTRACT.get(source, "-ffp-contract=off")]
            flags += ["-O3"] if source in PLAIN_LOOPS else []
            add_object(source, f"{source}.{isa}.o", flags)
    defined = [f"-DFASTVQ_HAS_{isa}" for isa in isas()]
    for source in ONCE:
        add_object(source, f"{source}.o", ["-isystem", str(include), *defined])
    if sys.platform == "darwin":
        link = ["-undefined", "dynamic_lookup"]
    else:
        link = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    add("cpu.so", [*compiler, "-shared", *objects, "-o", "cpu.so", *link], objects)
    return "\n".join([*lines, ""])


def isas() -> list[str]:
    """The instruction sets to compile for: the widest this processor has, as the key of the cache knows it.

    ``FASTVQ_CPU_ISA`` names another one, or "all" for all that the processor has. Where the system does not tell the
    processor's features, all are compiled, and the library asks the processor itself.

    Raises:
        BuildError: ``FASTVQ_CPU_ISA`` names something else.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        possible = ["portable"]
    else:
        features = set(processor_features().split())
        possible = [isa for isa, needs in ISA_NEEDS.items() if needs <= features or "sse2" not in features]
    wanted = os.environ.get("FASTVQ_CPU_ISA", "")
    if wanted == "all":
        return possible
    if wanted == "":
        return possible[:1] if "sse2" in processor_features() else possible
    if wanted not in possible:
        raise BuildError(f"FASTVQ_CPU_ISA={wanted!r} is none of what this processor runs: {', '.join(possible)}, all")
    return [wanted]


def find_compiler() -> list[str]:
    """The C++ compiler's command: ``CXX`` where it is set, else the first of c++, g++, clang++.

    Raises:
        BuildError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise BuildError(f"CXX names the compiler {named[0]!r}, which cannot be run")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler was found (c++, g++ or clang++); install one, or name it in CXX")


def find_ninja() -> str:
    """The ninja program: the ``ninja`` package's, else the one on the path.

    Raises:
        BuildError: there is none.
    """
    program = "ninja.exe" if os.name == "nt" else "ninja"
    try:
        import ninja

        packaged = Path(ninja.BIN_DIR) / program
        if packaged.is_file():
            return str(packaged)
    except (ImportError, AttributeError):
        pass
    found = shutil.which("ninja")
    if found is None:
        raise BuildError("ninja, which compiles the CPU kernels, was not found; pip install ninja")
    return found


def build_key(compiler: list[str]) -> str:
    """A hash of everything the compiled library depends on."""
    digest = hashlib.sha256()
    for part in (torch.__version__, compiler_version(compiler), platform.machine(), *platform.libc_ver()):
        digest.update(f"{part}\n".encode())
    digest.update(repr((compiler, FLAGS, ISA_FLAGS, CONTRACT, isas(), sys.platform, processor_features())).encode())
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\n" + source.read_bytes())
    return digest.hexdigest()[:24]


def compiler_version(compiler: list[str]) -> str:
    """The first line of the compiler's ``--version``."""
    try:
        done = subprocess.run(
            [*compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the compiler {shlex.join(compiler)!r} does not run: {first_line(str(error))}") from error
    return first_line(done.stdout.decode(errors="replace"))


def processor_features() -> str:
    """The processor's feature flags, where the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
            for line in info:
                if line.startswith(("flags", "Features")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def first_line(text: str) -> str:
    """The first line of a message, which is what fits in a sentence."""
    return text.strip().partition("\n")[0]
