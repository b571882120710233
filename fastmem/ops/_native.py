"""The two native modules, or the reason why one is missing.

``fastmem._cpu`` and ``fastmem._cuda`` are optional at run time: fastmem is complete without them, only slower.
``FASTMEM_NATIVE=OFF`` in the environment keeps both out.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

__all__ = ["DTYPE_CODES", "NativeUnavailable", "cpu_module", "cuda_module", "why_no_cpu", "why_no_cuda"]

#: How the native modules name element types (csrc/common/dtype.h).
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


class NativeUnavailable(ImportError):  # noqa: N818 - a state of the machine, not a mistake
    """A native module cannot be used; the message is the reason."""


def cpu_module() -> ModuleType:
    """The CPU kernels.

    Raises:
        NativeUnavailable: They are switched off, not built, or do not load.
    """
    return _module("_cpu")


def cuda_module() -> ModuleType:
    """The CUDA kernels. Importing them is harmless where there is no GPU.

    Raises:
        NativeUnavailable: They are switched off, not built, or do not load.
    """
    return _module("_cuda")


def why_no_cpu(*functions: str) -> str | None:
    """``None`` if the CPU kernels can run and have these functions, else the reason why not."""
    return _why_not_loaded("_cpu", functions)


def why_no_cuda() -> str | None:
    """``None`` if the CUDA kernels can run on a GPU of this machine, else the reason why not."""
    reason = _why_not_loaded("_cuda")
    if reason is None and not torch.cuda.is_available():
        reason = "torch finds no CUDA device"
    return reason


def _why_not_loaded(name: str, functions: tuple[str, ...] = ()) -> str | None:
    try:
        module = _module(name)
    except NativeUnavailable as error:
        return str(error)
    # An editable install runs new Python code on the binary of an older build.
    missing = [function for function in functions if not hasattr(module, function)]
    if missing:
        return f"fastmem.{name} is older than this package: it lacks {', '.join(missing)}; build it again (make native)"
    return None


def _module(name: str) -> ModuleType:
    loaded = _load(name)
    if isinstance(loaded, str):
        raise NativeUnavailable(loaded)
    return loaded


@functools.cache
def _load(name: str) -> ModuleType | str:
    """The module, or in words why there is none."""
    if os.environ.get("FASTMEM_NATIVE", "").upper() == "OFF":
        return "native modules are switched off (FASTMEM_NATIVE=OFF)"
    module = f"fastmem.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            return f"{module} does not load: {error}"
        return f"{module} is not built"
    except (ImportError, OSError) as error:
        # A broken or foreign binary must not break the package: it is a missing backend, with the loader's reason.
        return f"{module} does not load: {error}"
