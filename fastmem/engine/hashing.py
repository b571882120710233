"""Content keys: a result is reused only if everything that decided it is the same, bytes and code included.

Shapes and file names are not keys: a reordered data set, an edited model or a new release of torch must all change the
key. So a key is the SHA-256 of a canonical JSON text of the ingredients; arrays enter by the hash of their bytes, code
by the hash of its sources.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastmem
from fastmem.imports import import_object

__all__ = ["code_version", "content_key", "source_fingerprint"]

_NATIVE_MODULES = ("fastmem._cpu", "fastmem._cuda")


def content_key(**ingredients: Any) -> str:
    """SHA-256 over named ingredients, independent of their order.

    Args:
        **ingredients: JSON values, tuples, dataclasses, paths, bytes and numpy arrays, nested at will.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If an ingredient has no canonical form (a set, an object), since its hash would mean nothing.
    """
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), default=_canonical)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        digest = hashlib.sha256(data.reshape(-1).view(np.uint8).data if data.size else b"").hexdigest()
        return {"array": digest, "dtype": data.dtype.str, "shape": list(data.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"dataclass": type(value).__qualname__, **fields}
    raise TypeError(f"a content key cannot hold a {type(value).__qualname__}")


@functools.cache
def code_version(*parts: str) -> str:
    """SHA-256 over the sources of some parts of fastmem and over its native modules.

    A version number changes with releases only; this changes with every edit, so rows that other code wrote are never
    taken for this code's.

    Args:
        *parts: Packages and files below ``fastmem``, for example ``"training"`` or ``"engine/plan.py"``.
    """
    root = Path(fastmem.__file__).parent
    digest = hashlib.sha256()
    for part in sorted(parts):
        home = root / part
        for source in [home] if home.suffix == ".py" else sorted(home.rglob("*.py")):
            _add_file(digest, source.relative_to(root).as_posix(), source)
    for name in _NATIVE_MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            _add_file(digest, name, Path(spec.origin))
    return digest.hexdigest()


def source_fingerprint(argument: str, import_path: str) -> str:
    """SHA-256 over the source of a user's own object and of every module of theirs that it draws on.

    Args:
        argument: The option that took the path, for the error message.
        import_path: ``package.module:name``.

    Returns:
        64 hexadecimal digits; they change when the module, or one that it imports from outside the installed
        packages, is edited.

    Raises:
        InputError: If the module does not import or has no such name.
    """
    found = import_object(argument, import_path)
    modules = [sys.modules[import_path.partition(":")[0]], *_modules_behind([found])]
    digest = hashlib.sha256(import_path.encode())
    for name, source in sorted(_user_sources(modules).items()):
        _add_file(digest, name, source)
    return digest.hexdigest()


def _user_sources(start: list[ModuleType]) -> dict[str, Path]:
    """The source files of some modules and, through what they imported, of the user's other modules."""
    found: dict[str, Path] = {}
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        source = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
        if module.__name__ in found or source is None:
            continue
        if module not in start and _is_installed(Path(source)):
            continue
        found[module.__name__] = Path(source)
        waiting.extend(_modules_behind(vars(module).values()))
    return found


def _modules_behind(values: Iterable[Any]) -> list[ModuleType]:
    modules = []
    for value in list(values):
        home = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
        if home is not None:
            modules.append(home)
    return modules


def _is_installed(source: Path) -> bool:
    # The package itself counts as installed: code_version() answers for it, in an editable install too.
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    homes.add(str(Path(fastmem.__file__).parent))
    return any(source.resolve().is_relative_to(Path(home).resolve()) for home in homes)


def _add_file(digest: hashlib._Hash, name: str, path: Path) -> None:
    # Lengths keep "ab" + "c" apart from "a" + "bc".
    content = path.read_bytes()
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)
