"""The programs on the pages of the documentation run, and find what the pages say they find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_samples_that_pull_hardest(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "hardest_samples.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    space: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(compile(program, "hardest_samples.md", "exec"), space)
    said = capsys.readouterr().out
    match = re.match(r"of the 30 that pull hardest (\d+) have a wrong label; by chance it would be 0\.7", said)
    assert match is not None, said
    assert int(match[1]) >= 20
    assert "'0.weight': '" in said


def test_reconstruction_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "reconstruct.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    with torch.random.fork_rng():
        exec(compile(program, "reconstruct.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([20, 1, 28, 28]) ")
