"""Progress goes to standard error, a few lines of it in a log, and times are taken either way."""

from __future__ import annotations

import time

import pytest

from fastmem.studies import terminal as module
from fastmem.studies.terminal import Terminal


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_EVERY_SECONDS", 0.0)
    terminal = Terminal()
    with terminal.stage("train", total=4, done=1) as advance:
        advance(1)
        advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.strip().splitlines()
    assert first.startswith("train: 2 of 4, about ")
    assert last.startswith("train: 4 of 4 in ")


def test_quiet_shows_nothing_and_still_takes_times(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    for _ in range(2):
        with terminal.stage("train", total=2) as advance:
            time.sleep(0.01)
            advance(2)
    terminal.say("hidden")
    assert capsys.readouterr().err == ""
    assert terminal.seconds["train"] >= 0.02


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal()
    with terminal.stage("train", total=3) as advance:
        advance(3)
    err = capsys.readouterr().err
    assert "train" in err
    assert "3/3" in err
