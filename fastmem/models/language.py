"""Language models of the GPT-2 architecture, from the transformers library: any size, from scratch or from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.compat import import_transformers
from fastmem.errors import InputError
from fastmem.models.shape import LanguageShape

__all__ = ["LanguageModel", "PooledLogits", "build_language_model"]

# The same function as the "gelu_new" of GPT-2's configuration, in one pass instead of eight.
_GELU = "gelu_pytorch_tanh"


class LanguageModel(nn.Module):
    """Predicts each token of a block from those before it.

    Args:
        network: A GPT-2 of the transformers library.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, V] of blocks of tokens, int64 [B, L]; those at place i are about the token at i + 1."""
        return self.network(tokens, use_cache=False).logits


class PooledLogits(nn.Module):
    """A language model's logits, averaged over the tokens of a block.

    The head is linear, so that it can work on the average of the final hidden states: the logits of single tokens, which
    are the vocabulary times as many, never exist.

    Args:
        model: The language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, V] of blocks of tokens, int64 [B, L]."""
        network: Any = self.model.network
        return network.lm_head(network.transformer(tokens, use_cache=False).last_hidden_state.mean(dim=1))


def build_language_model(shape: LanguageShape, vocabulary: int, seed: int) -> LanguageModel:
    """A language model on the CPU, freshly initialised from the seed or loaded from a local folder.

    Nothing is downloaded, and nothing but a safetensors file is read for weights. Dropout is off.

    Args:
        shape: Its size, or the folder.
        vocabulary: Tokens that the text has.
        seed: Decides the initial weights; torch's global random state is left as it was.

    Raises:
        InputError: If transformers is missing, or the folder holds no GPT-2 in safetensors that takes such blocks.
    """
    try:
        transformers: Any = import_transformers()
    except ImportError as error:
        raise InputError(
            "task", f"text needs the transformers package ({error})", "pip install 'fastmem[lm]', or take --task images"
        ) from error
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if shape.init is not None:
            return LanguageModel(_load(transformers, Path(shape.init), shape, vocabulary, dropout))
        config = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=shape.block,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            bos_token_id=0,
            eos_token_id=0,
            activation_function=_GELU,
            **dropout,
        )
        return LanguageModel(transformers.GPT2LMHeadModel(config))


def _load(
    transformers: Any, folder: Path, shape: LanguageShape, vocabulary: int, dropout: dict[str, float]
) -> nn.Module:
    file = folder / "config.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            "language.init",
            f"cannot read {str(file)!r} ({error})",
            "give a folder with config.json and model.safetensors",
        ) from error
    if not isinstance(described, dict) or described.get("model_type") != "gpt2":
        kind = described.get("model_type") if isinstance(described, dict) else type(described).__name__
        raise InputError("language.init", f"{str(folder)!r} holds a model of type {kind!r}", "give a gpt2")
    changed: dict[str, Any] = dict(dropout)
    if described.get("activation_function", "gelu_new") == "gelu_new":
        changed["activation_function"] = _GELU
    if not (folder / "model.safetensors").is_file():
        raise InputError(
            "language.init",
            f"{str(folder)!r} has no model.safetensors",
            "save the model again with save_pretrained: other formats can run code when they are read",
        )
    try:
        model = transformers.GPT2LMHeadModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, **changed
        )
    except Exception as error:  # the library raises what its readers raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            "language.init", f"cannot load {str(folder)!r} ({reason})", "save it again, or give another"
        ) from error
    if model.config.vocab_size < vocabulary:
        raise InputError(
            "language.init",
            f"its vocabulary has {model.config.vocab_size} tokens, the text {vocabulary}",
            "put its tokenizer.json beside it, or give a smaller --language.vocabulary",
        )
    if model.config.n_positions < shape.block:
        raise InputError(
            "language.block", f"{shape.block} tokens", f"the model of language.init takes {model.config.n_positions}"
        )
    return model
