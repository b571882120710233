"""The CUDA kernels where there is no GPU: the built module is harmless and spills no register, and the kernels
themselves, compiled for an emulator on the CPU, are held to the operators' own tests."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmem.ops._native import NativeUnavailable, cuda_module

from .host_build import CSRC, EMULATOR, ROOT, emulated_cuda_module, shared_library

# Both build the kernels for the CPU: once is enough.
pytestmark = pytest.mark.xdist_group("host build")


@pytest.fixture(scope="module")
def built_module() -> Path:
    """The file of ``fastmem._cuda``."""
    try:
        return Path(str(cuda_module().__file__))
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


def python(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# --- the built module -------------------------------------------------------------------------------------------------


def test_importing_it_touches_no_device(built_module: Path) -> None:
    code = "from fastmem import _cuda; print(_cuda.EMULATED, _cuda.device_count())"
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert python(code) == f"False {devices}"


def test_a_launch_without_a_driver_names_cudas_error(built_module: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    logits = (0, [10], 1)
    with pytest.raises(RuntimeError, match=r"cudaError\w+"):
        cuda_module().kl_div_forward((0, 0, 0), [4], 10, logits, logits, 1.0, [0] * 4, 0, 1)


@pytest.mark.parametrize(
    ("target", "sizes", "classes", "problem"),
    [
        ((0, 0, 7), [4], 10, "unknown dtype code"),
        ((0, 0, 0), [4, 2], 10, "strides without sizes"),
        ((0, 0, 0), [2] * 7, 10, "too many leading dimensions"),
        ((0, 0, 0), [4], 0, "classes out of range"),
        ((0, 0, 0), [4], 2**31, "classes out of range"),
    ],
)
def test_arguments_that_fit_no_launch(
    built_module: Path, target: tuple[int, int, int], sizes: list[int], classes: int, problem: str
) -> None:
    logits = (0, [10], 1)
    with pytest.raises(ValueError, match=problem):
        cuda_module().kl_div_forward(target, sizes, classes, logits, logits, 1.0, [0] * 4, 0, 1)


def test_it_needs_neither_torch_nor_a_cuda_library(built_module: Path) -> None:
    if (nm := shutil.which("nm")) is None:
        pytest.skip("no nm")
    undefined = subprocess.run([nm, "-D", "--undefined-only", built_module], capture_output=True, text=True, check=True)
    assert undefined.stdout
    assert not re.search(r"c10|torch|\bat::|\bcuda[A-Z]|\bcu[A-Z]", undefined.stdout)


def test_no_kernel_spills(built_module: Path) -> None:
    """Of every kernel for every architecture in the module: no stack frame, no local memory."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("Triton, whose package brings cuobjdump along, is not installed")
    cuobjdump = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run([cuobjdump, "-res-usage", built_module], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"arch = (\w+)", listing)) >= {"sm_80", "sm_90"}
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listing)
    kernels = {name for name, *_ in usage if "fastmem" in name}
    for part in ("kl_short_rows", "kl_register_rows", "kl_long_rows", "kl_summed_gradients", "logit_long_gradients"):
        assert any(part in name for name in kernels), part
    spilled = [(name, stack, local) for name, _, stack, _, local in usage if (stack, local) != ("0", "0")]
    assert spilled == []
    # Eight resident warps at the least, on every architecture.
    assert max(int(registers) for _, registers, *_ in usage) <= 255
    float32 = [int(registers) for name, registers, *_ in usage if "kl_long_rowsIf" in name]
    assert float32
    assert max(float32) <= 128


def test_a_corrupt_module_is_a_missing_backend(tmp_path: Path) -> None:
    corrupt = tmp_path / "_cuda.so"
    corrupt.write_bytes(b"\x7fELF and nothing more")
    code = """
import importlib.util, sys, fastmem

class Corrupt:  # before every other finder, an editable install's too
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, sys.argv[1]) if name == "fastmem._cuda" else None

sys.meta_path.insert(0, Corrupt)
import torch
p = torch.randn(3, 4)
print(float(fastmem.kl_div(p, p)[0]), fastmem.explain("kl_div", p, p).remarks["cuda"])
"""
    assert re.fullmatch(r"0\.0 not available: fastmem\._cuda does not load: .+", python(code, str(corrupt)))


# --- the kernels on the emulator --------------------------------------------------------------------------------------


def run_operator_tests(selection: str, *files: str, at_least: int, **environment: str) -> None:
    """Run the operators' tests of the emulated implementation, and be sure that there were some."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("emulated.py")),
        str(emulated_cuda_module()),
        *(str(Path(__file__).with_name(file)) for file in files),
        *("-q", "-k", selection, "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"),
    ]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**outside, **environment}, check=False
    )
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert passed is not None
    assert int(passed[1]) >= at_least


def test_the_operators_tests_pass_on_the_emulator() -> None:
    run_operator_tests("cuda-cpu and not 2_to_the_31", "test_kl_div.py", "test_logit_stats.py", at_least=400)


def test_they_pass_whichever_thread_runs_first() -> None:
    run_operator_tests(
        "cuda-cpu and (layout or broadcasting or equal_largest)",
        *("test_kl_div.py", "test_logit_stats.py"),
        at_least=200,
        FASTMEM_EMULATOR_ORDER="reverse",
    )


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_the_emulator_shows_faults(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    source = CSRC / "tests" / "emulator_checks.cpp"
    library = ctypes.CDLL(str(shared_library("emulator_checks.so", [source], [EMULATOR])))
    monkeypatch.setenv("FASTMEM_EMULATOR_ORDER", order)

    def run(number: int) -> int | str:
        error = ctypes.create_string_buffer(200)
        result = library.run_check(number, error, 200)
        return error.value.decode() if result == -1 else result

    assert run(0) == sum(range(64))  # with its barrier
    assert run(1) != sum(range(64))  # without
    assert run(2) == "the threads of a block wait for each other"
    assert run(3) == "a lane shuffles outside its mask"
    assert run(4) == sum(range(32, 64))
