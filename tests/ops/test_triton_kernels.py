"""The Triton kernels where there is no GPU: compiled ahead of time for two architectures without spilling a register,
and held to the operators' own tests in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of PyTorch)")

from fastmem.ops import triton as launcher  # noqa: E402 - only where there is Triton

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

POINTERS = {
    "logits": (
        *("p_ptr", "q_ptr", "z_ptr", "dp_ptr", "dq_ptr", "dz_ptr", "total_ptr", "other_ptr"),
        *("a_ptr", "delta_ptr"),  # of layer_grad_stats
    ),
    "int64": ("label_ptr", "table_ptr", "above_ptr", "threshold_ptr", "equal_before_ptr", "equal_wanted_ptr"),
    "int32": ("first_ptr", "histogram_ptr", "invalid_ptr"),
}
TRITON_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
ALL_STATISTICS = dict.fromkeys(("MARGIN", "LOSS", "HINGE", "PROB", "ENTROPY"), True)


def kernels(dtype: torch.dtype, classes: int) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Module, kernel, constants and warps of every kernel as it is launched for contiguous rows of this length."""
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    pack = 16 // dtype.itemsize
    common = {"NDIM": 1, "ALIGN": pack if classes % pack == 0 else 1}
    per_tile = launcher.tile_for(classes, launcher.tile_elements(acc), acc)
    rows, block, warps = per_tile
    yield (
        "_kl_div_kernels",
        "kl_gradients",
        {"NEED_P": True, "NEED_Q": True, "ROWS": rows, "BLOCK": block, **common},
        warps,
    )
    summed = {"SUM_P": True, "NEED_OTHER": True, "KEPT_NDIM": 1, "SUMMED_NDIM": 1, "ALIGN": common["ALIGN"]}
    yield "_kl_div_kernels", "kl_summed_gradients", {**summed, "ROWS": rows, "BLOCK": block}, warps
    if classes <= launcher.longest_row(acc):
        rows, block, warps = launcher.tile_for(classes, launcher.longest_row(acc), acc)
        tile = {"ROWS": rows, "BLOCK": block, **common}
        yield "_kl_div_kernels", "kl_rows", tile, warps
        yield "_logit_stats_kernels", "logit_rows", {"MARGIN_ONLY": False, **tile}, warps
        yield "_logit_stats_kernels", "logit_row_gradients", {**ALL_STATISTICS, **tile}, warps
        return
    tile = {"BLOCK": launcher.tile_elements(acc), **common}
    yield "_kl_div_kernels", "kl_segments", tile, 4
    yield "_kl_div_kernels", "kl_merge_segments", tile, 4
    yield "_logit_stats_kernels", "logit_segments", {"PLACED": True, **tile}, 4
    yield "_logit_stats_kernels", "logit_merge_segments", {"MARGIN_ONLY": False, **common}, 1
    yield "_logit_stats_kernels", "logit_segment_gradients", {**ALL_STATISTICS, **tile}, 4


