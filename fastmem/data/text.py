"""A text file as blocks of tokens: the records of a language model.

Blocks are cut from one text, without overlap, and dealt out at random, so that members and non-members are of the same
documents: other text would tell the two apart by its subject alone. The tokenizer needs no download: bytes, or a byte-level
BPE that is trained on the text itself (members and non-members alike).
"""

from __future__ import annotations

import hashlib
import importlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.errors import InputError

__all__ = ["BYTES", "TextBlocks", "load_text"]

#: The vocabulary of plain bytes.
BYTES = 256


@dataclass(frozen=True, eq=False)
class TextBlocks:
    """Blocks of one text.

    Args:
        name: What to call the text in reports.
        tokens: int64 [N, L].
        vocabulary: Number of tokens that there are.
        compressed: Size of each block's text under zlib, in bytes, int64 [N].
    """

    name: str
    tokens: Tensor
    vocabulary: int
    compressed: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of tokens, their order and the vocabulary."""
        digest = hashlib.sha256(f"fastmem.TextBlocks/1 {self.vocabulary} {list(self.tokens.shape)}".encode())
        digest.update(self.tokens.numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def take(self, index: np.ndarray) -> TextBlocks:
        """Some of the blocks."""
        return TextBlocks(self.name, self.tokens[torch.from_numpy(index)], self.vocabulary, self.compressed[index])


def load_text(path: str | Path, block: int = 128, vocabulary: int = 2048, tokenizer: str | None = None) -> TextBlocks:
    """Reads a text file and cuts it into blocks.

    Args:
        path: A UTF-8 text file.
        block: Tokens in a block, at least 8.
        vocabulary: Tokens of the BPE that is trained on the text; 256 for plain bytes.
        tokenizer: A ``tokenizer.json`` to use in its place, such as that of a model that was trained before.

    Returns:
        All whole blocks; what is left at the end is dropped.

    Raises:
        InputError: If the file is missing, no UTF-8 text, or too short for one block; if a number is too small; or if
            the ``tokenizers`` package is needed and missing.
    """
    if block < 8:
        raise InputError("block", f"{block} tokens", "give at least 8")
    if vocabulary < BYTES:
        raise InputError("vocabulary", f"{vocabulary}", f"give {BYTES} for plain bytes, or more for a trained BPE")
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "text", f"{str(file)!r} is no UTF-8 text (byte {error.start})", "convert it to UTF-8"
        ) from error
    except OSError as error:
        raise InputError("text", f"cannot read {str(file)!r} ({error.strerror})", "give a text file") from error
    if tokenizer is None and vocabulary == BYTES:
        numbers = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        tokens, size, decode = numbers, BYTES, None
    else:
        coder = _trained(text, vocabulary) if tokenizer is None else _stored(tokenizer)
        tokens, size, decode = np.array(coder.encode(text).ids, dtype=np.int64), coder.get_vocab_size(), coder.decode
    count = len(tokens) // block
    if count < 1:
        raise InputError(
            "text", f"{str(file)!r} has {len(tokens)} tokens", f"a block takes {block}; give a longer text"
        )
    blocks = tokens[: count * block].reshape(count, block)
    written = (bytes(row.astype(np.uint8)) if decode is None else decode(row.tolist()).encode() for row in blocks)
    compressed = np.array([len(zlib.compress(content)) for content in written], dtype=np.int64)
    return TextBlocks(file.stem, torch.from_numpy(blocks), size, compressed)


def _trained(text: str, vocabulary: int) -> Any:
    coder = _tokenizers().ByteLevelBPETokenizer()
    coder.train_from_iterator([text], vocab_size=vocabulary, min_frequency=2, show_progress=False)
    return coder


def _stored(path: str) -> Any:
    try:
        return _tokenizers().Tokenizer.from_file(str(path))
    except InputError:
        raise
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split())
        raise InputError("tokenizer", f"cannot read {path!r} ({reason})", "give a tokenizer.json") from error


def _tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise InputError(
            "vocabulary",
            f"a trained BPE needs the tokenizers package ({error})",
            "pip install 'fastmem[lm]', or give 256",
        ) from error
