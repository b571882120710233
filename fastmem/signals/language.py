"""Asking a language model about blocks of text: statistics of every token, and features of every block.

The logits [blocks, tokens, vocabulary] exist for one micro-batch at a time; the fused operator reduces them to a loss and an
entropy a token (:func:`fastmem.logit_stats`), in one read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.errors import FastmemError
from fastmem.models.language import LanguageModel
from fastmem.ops import logit_stats
from fastmem.signals.features import LayerReader

__all__ = ["STATISTICS", "LanguageAnswers", "query_language_model"]

#: Features that are made of a model's answers: quantiles of the tokens' log probabilities, mean entropy, mean loss.
STATISTICS = (*(f"log_p_q{percent}" for percent in (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)), "entropy", "loss")
_QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Values of logits that exist at a time: 64 MB of float32.
_MICRO_VALUES = 1 << 24
_BLOCKS = 32


@dataclass(frozen=True, eq=False)
class LanguageAnswers:
    """What a language model said about N blocks of L tokens.

    Args:
        log_p: Log probability of each token but the first, float32 [N, L - 1].
        loss: Mean of minus that, in nats, float64 [N].
        entropy: Mean entropy of the predictions, in nats, float64 [N].
        right: Share of tokens that were the model's first choice, float64 [N].
        features: float32 [N, d] by the layer that was asked for.
    """

    log_p: np.ndarray
    loss: np.ndarray
    entropy: np.ndarray
    right: np.ndarray
    features: dict[str, np.ndarray]

    @property
    def statistics(self) -> np.ndarray:
        """The features of :data:`STATISTICS`, float64 [N, 13]."""
        quantiles = np.quantile(self.log_p.astype(np.float64), _QUANTILES, axis=1)
        return np.stack([*quantiles, self.entropy, self.loss], axis=1)


def query_language_model(
    model: LanguageModel, tokens: Tensor, layers: tuple[str, ...] = (), device: str | torch.device = "cpu"
) -> LanguageAnswers:
    """Asks a language model about every block, in eval mode.

    Args:
        model: On ``device``; its mode is restored.
        tokens: int64 [N, L].
        layers: ``penultimate`` (the final hidden states), ``logits``, or layers by name
            (:class:`~fastmem.signals.features.LayerReader`); each is averaged over the tokens of a block.
        device: Where the model is.

    Raises:
        InputError: If a layer does not exist.
        FastmemError: If the model answers NaN: its training has diverged.
    """
    training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in ("loss", "entropy", "right", *layers)}
    readers = {layer: LayerReader(model, layer, sequence=True) for layer in layers}
    vocabulary = int(model.network.config.vocab_size)  # type: ignore[union-attr, arg-type]
    micro = max(1, min(_BLOCKS, _MICRO_VALUES // (tokens.shape[1] * vocabulary)))
    for reader in readers.values():
        reader.__enter__()
    try:
        with torch.no_grad():
            for batch in tokens.split(micro):
                batch = batch.to(device)
                logits = model(batch)[:, :-1]
                stats = logit_stats(logits, batch[:, 1:])
                parts["loss"].append(stats.loss.double().cpu())
                parts["entropy"].append(stats.entropy.double().mean(dim=1).cpu())
                parts["right"].append((stats.hinge > 0).double().mean(dim=1).cpu())
                for layer, reader in readers.items():
                    parts[layer].append(reader.read().float().cpu())
    finally:
        for reader in readers.values():
            reader.__exit__()
        model.train(training)
    found = {name: torch.cat(rows).numpy() for name, rows in parts.items()}
    if not np.isfinite(found["loss"]).all():
        raise FastmemError("model", "its answers hold NaN or infinities", "the training has diverged: lower the rate")
    return LanguageAnswers(
        -found["loss"].astype(np.float32),
        found["loss"].mean(axis=1),
        found["entropy"],
        found["right"],
        {layer: found[layer] for layer in layers},
    )
