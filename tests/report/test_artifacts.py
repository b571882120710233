"""Files of a run that are missing, cut short, edited or hostile: one line that names the file and the remedy."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from fastmem.errors import StoreError
from fastmem.report import artifacts
from fastmem.report.artifacts import Fields


def test_a_missing_folder_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such run folder"):
        artifacts.load_summary(tmp_path / "nowhere")
    for load, name in (
        (artifacts.load_summary, "summary.json"),
        (artifacts.load_arrays, "report_data.npz"),
        (artifacts.load_scores, "scores.csv"),
    ):
        with pytest.raises(StoreError, match=rf"{re.escape(name)}: no such file; the run is not finished"):
            load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}}', b"[1]", b"\xff\xfe"])
def test_a_corrupt_summary(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"summary\.json: not") as caught:
        artifacts.load_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_summary_of_the_future_is_refused_and_one_without_schema_read(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text('{"schema": 2}')
    with pytest.raises(StoreError, match=r"schema 2 is newer .*; update fastmem"):
        artifacts.load_summary(tmp_path)
    file.write_text('{"schema": "x"}')
    with pytest.raises(StoreError, match="schema is not a whole number"):
        artifacts.load_summary(tmp_path)
    file.write_text('{"answer": "yes"}')
    assert artifacts.load_summary(tmp_path).text("answer") == "yes"


def test_fields_are_empty_where_missing_and_errors_where_wrong() -> None:
    fields = Fields({"a": {"b": "x", "n": None, "list": "x", "flag": True}, "c": 3}, "file")
    inner = fields.child("a")
    assert np.isnan(inner.number("n"))
    assert np.isnan(inner.number("missing"))
    assert fields.child("missing").data == {}
    assert inner.text("missing", "default") == "default"
    assert inner.texts("missing") == []
    for read, path in (
        (lambda: inner.number("b"), "a.b is not a number"),
        (lambda: inner.number("flag"), "a.flag is not a number"),
        (lambda: inner.texts("list"), "a.list is not a list"),
        (lambda: fields.text("a"), "a is not a text"),
        (lambda: fields.child("c"), "c is not an object"),
        (lambda: inner.children(), "a.b is not an object"),
    ):
        with pytest.raises(StoreError, match=f"file: {path}"):
            read()


def test_arrays_with_python_objects_are_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(touched),)

    np.savez(tmp_path / "report_data.npz", a=np.array([Hostile()], dtype=object))
    with pytest.raises(StoreError, match=r"report_data.npz: not a readable .npz without Python objects"):
        artifacts.load_arrays(tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize("keep", [0, 1, 40, 300, -30])
def test_arrays_cut_short(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "report_data.npz"
    np.savez_compressed(file, a=np.random.default_rng(0).random(100))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"report_data\.npz"):
        artifacts.load_arrays(tmp_path)


def test_arrays_with_a_flipped_byte(tmp_path: Path) -> None:
    file = tmp_path / "report_data.npz"
    np.savez_compressed(file, a=np.random.default_rng(0).random(1000))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"report_data\.npz"):
        artifacts.load_arrays(tmp_path)


def test_scores_are_read_by_column_and_a_cut_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text('record,label\n3,"a,b"\n4,c\n')
    table = artifacts.load_scores(tmp_path)
    assert table.columns == {"record": ["3", "4"], "label": ["a,b", "c"]}
    assert table.num_records == 2
    file.write_text("record,label\n3,a\n4\n")
    with pytest.raises(StoreError, match="line 3 has not the header's 2 fields"):
        artifacts.load_scores(tmp_path)
    file.write_text("")
    with pytest.raises(StoreError, match="not a CSV file with a header"):
        artifacts.load_scores(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "report.html"
    artifacts.write_text(file, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.Path, "replace", full)
    with pytest.raises(StoreError, match=r"report.html: cannot be written \(No space left on device\); free space"):
        artifacts.write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_nan_in_a_summary_is_a_missing_number(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"x": float("nan"), "y": None}))
    summary = artifacts.load_summary(tmp_path)
    assert np.isnan(summary.number("x"))
    assert np.isnan(summary.number("y"))
