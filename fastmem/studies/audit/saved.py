"""Saved models of a run, in a folder or at any fsspec URL: whole and unchanged when read, or not there.

A file says in its metadata under which key its model was trained, and what its weights hash to. In a folder it appears
in one step; an object store does the same; where neither holds, a part of a file is not taken for a model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from torch import Tensor

from fastmem.engine import RunFolder, content_key
from fastmem.errors import StoreError
from fastmem.signals.layout import store_errors
from fastmem.training import load_checkpoint, save_checkpoint

__all__ = ["digest_of", "is_url", "load_model", "remove_all", "remove_others", "save_model"]

# Where a saved model says what it is. One entry: safetensors writes several in an order of its own, and equal runs
# should give equal bytes.
_METADATA = "fastmem_audit"
_SUFFIX = ".safetensors"


def is_url(place: str) -> bool:
    """Whether a place is an fsspec URL, rather than a folder."""
    return "://" in place


def save_model(path: str, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Saves a model; it is there once this returns.

    Args:
        path: A file, or an fsspec URL.
        state: Tensors by name.
        about: What to say of it, JSON values; ``"key"`` among them.

    Raises:
        StoreError: If the place cannot be written.
    """
    metadata = {_METADATA: json.dumps({**about, "sha256": digest_of(state)})}
    if not is_url(path):
        save_checkpoint(path, state, metadata)
        return
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "model"
        save_checkpoint(draft, state, metadata)
        with store_errors(path):
            fs, key = url_to_fs(path)
            fs.makedirs(fs._parent(key), exist_ok=True)
            fs.pipe_file(key, draft.read_bytes())


def load_model(path: str, key: str) -> dict[str, Tensor] | None:
    """The saved state of the model of this key, or None if it is absent, damaged or of another key."""
    try:
        state, metadata = _load(path)
        about = json.loads(metadata.get(_METADATA, "{}"))
    except (StoreError, ValueError):
        return None
    return state if about.get("key") == key and about.get("sha256") == digest_of(state) else None


def remove_others(place: str, expected: Iterable[str]) -> None:
    """Removes the saved models of a place that are not expected there."""
    names = {Path(path).name for path in expected}
    with store_errors(place):
        fs, root = url_to_fs(place)
        for path in fs.glob(f"{root}/*{_SUFFIX}"):
            if Path(str(path)).name not in names:
                fs.rm_file(path)


def remove_all(places: Iterable[str]) -> None:
    """Removes folders or what lies below URLs, where they are there."""
    for place in places:
        if not is_url(place):
            RunFolder(Path(place).parent).remove([Path(place).name])
            continue
        with store_errors(place):
            fs, root = url_to_fs(place)
            if fs.exists(root):
                fs.rm(root, recursive=True)


def _load(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not is_url(path):
        return load_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model"
        with store_errors(path):
            fs, key = url_to_fs(path)
            copy.write_bytes(fs.cat_file(key))
        return load_checkpoint(copy)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    return content_key(
        **{
            name: (str(value.dtype), list(value.shape), value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            for name, value in state.items()
        }
    )
