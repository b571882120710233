"""Saved logits, masks and labels: .npy files that are mapped into memory, and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastmem.errors import InputError
from fastmem.signals import Signals
from fastmem.studies.attack.config import AttackConfig
from fastmem.studies.membership import Tables

__all__ = ["load_arrays"]


def load_arrays(config: AttackConfig) -> Tables:
    """The arrays of a config, mapped into memory rather than read.

    Raises:
        InputError: If a file is missing, is no whole .npy file or needs pickle, or if the arrays do not fit each other.
    """
    missing = [name for name in ("logits", "keep", "labels") if getattr(config, name) is None]
    if missing:
        needed = ", ".join(f"--{name}" for name in missing)
        raise InputError("attack", f"no {needed}", "give --signals DIR, or --logits, --keep and --labels")
    pool = Signals(
        _load("labels", config.labels), _load("keep", config.keep), _with_query_axis(_load("logits", config.logits))
    )
    if config.population_logits is None and config.population_labels is None:
        return Tables(pool)
    with _named("population_"):
        logits = _with_query_axis(_load("logits", config.population_logits))
        labels = _load("labels", config.population_labels)
        population = Signals(labels, np.zeros((pool.num_models, len(labels)), dtype=bool), logits)
    return Tables(pool, population)


def _load(argument: str, path: Path | None) -> np.ndarray:
    if path is None:
        raise InputError(argument, "not given", "the population needs its logits and its labels")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(argument, f"no file {str(path)!r}", "check the path") from error
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise InputError(
                argument,
                f"{str(path)!r} holds Python objects, which only pickle can read",
                "pickle can run code and is refused; save plain numbers with numpy.save",
            ) from error
        raise InputError(argument, f"{str(path)!r} is no .npy file ({error})", "save it with numpy.save") from error
    except (OSError, EOFError) as error:
        raise InputError(
            argument, f"{str(path)!r} is no whole .npy file ({error})", "save it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(argument, f"{str(path)!r} holds several arrays (.npz)", "give one array, from numpy.save")
    return array


def _with_query_axis(logits: np.ndarray) -> np.ndarray:
    return logits[:, :, None, :] if logits.ndim == 3 else logits


@contextmanager
def _named(prefix: str) -> Iterator[None]:
    """Says which of the two tables an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error.argument}", error.problem, error.remedy) from error
