"""The run folder: one writer, whole files, honest refusals."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmem.engine.folder import RunFolder, storage_errors, write_atomically
from fastmem.errors import StoreError

_HOLD = """
import sys, time
from pathlib import Path
from fastmem.engine.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with write_atomically(path) as temporary:
        temporary.write_text("first")

    def fail_half_way() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_that_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No space left.*rows are kept"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))


def test_a_second_process_is_told_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder.path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match=r"^out: another fastmem process is working"), folder.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
    with folder.locked():
        pass


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".summary.json.123.tmp").write_text("half")
    (tmp_path / "summary.json").write_text("whole")
    with RunFolder(tmp_path).locked():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "summary.json"]


def test_what_a_worker_killed_during_the_run_leaves_is_removed_at_its_end(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / ".0003.safetensors.x1y2.part").write_bytes(b"half of a model")
        (tmp_path / "models" / "0002.safetensors").write_bytes(b"a model")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["0002.safetensors"]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^out: .*cannot be written"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_a_run_that_would_fill_the_disk_is_refused_before_it_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "not" / "yet")
    free = shutil.disk_usage(tmp_path).free
    folder.require_space(free // 2)
    with pytest.raises(StoreError, match=r"^out: .* free, the run needs up to .*iB"):
        folder.require_space(free * 2)
    assert not folder.path.exists()


def test_only_named_outputs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "0.safetensors").write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).remove(["models", "summary.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_lock_is_immediate(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        start = time.perf_counter()
        with pytest.raises(StoreError), RunFolder(tmp_path).locked():
            pass
        assert time.perf_counter() - start < 1


# -- shards -----------------------------------------------------------------------------------------------------------


def _prepared(others: bool) -> bool:
    return others


def test_shards_work_side_by_side_and_know_of_each_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.joined("shard 1 of 2", _prepared) as first, folder.joined("shard 2 of 2", _prepared) as second:
        assert (first, second) == (False, True)
    with folder.joined("shard 2 of 2", _prepared) as again:
        assert again is False


def test_a_shard_is_not_started_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    refused = pytest.raises(StoreError, match=r"^out: shard 1 of 2 is already at work in")
    with folder.joined("shard 1 of 2", _prepared), refused, folder.joined("shard 1 of 2", _prepared):
        pass


def test_a_whole_run_and_shards_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmem.engine.folder._SHARD_TURN_SECONDS", 0.1)
    folder = RunFolder(tmp_path)
    refused = pytest.raises(StoreError, match=r"^out: shard 2 of 3 of this run is still at work")
    with folder.joined("shard 2 of 3", _prepared), refused, folder.locked():
        pass
    refused = pytest.raises(StoreError, match="another fastmem process is working")
    with folder.locked(), refused, folder.joined("shard 2 of 3", _prepared):
        pass


def test_a_shard_leaves_alone_what_others_are_writing(tmp_path: Path) -> None:
    half = tmp_path / ".0001.safetensors.part"
    with RunFolder(tmp_path).joined("shard 1 of 2", _prepared):
        half.write_text("half")
        with RunFolder(tmp_path).joined("shard 2 of 2", _prepared):
            assert half.exists()
    with RunFolder(tmp_path).joined("shard 1 of 2", _prepared):
        assert not half.exists()


def test_a_killed_shard_frees_its_place(tmp_path: Path) -> None:
    code = _HOLD.replace(".locked()", ".joined('shard 1 of 2', print)")
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert [holder.stdout.readline(), holder.stdout.readline()] == [b"False\n", b"held\n"]
    finally:
        holder.kill()
        holder.wait()
    with RunFolder(tmp_path).locked():
        pass
