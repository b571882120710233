"""The size of a language model, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastmem.errors import InputError

__all__ = ["LanguageShape"]


@dataclass(frozen=True)
class LanguageShape:
    """A language model and its records.

    Args:
        layers: Transformer blocks of the model.
        width: Width of the hidden states, a multiple of the heads.
        heads: Attention heads.
        block: Tokens in a block of text, the records of the study.
        vocabulary: Tokens of the BPE that is trained on the text; 256 for plain bytes.
        init: Folder of a GPT-2 model to start from (config.json, model.safetensors, and tokenizer.json if it has one).
    """

    layers: int = 3
    width: int = 128
    heads: int = 4
    block: int = 128
    vocabulary: int = 2048
    init: str | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise InputError(name, f"{getattr(self, name)}", "give at least 1")
        if self.width % self.heads:
            raise InputError("width", f"{self.width} for {self.heads} heads", "give a multiple of the heads")

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer that belongs to ``init``, if there is one."""
        file = Path(self.init or "") / "tokenizer.json"
        return str(file) if self.init is not None and file.is_file() else None
