"""A model's weights on disk: a safetensors file, which holds tensors and strings and can run no code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastmem.errors import InputError, StoreError

__all__ = ["load_checkpoint", "load_into", "save_checkpoint"]


def save_checkpoint(
    path: str | os.PathLike[str], model_state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``path``, all of it or nothing: a reader never sees a part, and a kill leaves the former file.

    Args:
        path: The file; its folder is made.
        model_state: Tensors by name, on any device (``nn.Module.state_dict``).
        metadata: Strings to keep with them.

    Raises:
        InputError: If metadata are not strings.
        StoreError: If the file cannot be written.
    """
    target = Path(path)
    notes = dict(metadata or {})
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError("metadata", f"{key!r}: {value!r}", "give strings only")
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in model_state.items()
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(tensors, notes))
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(
            "path", f"cannot write {str(target)!r} ({error.strerror})", "give a writable folder with free space"
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`save_checkpoint` wrote: tensors on the CPU, and the metadata.

    Raises:
        StoreError: If the file is missing, or is not a whole safetensors file.
    """
    if not Path(path).is_file():
        raise StoreError("path", f"no file {str(path)!r}", "check the path")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(
            "path", f"{str(path)!r} is no whole safetensors file ({error})", "write it again, or restore a copy"
        ) from error


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Put ``state`` into ``model``; nothing is changed unless all names and shapes agree.

    Args:
        model: Changed in place.
        state: Tensors by name.
        source: What to call the state in the error message.

    Raises:
        InputError: If names or shapes differ; the first differences are named.
    """
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)}, the model's is {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            source,
            f"does not fit {type(model).__name__}: {', '.join(problems[:3])}{more}",
            "build the model with the options it was saved with",
        )
    model.load_state_dict(dict(state))
