"""Shards do their own models side by side, and what they leave is what one run leaves."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmem.cli import main
from fastmem.errors import InputError, StoreError
from fastmem.studies.audit import AuditConfig, Shard, run_audit, run_shard
from fastmem.training import Recipe

SmallAudit = Callable[..., AuditConfig]

_COMMAND = shlex.split(
    "audit --pool 80 --population 40 --bystanders 40 --model-args.hidden [16] --num-models 8 --null-models 8 "
    "--recipe.epochs 5 --attacks loss,lira_online,rmia_online --workers 1 --out"
)


@pytest.mark.parametrize(("models", "count"), [(8, 3), (5, 5), (2, 4)])
def test_every_model_is_in_one_shard(models: int, count: int) -> None:
    parts = [Shard(number, count).part_of(models) for number in range(1, count + 1)]
    assert sorted(model for part in parts for model in part) == list(range(models))


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^shard: .*give I/N"):
        Shard.of(text)


@pytest.mark.usefixtures("without_report")
def test_two_shards_at_once_leave_what_one_run_leaves(
    small_audit: SmallAudit, finished_once: Path, run_contents: Callable[[Path], dict[str, bytes]]
) -> None:
    out = small_audit().run_dir
    shards = [
        subprocess.Popen(
            [sys.executable, "-m", "fastmem", *_COMMAND, str(out), "--shard", f"{number}/2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for number, shard in enumerate(shards, start=1):
        answer, noise = shard.communicate(timeout=300)
        assert shard.returncode == 0, noise
        assert answer.startswith(f"shard {number} of 2 is done, 8 models were trained")
    assert not (out / "summary.json").exists()
    whole = run_audit(small_audit())
    assert whole.trained == 0
    assert run_contents(out) == run_contents(finished_once)


@pytest.mark.usefixtures("without_report")
def test_a_missing_shard_is_made_good_by_the_whole_run(
    small_audit: SmallAudit, finished_once: Path, run_contents: Callable[[Path], dict[str, bytes]]
) -> None:
    assert run_shard(small_audit(), Shard(2, 4)) == 4
    assert run_shard(small_audit(), Shard(2, 4)) == 0
    whole = run_audit(small_audit())
    assert whole.trained == 12
    assert run_contents(whole.run_dir) == run_contents(finished_once)


def test_shards_of_another_audit_are_kept_apart(small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmem.engine import RunFolder

    run_shard(small_audit(), Shard(1, 8))
    folder = RunFolder(small_audit().run_dir)
    other = small_audit(recipe=Recipe(epochs=6))
    refused = pytest.raises(StoreError, match=r"^out: shards of another audit are at work in")
    with folder.joined("shard 2 of 8", lambda others: None), refused:
        run_shard(other, Shard(3, 8))
    refused = pytest.raises(StoreError, match=r"^out: shard 2 of 8 of this run is still at work in")
    with folder.joined("shard 2 of 8", lambda others: None), refused:
        run_audit(small_audit())
    # Alone, it may replace what an earlier run has left.
    assert run_shard(other, Shard(1, 8)) == 2


def test_the_command_says_what_comes_next(small_audit: SmallAudit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_COMMAND, str(small_audit().run_dir), "--shard", "8/8"]) == 0
    assert "shard 8 of 8 is done, 2 models were trained" in capsys.readouterr().out
