"""Killed at any instant, an audit continues to the same bytes; the long form of this is in ``audit_crash``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, as POSIX systems do")
def test_killed_at_random_instants(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.studies.audit.audit_crash", "fork", "3", str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 kills, byte-identical every time"
