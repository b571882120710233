"""The package as a whole: what importing it costs and needs, and what its build leaves behind."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastmem

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, **env: str) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_public_name_resolves():
    for name in fastmem.__all__:
        assert getattr(fastmem, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        fastmem.no_such_name  # noqa: B018


def test_import_loads_neither_torch_nor_torchvision():
    loaded = run("import sys, fastmem; print([m for m in ('torch', 'torchvision', 'zarr') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_operators_and_attacks_need_no_torchvision():
    code = """
import sys
sys.modules["torchvision"] = None
import numpy as np, torch, fastmem
fastmem.kl_div(torch.zeros(2, 3), torch.ones(2, 3))
signals = fastmem.Signals(
    labels=np.zeros(40, dtype=np.int64), keep=np.arange(8)[:, None] % 2 == np.arange(40) % 2,
    stats={"margin": np.random.default_rng(0).normal(size=(8, 40, 1))})
print(fastmem.attacks.LiRA(variant="online")(signals).shape)
"""
    assert run(code).strip() == "(8, 40)"


def test_importing_the_operators_does_not_touch_cuda():
    code = (
        "import fastmem, torch; fastmem.kl_div(torch.zeros(2, 3), torch.ones(2, 3)); print(torch.cuda.is_initialized())"
    )
    assert run(code).strip() == "False"


def test_pure_python_package_without_native_modules():
    code = (
        "import fastmem, torch; p = torch.randn(4, 10); print(float(fastmem.kl_div(p, p).abs().max()), "
        "fastmem.explain('kl_div', p, p))"
    )
    output = run(code, FASTMEM_NATIVE="OFF")
    assert output.startswith("0.0")
    assert "FASTMEM_NATIVE" in output


def test_installation_left_the_pinned_torch_alone():
    import torch

    if torch.version.cuda is not None:
        pytest.skip("a CUDA build of torch is used as it is")
    pins = dict(re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert torch.__version__.partition("+")[0] == pins["torch"]
    assert importlib.metadata.version("torchvision") == pins["torchvision"]
    heavy = [d.name for d in importlib.metadata.distributions() if re.match(r"nvidia-|cuda-(?!bindings)", d.name or "")]
    assert heavy == []


def test_metadata_never_asks_for_triton_outside_the_development_extra():
    asked = [line for line in importlib.metadata.requires("fastmem") or [] if line.startswith("triton")]
    assert all('extra == "dev"' in line.replace("'", '"') for line in asked)


def test_version_is_one():
    assert fastmem.__version__ == importlib.metadata.version("fastmem")
