"""Run pytest with the CUDA kernels emulated on the CPU:  python tests/ops/emulated.py MODULE [pytest options]."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader

import pytest


def install(path: str) -> None:
    """Put the module at ``path`` in the place of ``fastmem._cuda``."""
    loader = ExtensionFileLoader("fastmem._cuda", path)
    spec = importlib.util.spec_from_file_location("fastmem._cuda", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["fastmem._cuda"] = module


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:]))
