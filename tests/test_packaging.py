"""The wheel: complete, under the right names, and usable from outside the checkout."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_in_tree() -> set[str]:
    """Every folder with an ``__init__.py``, by its import name."""
    mapping = {folder: name for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}
    found = set()
    for folder, name in mapping.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *path.parent.relative_to(ROOT / folder).parts]))
    return found


def test_every_package_is_listed():
    """A package forgotten in pyproject.toml would be missing from the wheel alone."""
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in_tree()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that what other builds leave in the checkout neither gets in nor is in the way."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in PROJECT["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_every_source_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".h", ".html", ".js", ".css"} or path.name == "py.typed":
                inside = f"{name.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
                assert inside in held, inside
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastvq"}


def test_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Installed beside this environment's torch, imported from outside the checkout, it quantizes."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    # torch and its needs come from this environment, fastvq from the wheel, which stands first on the path.
    outside = [p for p in sys.path if p.endswith("site-packages")]
    (site / "parent.pth").write_text("\n".join(outside) + "\n")
    code = (
        "import torch, fastvq, fastvq.kernels.reference, fastvq.models, fastvq.benchmarks; print(fastvq.__file__); "
        "print(fastvq.__version__, tuple(fastvq.GroupedVQ(8, 4, groups=2)(torch.randn(5, 8)).indices.shape))"
    )
    result = subprocess.run(
        [str(home / "bin" / "python"), "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert str(site) in result.stdout
    assert "0.1.0 (5, 2)" in result.stdout
