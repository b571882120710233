"""Import paths of a user's own code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastmem.errors import InputError
from fastmem.imports import import_object, is_import_path


@pytest.mark.parametrize("text", ["package.module:name", "module:Class.method", "_m:_n"])
def test_recognises_import_paths(text: str) -> None:
    assert is_import_path(text)


@pytest.mark.parametrize("text", ["module", "module:", ":name", "a/b:c", "s3://bucket", "a b:c", "file.npz", "1a:b"])
def test_takes_nothing_else_for_one(text: str) -> None:
    assert not is_import_path(text)


def test_finds_what_it_names() -> None:
    assert import_object("model", "pathlib:Path.cwd") == Path.cwd
    assert import_object("model", "os.path:join") is __import__("os").path.join


def test_a_file_in_the_working_folder_does_not_replace_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sndhdr_like.py").write_text("value = 1")
    (tmp_path / "colorsys.py").write_text("rgb_to_hsv = 'stray'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert import_object("model", "sndhdr_like:value") == 1
    assert callable(import_object("model", "colorsys:rgb_to_hsv"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:x", "model: cannot import module 'no_such_module'"),
        ("pathlib:Nothing", "model: module 'pathlib' has no 'Nothing'"),
        ("pathlib:Path.nothing", "has no 'Path.nothing'"),
    ],
)
def test_says_what_is_missing(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_object("model", path)


def test_a_module_that_fails_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_at_import.py").write_text("raise ValueError('first\\nsecond')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match="ValueError: first second"):
        import_object("model", "breaks_at_import:x")
