"""The Triton kernels of kkt_residual where there is no GPU: compiled ahead of time, and the operator's tests on them in
Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of PyTorch)")

import triton.language as tl  # noqa: E402

from fastmem.ops import triton as launcher  # noqa: E402 - only where there is Triton

from .test_triton_gradients import usage  # noqa: E402
from .test_triton_kernels import ROOT, compile_ahead  # noqa: E402

STEP = {"WEIGHT": 5.0, "MOMENTUM": 0.9, "DECAY": 0.9, "DECAY_SQ": 0.999, "LEAST": 1e-8}


@pytest.mark.skipif(launcher.interpreted(), reason="compiling needs Triton's compiler, not its interpreter")
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_kernel_spills(dtype: torch.dtype, architecture: int, tmp_path: Path) -> None:
    from fastmem.ops.triton import _kkt_kernels as kernels

    common = {"TYPE": tl.float64 if dtype is torch.float64 else tl.float32, "BLOCK": 1024}
    for kernel, constants in (
        (kernels.kkt_activate, {"HAS_BIAS": True, **common}),
        (kernels.kkt_rise, {"ONWARD": True, **common}),
        *((kernels.boxed_step, {**STEP, "IS_ADAM": adam, **common}) for adam in (False, True)),
    ):
        _, spills, _ = usage(compile_ahead(kernel, constants, 4, dtype, architecture), tmp_path)
        assert spills == [], kernel.__name__


def test_the_operators_tests_pass_in_the_interpreter() -> None:
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 does not know NumPy 2.4")
    command = [
        *(sys.executable, "-m", "pytest"),
        *(str(Path(__file__).with_name(f"test_{name}.py")) for name in ("kkt_residual", "kkt_precision", "boxed_step")),
        *("-q", "-k", "triton", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--no-header"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert passed is not None
    assert int(passed[1]) == 31
