"""A text file as blocks of tokens."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from fastmem.data.text import load_text
from fastmem.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text("the cat sat on the mat, the cat sat. " * 30, encoding="utf-8")
    return path


def test_bytes_are_blocks_of_the_text(file: Path) -> None:
    blocks = load_text(file, block=20, vocabulary=256)
    content = file.read_bytes()
    assert blocks.tokens.shape == (len(content) // 20, 20)
    assert bytes(blocks.tokens[3].tolist()) == content[60:80]
    assert blocks.compressed[3] == len(zlib.compress(content[60:80]))
    assert blocks.vocabulary == 256


def test_a_trained_bpe_gives_the_text_back_in_fewer_tokens(file: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra lm is not installed")
    blocks = load_text(file, block=10, vocabulary=280)
    assert blocks.vocabulary <= 280
    assert len(blocks) * 10 < len(file.read_bytes())
    again = load_text(file, block=10, vocabulary=280)
    assert blocks.fingerprint() == again.fingerprint()
    assert load_text(file, block=12, vocabulary=280).fingerprint() != blocks.fingerprint()
    part = blocks.take(np.array([4, 1]))
    assert (part.tokens[1] == blocks.tokens[1]).all()
    assert part.compressed.tolist() == blocks.compressed[[4, 1]].tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": 4}, "at least 8"),
        ({"vocabulary": 100}, "256 for plain bytes"),
        ({"block": 5000}, "give a longer text"),
    ],
)
def test_what_cannot_be_is_refused(file: Path, changes: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_text(file, **{"vocabulary": 256, **changes})


def test_a_tokenizer_that_is_none_is_refused(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra lm is not installed")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"give a tokenizer\.json"):
        load_text(file, tokenizer=str(tmp_path / "tokenizer.json"))
