"""Fixtures that every room of the tests shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The test processes share the cores among themselves; set before torch is imported, and for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the command line prints is read back as plain text.
os.environ.pop("FORCE_COLOR", None)

# A shell's background job ignores Ctrl-C and so would the commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and every run draws the same examples.
settings.register_profile("fastmem", deadline=None, derandomize=True)
settings.load_profile("fastmem")

_ROOT = Path(__file__).resolve().parents[1]


def _shared(name: str) -> Path:
    return _ROOT.parent / "shared" / name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (``FASTMEM_DATA``, else ``../shared/data``)."""
    folder = Path(os.environ.get("FASTMEM_DATA") or _shared("data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: set FASTMEM_DATA to a folder that holds them (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of arrays that other systems computed (``../shared/reference``)."""
    folder = _shared("reference")
    if not folder.is_dir():
        pytest.skip(f"no reference arrays of other systems (looked in {folder})")
    return folder
