"""The one door to torchvision, which does not always import beside a CPU build of torch, and to what imports it.

The public torchvision wheels for Linux are CUDA builds. Beside a CPU-only torch their native library fails to load
without a word, and the import then stops at ``operator torchvision::nms does not exist``. Declaring the two missing
schemas lets everything that fastmem uses (transforms, data-set classes, models) work; the box operators themselves and
torchvision's own image codecs stay unavailable, and fastmem uses neither.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

import torch

__all__ = ["import_torchvision", "import_transformers"]

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# The library object must outlive the import: torch drops the declarations when it is collected.
_declarations: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """Import torchvision, beside a CPU build of torch as well.

    Returns:
        The ``torchvision`` module.

    Raises:
        ImportError: If torchvision is not installed or is broken in another way.
    """
    global _declarations
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise ImportError(f"torchvision is installed but does not import: {error}") from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    # Declared only after the failure: where the native library loads, it brings its own declarations.
    if _declarations is None:
        _declarations = torch.library.Library("torchvision", "DEF")
        _declarations.define(f"nms{_NMS_SCHEMA}")
        _declarations.define(f"qnms{_NMS_SCHEMA}")
    return importlib.import_module("torchvision")


def import_transformers() -> ModuleType:
    """Import transformers, whose models import torchvision wherever it is installed.

    Returns:
        The ``transformers`` module.

    Raises:
        ImportError: If transformers is not installed.
    """
    with contextlib.suppress(ImportError):  # it does without, but not with one that breaks half-way
        import_torchvision()
    return importlib.import_module("transformers")
