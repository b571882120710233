"""The Triton kernels around gradients where there is no GPU: compiled ahead of time for three architectures without
spilling a register, and held to the operators' own tests in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of PyTorch)")

from fastmem.ops import triton as launcher  # noqa: E402 - only where there is Triton
from fastmem.ops.triton import layer_grad_stats as layers  # noqa: E402
from fastmem.ops.triton import top_fraction as selection  # noqa: E402
from fastmem.ops.triton._chunks import BLOCK, STEPS, chunk_table  # noqa: E402

from .test_triton_kernels import ROOT, compile_ahead, inspect_cubin  # noqa: E402

compiles = pytest.mark.skipif(launcher.interpreted(), reason="compiling needs Triton's compiler, not its interpreter")


def usage(compiled: Any, folder: Path) -> tuple[int, list[str], str]:
    """Registers, spills and machine code."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    said = inspect_cubin("cuobjdump", "-res-usage", str(cubin))
    match = re.search(r"REG:(\d+) STACK:\d+ SHARED:\d+ LOCAL:(\d+)", said)
    assert match is not None, said
    assert match[2] == "0"
    code = inspect_cubin("nvdisasm", str(cubin))
    return int(match[1]), re.findall(r"\b(?:STL|LDL)\b.*", code), code


@compiles
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "precision", "instruction"),
    [
        (torch.float32, "ieee", r"\bFFMA"),
        (torch.float32, "tf32x3", r"GMMA|HMMA|UTC\w*MMA"),
        (torch.float32, "tf32", r"GMMA|HMMA|UTC\w*MMA"),
        (torch.bfloat16, "ieee", r"GMMA|HMMA|UTC\w*MMA"),
        (torch.float64, "ieee", r"DMMA|DFMA"),
    ],
    ids=str,
)
def test_tiles_of_gradients_stay_in_registers(
    dtype: torch.dtype, precision: str, instruction: str, architecture: int, tmp_path: Path
) -> None:
    """With all four statistics at once, of a weight that fills its tiles; products run where they should."""
    from fastmem.ops.triton._layer_grad_kernels import layer_grad_tiles

    block_o, block_k, block_t, warps = layers.tile_for(512, 4608, dtype, precision)
    constants = {"SUM": True, "SUM_SQ": True, "SUM_ABS": True, "NORM": True, "PADDED": True, "PRECISION": precision}
    constants |= {"BLOCK_O": block_o, "BLOCK_K": block_k, "BLOCK_T": block_t}
    compiled = compile_ahead(layer_grad_tiles, constants, warps, dtype, architecture, num_stages=layers.STAGES)
    registers, spills, code = usage(compiled, tmp_path)
    assert spills == []
    assert registers * warps * 32 <= 65536  # what a multiprocessor has
    assert re.search(instruction, code)
    assert compiled.metadata.shared <= 48 << 10


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
def test_passes_over_many_tensors_do_not_spill(architecture: int, tmp_path: Path) -> None:
    import triton.language as tl

    from fastmem.ops.triton import _importance_kernels as kernels

    common = {"BLOCK": BLOCK}
    accumulating = {"KIND": "abs_gw", "OVERWRITE": False, "MODEL": tl.bfloat16, **common}
    counting = [
        (kernels.count_digits, {"SHIFT": shift, "DIGITS": 1 << bits, "FIRST": bits == 11, **common})
        for shift, bits in selection.PASSES
    ]
    for kernel, constants in [
        (kernels.accumulate_importance, accumulating),
        (kernels.accumulate_importance, {**accumulating, "MODEL": tl.float32}),
        *counting,
        (kernels.mark_highest, common),
    ]:
        compiled = compile_ahead(kernel, constants, 4, torch.float32, architecture)
        registers, spills, _ = usage(compiled, tmp_path)
        assert spills == [], kernel.__name__
        assert 2 * registers * 4 * 32 <= 65536, kernel.__name__  # two programs on a multiprocessor at least


def test_the_operators_tests_pass_in_the_interpreter() -> None:
    """A selection, for the interpreter takes milliseconds where a GPU takes microseconds."""
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 does not know NumPy 2.4")
    twice = "(float64 and (padding or dilation or stride or point or rows or one))"  # once in float32 is enough
    left_out = ("depthwise", "blocks", "many_weights", "70000", "vanish", "100-21", "long", twice)
    command = [
        *(sys.executable, "-m", "pytest"),
        *(
            str(Path(__file__).with_name(f"test_{name}.py"))
            for name in ("layer_grad_stats", "weight_importance", "top_fraction")
        ),
        *("-q", "-k", " and not ".join(["triton", *(f"({part})" for part in left_out)])),
        *("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--no-header"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert passed is not None
    assert int(passed[1]) >= 70


def test_the_table_covers_every_element_once() -> None:
    tensors = [torch.zeros(size) for size in (BLOCK * STEPS + 3, 0, 5)]
    masks = [torch.zeros(-(-tensor.numel() // 8), dtype=torch.uint8) for tensor in tensors]
    table = chunk_table([(tensors, 1), (masks, 8)])
    first, mask = tensors[0].data_ptr(), masks[0].data_ptr()
    size = BLOCK * STEPS
    assert table.tolist() == [
        [first, mask, size],
        [first + 4 * size, mask + size // 8, 3],
        [tensors[2].data_ptr(), masks[2].data_ptr(), 5],
    ]
