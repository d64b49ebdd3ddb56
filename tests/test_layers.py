"""models -> fastvq -> kernels, never back; and importing fastvq needs next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "kernels": "fastvq.kernels",
    "fastvq": "fastvq",
    "models": "fastvq.models",
    "benchmarks": "fastvq.benchmarks",
}
# What a folder's files may import of the project. "public" is fastvq without its private modules' insides.
ALLOWED = {
    "kernels": ("fastvq.kernels",),
    "fastvq": ("fastvq.kernels", "fastvq"),
    "models": ("fastvq.models", "fastvq"),
    "benchmarks": ("fastvq.benchmarks", "fastvq.kernels", "fastvq.models", "fastvq"),
}
FORBIDDEN = {
    "kernels": (),
    "fastvq": ("fastvq.models", "fastvq.benchmarks"),
    "models": ("fastvq.kernels", "fastvq.benchmarks"),
    "benchmarks": (),
}

BENCH = (
    ROOT / "models" / "commands" / "bench.py"
)  # the one place above that knows the benchmarks, and imports them late


def project_imports(path: Path, package: str) -> set[str]:
    """The modules of the project that a file imports, relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            found |= {base} | {f"{base}.{name.name}" for name in node.names}
    return {name for name in found if name == "fastvq" or name.startswith("fastvq.")}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_point_down(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        package = ".".join([LAYERS[folder], *path.relative_to(ROOT / folder).parent.parts])
        for name in project_imports(path, package):
            if path == BENCH and within(name, "fastvq.benchmarks"):
                continue
            assert any(within(name, allowed) for allowed in ALLOWED[folder]), f"{path.name} imports {name}"
            assert not any(within(name, bad) for bad in FORBIDDEN[folder]), f"{path.name} imports {name}"
            if folder == "models" and not within(name, "fastvq.models"):
                assert not any(part.startswith("_") for part in name.split(".")), f"{path.name} imports {name}"


def test_benchmarks_are_imported_when_they_run_and_not_before():
    tree = ast.parse(BENCH.read_text())
    late = [node for part in tree.body if isinstance(part, ast.FunctionDef) for node in ast.walk(part)]
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "benchmarks" in (node.module or "")
    ]
    assert imports
    assert all(node in late for node in imports)


def test_implementations_do_not_import_each_other():
    """triton and cpu import neither each other nor tiled; the reference imports none of them."""
    others = {"triton", "cpu", "tiled"}
    for folder in ("triton", "cpu"):
        for path in (ROOT / "kernels" / folder).rglob("*.py"):
            for name in project_imports(path, f"fastvq.kernels.{folder}"):
                assert not any(within(name, f"fastvq.kernels.{other}") for other in others - {folder}), path.name
    for module in ("reference", "tiled"):
        for name in project_imports(ROOT / "kernels" / f"{module}.py", "fastvq.kernels"):
            assert not any(within(name, f"fastvq.kernels.{other}") for other in others), module


IMPORT = """
import sys, pathlib
sys.path.insert(0, {root!r})
import fastvq._checkout
fastvq._checkout.install(pathlib.Path({root!r}))
import torch, time
before = set(sys.modules)
start = time.perf_counter()
import fastvq
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
assert not new & {{"triton", "ninja", "numba", "accelerate", "rich", "tyro", "scipy"}}, new
# Only when one is used, and so not before a bare checkout has been told where they are.
assert not [name for name in sys.modules if name.startswith("fastvq.kernels")]
{extra}
"""


def test_import_needs_no_triton_no_compiler_no_gpu(tmp_path):
    """With Triton and ninja unimportable and no compiler on the path, fastvq imports and quantizes."""
    for name in ("triton", "ninja"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    code = IMPORT.format(
        root=str(ROOT), extra="print(fastvq.VectorQuantize(4, 8)(torch.randn(5, 4)).quantized.shape)"
    )
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path), "FASTVQ_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "[5, 4]" in result.stdout


def test_import_is_quick():
    """Well under a second beyond torch's own import; the best of three, since the machine may be busy."""
    code = IMPORT.format(root=str(ROOT), extra="print(time.perf_counter() - start)")
    took = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(float(result.stdout))
    assert min(took) < 0.5


def in_checkout(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Runs code with the checkout first on the path, as Python started in it has, and other folders after it."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), *map(str, path)]!r}; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=path[0])


def test_packages_refuse_other_names(tmp_path):
    assert "import this package as 'fastvq.models'" in in_checkout("import models", tmp_path).stderr
    assert "No module named 'kernels.cpu'" in in_checkout("import kernels.cpu", tmp_path).stderr
    assert "cannot import name 'cpu'" in in_checkout("from kernels import cpu", tmp_path).stderr


def test_a_checkout_gives_way_to_the_package_called_kernels(tmp_path):
    """transformers looks for it, and must find it, or nothing; ours works beside it."""
    nothing = "import kernels; assert getattr(kernels, '__file__', None) is None; import fastvq.kernels.reference"
    assert in_checkout(nothing, tmp_path).returncode == 0
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("from .part import value")
    (tmp_path / "kernels" / "part.py").write_text("value = 7")
    found = "import kernels.part; assert kernels.value == kernels.part.value == 7; import fastvq.kernels.reference"
    result = in_checkout(found, tmp_path)
    assert result.returncode == 0, result.stderr
