"""Builds of the GPU kernels' sources that run on the CPU, kept in ``build/tests`` for as long as no source changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
EMULATOR = CSRC / "tests" / "emulator"

#: The kernels mean what they say about rounding: no fusing that the source does not ask for. The emulator jumps between
#: stacks, which fortified C libraries refuse.
_FLAGS = (
    *("-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
    *("-ffp-contract=off", "-U_FORTIFY_SOURCE"),
)


def shared_library(name: str, sources: list[Path], includes: list[Path], visibility: str = "default") -> Path:
    """A shared library of these sources; skips the test where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the kernels' sources for the CPU (set CXX)")
    flags = [*_FLAGS, f"-fvisibility={visibility}", *(f"-I{folder}" for folder in includes)]
    digest = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sorted(path for path in CSRC.rglob("*") if path.is_file() and "cpu" not in path.parts):
        digest.update(path.read_bytes())
    library = ROOT / "build" / "tests" / digest.hexdigest()[:16] / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            _build([compiler, *flags], sources, Path(folder) / name)
            (Path(folder) / name).replace(library)
    return library


def emulated_cuda_module() -> Path:
    """``fastmem._cuda`` from the very sources of the kernels, on the emulator of csrc/tests/emulator."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed to build the kernels' bindings")
    sources = sorted([*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")])
    includes = [EMULATOR, CSRC, Path(pybind11.get_include()), Path(sysconfig.get_paths()["include"])]
    return shared_library("_cuda.so", sources, includes, visibility="hidden")


def _build(command: list[str], sources: list[Path], library: Path) -> None:
    def compile_one(source: Path) -> Path:
        target = library.with_name(f"{source.name}.o")
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        _run([*command, *language, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, sources))
    _run([command[0], "-shared", *map(str, objects), "-o", str(library)])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
