"""The files that a finished run leaves, read with suspicion: summary.json, report_data.npz and scores.csv.

They may be old, cut short or edited. Whatever is wrong with one becomes a :class:`fastmem.errors.StoreError` that
names the file and the remedy. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.errors import StoreError

__all__ = ["SCHEMA", "Fields", "ScoreTable", "load_arrays", "load_scores", "load_summary", "write_text"]

SCHEMA = 1
_REMEDY = "run the study again with --fresh, or restore the file from a copy"


@dataclass(frozen=True)
class Fields:
    """A JSON object read field by field; a missing field is empty, one of the wrong kind is an error with its path.

    Attributes:
        data: The object.
        source: The file, for messages.
        path: Where in the file the object is.
    """

    data: dict[str, Any]
    source: str
    path: str = ""

    def wrong(self, name: str, expected: str) -> StoreError:
        """The error for a field that is not what it should be."""
        where = f"{self.path}.{name}" if self.path else name
        return StoreError(self.source, f"{where} is not {expected}", _REMEDY)

    def child(self, name: str) -> Fields:
        """An object inside this one; empty where it is missing or null."""
        value = self.data.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.source, f"{self.path}.{name}" if self.path else name)

    def children(self) -> dict[str, Fields]:
        """Every field, each of which must be an object."""
        return {name: self.child(name) for name in self.data}

    def number(self, name: str) -> float:
        """A number; NaN where it is missing or null."""
        value = self.data.get(name)
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        return float(value)

    def text(self, name: str, default: str = "") -> str:
        """A string, or a number or truth value as one."""
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, dict | list):
            raise self.wrong(name, "a text")
        return str(value)

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return [str(item) for item in value]


@dataclass(frozen=True)
class ScoreTable:
    """scores.csv: a row per record, most exposed first.

    Attributes:
        columns: Column name -> one string per record.
        num_records: Rows.
    """

    columns: dict[str, list[str]]
    num_records: int


def load_summary(run_dir: Path) -> Fields:
    """Read ``summary.json`` of a run.

    Args:
        run_dir: The run's folder.

    Returns:
        Its fields.

    Raises:
        StoreError: The folder or the file is missing, is not a JSON object, or was written by a newer fastmem.
    """
    if not run_dir.is_dir():
        raise StoreError(
            str(run_dir), "no such run folder", "give the folder that --out named, such as runs/audit-digits"
        )
    file = run_dir / "summary.json"
    try:
        data = json.loads(_existing(file).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(str(file), f"not valid JSON ({error})", _REMEDY) from error
    if not isinstance(data, dict):
        raise StoreError(str(file), "not a JSON object", _REMEDY)
    return check_schema(Fields(data, str(file)))


def check_schema(summary: Fields) -> Fields:
    """Refuse a summary whose schema is newer than this code; one without a schema is of the first."""
    schema = summary.data.get("schema", 1)
    if not isinstance(schema, int) or schema < 1:
        raise summary.wrong("schema", "a whole number from 1")
    if schema > SCHEMA:
        raise StoreError(
            summary.source, f"schema {schema} is newer than this fastmem knows ({SCHEMA})", "update fastmem"
        )
    return summary


def load_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """Read ``report_data.npz`` of a run into memory.

    Args:
        run_dir: The run's folder.

    Returns:
        Name -> array.

    Raises:
        StoreError: The file is missing, corrupt, or holds Python objects.
    """
    file = _existing(run_dir / "report_data.npz")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise StoreError(str(file), f"not a readable .npz without Python objects ({error})", _REMEDY) from error


def load_scores(run_dir: Path) -> ScoreTable:
    """Read ``scores.csv`` of a run.

    Args:
        run_dir: The run's folder.

    Returns:
        Its columns.

    Raises:
        StoreError: The file is missing or its rows have different lengths.
    """
    file = _existing(run_dir / "scores.csv")
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise StoreError(str(file), "not a CSV file with a header", _REMEDY) from error
    uneven = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if uneven is not None:
        raise StoreError(str(file), f"line {uneven} has not the header's {len(header)} fields", _REMEDY)
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    return ScoreTable(columns, len(rows))


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: The folder cannot be written or is full.
    """
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise StoreError(
            str(file), f"cannot be written ({error.strerror or error})", "free space or give a writable folder"
        ) from error


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise StoreError(str(file), "no such file", "the run is not finished: run the study again, it continues")
    return file
