"""The native modules: optional at run time, and free of torch and of a shared CUDA runtime."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastmem
from fastmem.ops import _native, _registry


@pytest.fixture(params=["_cpu", "_cuda"])
def binary(request: pytest.FixtureRequest) -> Path:
    """The file of each native module that is built."""
    spec = importlib.util.find_spec(f"fastmem.{request.param}")
    if spec is None or spec.origin is None:
        pytest.skip(f"fastmem.{request.param} is not built")
    return Path(spec.origin)


def _output(*command: str | Path) -> str:
    tool = str(command[0])
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def test_no_symbol_of_torch_is_left_open(binary: Path) -> None:
    """So one binary serves every version of torch."""
    undefined = [line.split()[-1] for line in _output("nm", "-D", "--undefined-only", binary).splitlines()]
    assert undefined, "an extension module always needs something of Python"
    of_torch = re.compile(r"torch|c10|aoti|aten|N2at\d|NK2at\d", re.IGNORECASE)  # plain and mangled
    assert of_torch.search("_ZNK2at6Tensor4sizeEl")
    assert [name for name in undefined if of_torch.search(name)] == []


def test_no_shared_cuda_torch_or_openmp_library_is_needed(binary: Path) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-d", binary))
    assert any(name.startswith("libc.so") for name in needed)
    assert [name for name in needed if re.match(r"lib(cuda|cudart|nv|cublas|torch|c10|gomp|iomp|omp)", name)] == []


def test_the_switch_keeps_both_out() -> None:
    script = """
import sys
import torch
from fastmem.ops import _native, explain, kl_div, operators
for module in (_native.cpu_module, _native.cuda_module):
    try:
        module()
    except _native.NativeUnavailable as error:
        assert "FASTMEM_NATIVE=OFF" in str(error)
    else:
        raise SystemExit("a native module was loaded")
explanations = [explain(op) for op in operators()]
assert all(explanation.chosen == "reference" for explanation in explanations), explanations
assert any("FASTMEM_NATIVE=OFF" in explanation.remarks["cpu"] for explanation in explanations), explanations
assert kl_div(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
assert not {"fastmem._cpu", "fastmem._cuda"} & set(sys.modules)
"""
    _run(script, FASTMEM_NATIVE="OFF")


def test_a_broken_binary_is_a_reason_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / f"_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"no shared object at all")
    monkeypatch.setattr(fastmem, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])  # past an editable install's own finder
    for name in ("fastmem._cpu", "fastmem._cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("FASTMEM_NATIVE", raising=False)
    _native._load.cache_clear()
    importlib.invalidate_caches()
    try:
        with pytest.raises(_native.NativeUnavailable, match=r"fastmem\._cuda does not load"):
            _native.cuda_module()
        assert "does not load" in (_native.why_no_cuda() or "")
        with pytest.raises(_native.NativeUnavailable, match=r"fastmem\._cpu is not built"):
            _native.cpu_module()
    finally:
        _native._load.cache_clear()


@pytest.mark.parametrize("op", _registry.operators())
def test_a_binary_older_than_its_launchers_is_a_reason_too(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _registry._implementations(op).backends["cpu"]
    monkeypatch.setattr(_native, "_load", lambda name: types.ModuleType(name))
    reason = backend.available() or ""
    assert "fastmem._cpu is older than this package" in reason
    source = Path(sys.modules[backend.forward.__module__].__file__ or "").read_text()
    launched = set(re.findall(r"cpu_module\(\)\.(\w+)", source))
    assert launched
    assert all(function in reason for function in launched)


def test_importing_fastmem_loads_no_native_module_and_no_cuda() -> None:
    script = """
import sys
import fastmem.ops, torch
assert not {"fastmem._cpu", "fastmem._cuda", "triton"} & set(sys.modules)
assert not torch.cuda.is_initialized()
"""
    _run(script)


def test_the_cuda_module_is_harmless_without_a_driver() -> None:
    """Importing it asks nothing of a GPU, even if there is one."""
    try:
        _native.cuda_module()
    except _native.NativeUnavailable as error:
        pytest.skip(str(error))
    _run("import fastmem._cuda, torch; assert not torch.cuda.is_initialized()", CUDA_VISIBLE_DEVICES="")


def _run(script: str, **environment: str) -> None:
    root = Path(fastmem.__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
