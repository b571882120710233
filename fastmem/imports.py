"""Imports by name: a user's own function or class (``package.module:name``), and names of a package on first use."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastmem.errors import InputError

__all__ = ["import_object", "is_import_path", "lazy_names"]

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:name``."""
    return _IMPORT_PATH.fullmatch(text) is not None


def import_object(argument: str, path: str) -> Any:
    """Import the object that ``path`` names; modules in the working folder are found too.

    Args:
        argument: The option that took the path, for the error message.
        path: ``package.module:name``.

    Raises:
        InputError: If the module does not import or has no such name.
    """
    module_name, _, attributes = path.partition(":")
    # A console script does not search the working folder, where a user's own module usually lies. Last, so that a
    # stray file there cannot take the place of an installed package.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise InputError(
            argument, f"cannot import module {module_name!r} ({_one_line(error)})", "give package.module:name"
        ) from error
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise InputError(argument, f"module {module_name!r} has no {attributes!r}", "give package.module:name")
        found = getattr(found, name)
    return found


def lazy_names(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562) for names that load when they are first used.

    Args:
        package: The package, its ``__name__``.
        home: For each name the module of the package that holds it.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
