"""The store may be anywhere that fsspec reaches; what is there is believed only if its checksum says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from fastmem.engine import Task
from fastmem.errors import StoreError
from fastmem.signals import stored_groups
from fastmem.studies.audit import AuditConfig, Shard, run_audit, run_shard
from fastmem.studies.audit.plan import make_plan
from fastmem.studies.audit.saved import load_model, remove_all, remove_others, save_model
from fastmem.studies.audit.task import train_and_query

SmallAudit = Callable[..., AuditConfig]
Contents = Callable[[Path], dict[str, bytes]]

_STATE = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7), "half": torch.ones(2).bfloat16()}
_KEY = "ab" * 32


@pytest.fixture(params=["folder", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, a URL that is a folder, and what an object store looks like."""
    if request.param != "memory":
        yield str(tmp_path / "store") if request.param == "folder" else f"file://{tmp_path}/store"
        return
    yield f"memory://{tmp_path.name}/store"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.usefixtures("without_report")
def test_the_store_may_be_anywhere(
    small_audit: SmallAudit, place: str, finished_once: Path, run_contents: Contents
) -> None:
    first = run_audit(small_audit(store=place))
    assert first.trained == 16
    own = {"config.yaml", "report_data.npz", "scores.csv", "summary.json"}
    assert {path.name for path in first.run_dir.iterdir()} - {".lock"} == own
    fs, root = fsspec.core.url_to_fs(place)
    fs.rm_file(f"{root}/models/0003.safetensors")
    chunk = next(iter(fs.find(f"{root}/signals.zarr/margin/c/5")))
    fs.pipe_file(chunk, fs.cat_file(chunk)[:-8])
    assert run_audit(small_audit(store=place)).trained == 1
    for part in ("models", "signals.zarr"):
        fs.get(f"{root}/{part}", str(first.run_dir), recursive=True)
    assert run_contents(first.run_dir) == run_contents(finished_once)


@pytest.mark.usefixtures("without_report")
def test_shards_over_an_object_store_never_replace_what_is_there(small_audit: SmallAudit, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/store"
    assert run_shard(small_audit(store=place, out=tmp_path / "host1"), Shard(1, 2)) == 8
    assert run_shard(small_audit(store=place, out=tmp_path / "host2"), Shard(2, 2)) == 8
    with pytest.raises(StoreError, match="holds the rows of another audit, and others may be at work"):
        run_shard(small_audit(store=place, seed=1), Shard(1, 2))
    assert run_audit(small_audit(store=place, out=tmp_path / "host1")).trained == 0
    # A whole run may: other statistics ask the saved models again, and what no table holds any more goes.
    assert run_audit(small_audit(store=place, attacks="loss", population=0, null_models=0)).trained == 0
    assert stored_groups(f"{place}/signals.zarr") == ("",)
    assert run_audit(small_audit(store=place, null_models=0), fresh=True).trained == 8
    fsspec.filesystem("memory").store.clear()


def test_two_run_folders_do_not_share_a_store(small_audit: SmallAudit, tmp_path: Path) -> None:
    from fastmem.engine import RunFolder

    refused = pytest.raises(StoreError, match=r"another fastmem process is working in .*store")
    with RunFolder(tmp_path / "store").locked(), refused:
        run_audit(small_audit(store=str(tmp_path / "store")))


def test_a_node_that_does_not_see_the_store_writes_nothing(small_audit: SmallAudit) -> None:
    plan = make_plan(small_audit())
    with pytest.raises(
        StoreError, match=r"signals.zarr: not to be read on .*; give --store a folder that all nodes see"
    ):
        train_and_query(plan.job, Task("shadow", (0,)))
    assert not small_audit().run_dir.exists()


@pytest.mark.usefixtures("without_report")
def test_a_task_does_nothing_twice(small_audit: SmallAudit, finished: Path, run_contents: Contents) -> None:
    plan, before = make_plan(small_audit()), run_contents(finished)
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    report = train_and_query(plan.job, Task("shadow", tuple(range(8))))
    assert (report.rows, report.trained) == (8, 0)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == files
    assert run_contents(finished) == before


# -- saved models -----------------------------------------------------------------------------------------------------


def test_a_saved_model_is_whole_unchanged_and_of_its_key_or_not_there(place: str) -> None:
    path = f"{place}/models/0001.safetensors"
    assert load_model(path, _KEY) is None
    save_model(path, _STATE, {"key": _KEY})
    found = load_model(path, _KEY)
    assert found is not None
    assert found.keys() == _STATE.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in _STATE.items())
    assert load_model(path, "cd" * 32) is None
    fs, key = fsspec.core.url_to_fs(path)
    whole = fs.cat_file(key)
    for damaged in (
        whole[:-1],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        b"",
        whole.replace(b"fastmem_audit", b"somebody_else"),
    ):
        fs.pipe_file(key, damaged)
        assert load_model(path, _KEY) is None


def test_what_a_config_does_not_expect_is_removed_and_nothing_else(place: str) -> None:
    for name in ("0001", "0002"):
        save_model(f"{place}/models/{name}.safetensors", _STATE, {"key": _KEY})
    fs, root = fsspec.core.url_to_fs(f"{place}/models")
    fs.pipe_file(f"{root}/notes.txt", b"mine")
    remove_others(f"{place}/models", [f"{place}/models/0002.safetensors"])
    assert sorted(Path(path).name for path in fs.ls(root, detail=False)) == ["0002.safetensors", "notes.txt"]
    remove_all([f"{place}/models", f"{place}/nothing"])
    assert not fs.exists(root)


def test_equal_models_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(str(tmp_path / name), _STATE, {"key": _KEY, "model": "shadow 1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
