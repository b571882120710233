"""``fastmem info``: versions, devices, data folders, and which implementation each operator would run on, and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import joblib
import torch

import fastmem
from fastmem.ops import explain, operators

__all__ = ["info_lines"]

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "zarr", "safetensors")
# Folders by which torchvision's layout, or an unpacked archive, is recognised.
_DATA_FOLDERS = ("MNIST", "FashionMNIST", "cifar-10-batches-py", "cifar-100-python", "cifar10", "cifar100")


def info_lines() -> list[tuple[str, str]]:
    """A heading and its text, section by section."""
    return [
        ("fastmem", f"{fastmem.__version__} on Python {platform.python_version()}, {platform.platform()}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        ("processor", f"{joblib.cpu_count()} cores for this process"),
        ("gpu", _gpus()),
        ("data", _data()),
        *((f"operator {name}", "\n".join(str(explain(name)).splitlines()[1:])) for name in operators()),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _gpus() -> str:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return f"none that torch can use ({built})"
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)


def _data() -> str:
    root = os.environ.get("FASTMEM_DATA")
    if not root:
        return "digits (embedded); FASTMEM_DATA is not set, so other names need --data-root"
    folder = Path(root)
    if not folder.is_dir():
        return f"digits (embedded); FASTMEM_DATA={root} is no folder"
    found = [name for name in _DATA_FOLDERS if (folder / name).is_dir()]
    return f"digits (embedded); {root} holds {', '.join(found) or 'none of ' + ', '.join(_DATA_FOLDERS)}"