def compile_ahead(
    kernel: Any, constants: dict[str, Any], warps: int, dtype: torch.dtype, architecture: int, **options: Any
) -> Any:
    """The kernel's machine code for contiguous, aligned operands."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    acc = tl.float64 if dtype is torch.float64 else tl.float32
    constants = {**constants, "ACC": acc, **dict.fromkeys(("p_class", "q_class", "class_stride"), 1)}
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[index,] = "constexpr", constants[name]
        elif name.endswith("_ptr"):
            kind = next((kind for kind, names in POINTERS.items() if name in names), "sums")
            pointee = {"logits": TRITON_NAMES[dtype], "int64": "i64", "int32": "i32", "sums": acc.name}[kind]
            signature[name] = f"*{pointee}"
            attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i64" if name == "inverse_bits" else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, **launcher.OPTIONS, **options}
    )


def inspect_cubin(tool: str, *arguments: str) -> str:
    """What a tool of Triton's package prints."""
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(launcher.interpreted(), reason="compiling needs Triton's compiler, and this is its interpreter")
@pytest.mark.parametrize(
    ("dtype", "classes", "architecture"),
    [
        (torch.float32, 10, 80),
        (torch.float32, 32_000, 80),
        (torch.float32, 10, 90),
        (torch.float32, 1001, 90),
        (torch.float32, 32_000, 90),
        (torch.bfloat16, 1000, 90),
        (torch.bfloat16, 152_000, 90),
        (torch.float64, 10, 90),
    ],
    ids=str,
)
def test_no_kernel_spills(dtype: torch.dtype, classes: int, architecture: int, tmp_path: Path) -> None:
    import importlib

    for module, name, constants, warps in kernels(dtype, classes):
        kernel = getattr(importlib.import_module(f"fastmem.ops.triton.{module}"), name)
        compiled = compile_ahead(kernel, constants, warps, dtype, architecture)
        cubin = tmp_path / f"{name}.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = inspect_cubin("cuobjdump", "-res-usage", str(cubin))
        match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert match is not None, usage
        registers, stack, local = map(int, match.groups())
        # A stack frame may be there for a call alone; a spill stores to it and loads from it.
        spills = re.findall(r"\b(?:STL|LDL)\b.*", inspect_cubin("nvdisasm", str(cubin))) if stack else []
        assert (local, spills) == (0, []), f"{name} {constants}"
        assert registers <= (168 if dtype is not torch.float64 else 200), f"{name} {constants}"
        if constants.get("ALIGN", 1) > 1 and name in ("kl_rows", "kl_segments", "kl_gradients"):
            loads = re.findall(r"ld\.global\S*\.v(?:4\.b32|2\.b64)", compiled.asm["ptx"])
            assert len(loads) >= 2, f"{name} does not load 16 bytes at a time"


def test_the_operators_tests_pass_in_the_interpreter() -> None:
    """A selection, for the interpreter takes milliseconds where a GPU takes microseconds."""
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 does not know NumPy 2.4")
    left_out = (
        *("gradcheck", "50257", "1025", "129", "reversed", "padded"),  # of the operators' own tests
        *("peaked", "far_offset", "8999", "triton-cpu-0"),  # of those of long rows
    )
    command = [
        *(sys.executable, "-m", "pytest"),
        *(str(Path(__file__).with_name(f"test_{name}.py")) for name in ("kl_div", "logit_stats", "long_rows")),
        *("-q", "-k", " and not ".join(["triton-cpu", *left_out])),
        *("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--no-header"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert passed is not None
    assert int(passed[1]) >= 250


@pytest.mark.skipif(launcher.interpreted(), reason="the interpreter is available everywhere")
def test_without_a_device_it_says_so() -> None:
    if torch.cuda.is_available():
        assert launcher.why_unavailable() is None
    else:
        assert launcher.why_unavailable() == "no CUDA device: torch.cuda.is_available() is False"


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert launcher.why_unavailable() == "Triton is not installed"


def test_an_old_triton_is_refused_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    assert launcher.why_unavailable() == "Triton 3.5.1 is older than 3.6"


def test_asking_for_the_kernels_imports_no_triton() -> None:
    """Importing it takes a second, which users of the CPU need not wait for."""
    code = """
import sys, torch, fastmem
p = torch.randn(3, 4)
fastmem.kl_div(p, p), fastmem.logit_margin(p, torch.tensor([0, 1, 2])), fastmem.explain("kl_div", p, p)
print("triton" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "False"


def test_tiles_hold_short_rows_and_bound_long_ones() -> None:
    for dtype in (torch.float32, torch.float64):
        longest = launcher.longest_row(dtype)
        for classes in (1, 10, 16, 17, 1000, longest, longest + 1, 152_000):
            rows, block, warps = launcher.tile_for(classes, longest, dtype)
            assert min(classes, longest) <= block <= longest
            assert block & (block - 1) == 0
            assert 4 <= warps <= 8
            assert rows * block <= launcher.tile_elements(dtype) * 2


@pytest.mark.parametrize(
    ("shape", "view", "expected"),
    [
        ((4, 8), lambda x: x, 4),
        ((4, 10), lambda x: x, 1),  # rows of 40 bytes
        ((4, 16), lambda x: x[:, :8], 4),
        ((4, 16), lambda x: x[:, 1:9], 1),  # starts between
        ((4, 9), lambda x: x[:, :8], 1),
        ((8, 4), lambda x: x.T, 1),
    ],
)
def test_alignment_is_that_of_every_row(shape: tuple[int, int], view: Any, expected: int) -> None:
    logits = view(torch.zeros(shape))
    assert launcher.alignment((logits,), ((logits.stride(0),),), logits.shape[-1]) == expected
