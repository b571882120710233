"""The command: help that teaches, one line for every mistake, exit codes, and nothing half-written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fastmem.cli import main

_SMALL = [
    "--pool",
    "80",
    "--population",
    "40",
    "--bystanders",
    "40",
    "--model-args.hidden",
    "[16]",
    "--num-models",
    "8",
    "--null-models",
    "8",
    "--workers",
    "1",
    "--recipe.epochs",
    "3",
    "--attacks",
    "loss,lira_online",
]


@dataclass
class _Done:
    code: int
    out: str
    err: str


def _fastmem(*arguments: str) -> _Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return _Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _error(done: _Done) -> str:
    lines = done.err.strip().splitlines()
    assert done.code == 2, done.err
    assert len(lines) == 1, done.err
    assert lines[0].startswith("fastmem: error: ")
    return lines[0]


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    code = "import sys; from fastmem.cli import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    for command in ("audit", "canary", "attack", "report", "info"):
        assert command in done.stdout
    assert "'torch'" not in done.stderr
    assert "'numpy'" not in done.stderr
    assert min(seconds) < 5  # a fraction of a second on a quiet machine


@pytest.mark.parametrize("command", ["audit", "canary", "attack"])
def test_the_help_of_a_command_teaches(command: str) -> None:
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()) as out:
        main([command, "--help"])
    assert ended.value.code == 0
    text = out.getvalue()
    assert "examples:" in text
    assert "The run:" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", ["report", "info"])
def test_small_commands_have_help(command: str) -> None:
    assert f"usage: fastmem {command}" in _fastmem(command, "--help").out


def test_version() -> None:
    assert _fastmem("--version").out.startswith("fastmem ")


def test_an_audit_prints_the_answer_the_table_and_where_the_files_are() -> None:
    done = _fastmem("audit", *_SMALL, "--out", "run")
    assert done.code == 0, done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["answer"].split()[0] in done.out
    for text in ("lira_online", "shuffled", "run/report.html"):
        assert text in done.out
    assert "train and query: 16 of 16" in done.err
    again = _fastmem("audit", "--config", "run/config.yaml", "--out", "run", "--workers", "1")
    assert "16 of 16 models are already there" in again.err

    report = Path("run/report.html")
    drawn = report.read_bytes()
    report.unlink()
    assert _fastmem("report", "run").code == 0
    assert report.read_bytes() == drawn

    attack = _fastmem("attack", "--signals", "run", "--attacks", "lira_online", "--out", "again", "--workers", "1")
    assert attack.code == 0, attack.err
    assert "again/report.html" in attack.out
    assert Path("again/report.html").is_file()


def test_a_canary_study_prints_the_answer_and_continues() -> None:
    small = [
        "--pool",
        "80",
        "--held-out",
        "40",
        "--validation",
        "40",
        "--nulls",
        "5",
        "--level",
        "0.2",
        "--images",
        "20",
    ]
    small += ["--controls", "3", "--recipe.epochs", "3", "--workers", "1", "--variants", "log_ratio", "--out", "run"]
    done = _fastmem("canary", *small)
    assert done.code == 0, done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["answer"].split()[0] in done.out
    assert "train and score: 10 of 10" in done.err
    again = _fastmem("canary", "--config", "run/config.yaml", "--out", "run", "--workers", "1")
    assert "10 of 10 models are already there" in again.err
    drawn = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    assert _fastmem("report", "run").code == 0
    assert Path("run/report.html").read_bytes() == drawn


def test_dry_run_shows_the_plan_and_writes_nothing() -> None:
    done = _fastmem("audit", *_SMALL, "--dry-run")
    assert done.code == 0, done.err
    for word in ("data", "models", "training", "attacks", "time", "memory", "disk"):
        assert any(line.startswith(word) for line in done.out.splitlines())
    assert list(Path().iterdir()) == []


def test_print_config_can_be_read_back() -> None:
    done = _fastmem("audit", *_SMALL, "--print-config")
    Path("config.yaml").write_text(done.out)
    assert yaml.safe_load(done.out)["recipe"]["epochs"] == 3
    assert _fastmem("audit", "--config", "config.yaml", "--print-config").out == done.out


def test_info_names_versions_and_backends() -> None:
    out = _fastmem("info").out
    assert torch.__version__ in out
    for operator in ("kl_div", "logit_stats"):
        assert f"operator {operator}" in out
    assert "reference" in out


def test_attack_list_names_every_attack() -> None:
    from fastmem.attacks import ATTACKS

    assert [line.split()[0] for line in _fastmem("attack", "--list").out.splitlines()] == list(ATTACKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audti", "did you mean 'audit'"),
        ("audit --dta digits", "did you mean --data"),
        ("audit --data digts", "did you mean 'digits'"),
        ("audit --data missing.npz", "missing.npz"),
        ("audit --model mpl", "did you mean 'mlp'"),
        ("audit --attacks lira_onlin", "lira_online"),
        ("audit --num-models 7", "even number"),
        ("audit --num-models 2", "cannot work with that"),
        ("audit --pool 100000", "1797 training records"),
        ("audit --recipe.epochs none", "whole number"),
        ("audit --engine rya", "did you mean 'ray'"),
        ("audit --ray-address auto", "ray_address: auto with the local engine; add --engine ray"),
        ("audit --engine ray --ray-address 127.0.0.1:1", "ray_address: nothing answers at 127.0.0.1:1"),
        ("audit --shard 3", "shard: '3'; give I/N"),
        ("audit --shard 3/2", "shard: 3/2; give I/N with I from 1 to N"),
        ("audit --shard 1/2 --fresh", "fresh: given beside --shard"),
        ("audit --checkpoint model.pt", "members: not given"),
        ("audit --members m.npy", "add --checkpoint FILE"),
        ("audit --checkpoint missing.pt --members missing.npy", "checkpoint: no file 'missing.pt'"),
        ("audit --fresh --resume", "--resume"),
        ("audit --config missing.yaml", "missing.yaml"),
        ("audit --out /dev/null/run", "out: "),
        ("canary --feature B9", "feature: unknown name 'B9'"),
        ("canary --feature A --offset [5,0]", "offset: a mark of 5 x 5 at row 5"),
        ("canary --records [1797]", "records: 1797; the pool has records 0 to 999"),
        ("canary --nulls 10", "give at least 19"),
        ("canary --regularise dropuot", "did you mean 'dropout'"),
        ("canary --copies none", "copies: 'none'"),
        ("canary --checkpoint missing.safetensors", "no file 'missing.safetensors'"),
        ("canary --black-box json:dumps", "black_box: failed on a batch"),
        ("canary --fresh --resume", "--resume"),
        ("attack", "give --signals DIR, or --logits, --keep and --labels"),
        ("attack --logits missing.npy --keep k.npy --labels y.npy", "no file"),
        ("attack --signals missing", "no signals"),
        ("report", "fastmem report DIR"),
        ("report missing", "no such run folder"),
        ("info now", "takes no arguments"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments: str, message: str) -> None:
    assert message in _error(_fastmem(*arguments.split()))
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_one_line() -> None:
    assert "device: cuda, but torch finds no CUDA device" in _error(_fastmem("audit", "--device", "cuda"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((20, 8, 8), np.uint8), "y": np.arange(19) % 2}, "19 labels for 20"),
        ({"x": np.zeros((20, 8, 8), np.uint8), "y": np.arange(20) - 1}, "out of range"),
        ({"x": np.array([{}] * 20, dtype=object), "y": np.arange(20) % 2}, "pickle"),
        ({"x": np.full((20, 3), np.nan, np.float32), "y": np.arange(20) % 2}, "NaN"),
        ({"a": np.zeros(3)}, "it needs x and y"),
    ],
    ids=["lengths", "labels", "pickle", "nan", "names"],
)
def test_data_that_do_not_fit_are_one_line(arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("own.npz", **arrays)
    assert message in _error(_fastmem("audit", "--data", "own.npz"))
    assert [path.name for path in Path().iterdir()] == ["own.npz"]


def test_debug_shows_the_traceback() -> None:
    from fastmem.errors import FastmemError

    with pytest.raises(FastmemError):
        main(["audit", "--data", "digts", "--debug"])


def test_a_finished_run_that_was_damaged_is_one_line() -> None:
    Path("run").mkdir()
    Path("run/summary.json").write_text("{")
    assert "not valid JSON" in _error(_fastmem("report", "run"))


@pytest.mark.skipif(os.name != "posix", reason="signals as on a terminal")
def test_ctrl_c_is_one_line_and_the_same_command_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastmem", "audit", *_SMALL, "--recipe.epochs", "1500", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--out", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "models").glob("*.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("fastmem: interrupted; ")
    assert "of 16 models are kept in run; the same command continues" in last
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "run" / "summary.json").exists()
