"""Loss and accuracy of a model on stored records."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.data.transforms import normalise

__all__ = ["evaluate", "model_dtype"]

_BATCH_VALUES = 1 << 22


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, normalisation: tuple[Tensor, Tensor], records: Tensor | None = None
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of ``model`` in eval mode; its mode is restored.

    Args:
        model: On the device of ``x``.
        x: Stored samples [N, ...].
        y: int64 labels [N].
        normalisation: Mean and standard deviation (:func:`fastmem.data.transforms.normalise`).
        records: int64 [n] rows to take, by default all.

    Returns:
        Loss and accuracy (0 to 1).
    """
    rows = torch.arange(len(y), device=x.device) if records is None else records.to(x.device)
    size = max(1, min(1024, _BATCH_VALUES // math.prod(x.shape[1:])))
    loss = torch.zeros((), dtype=torch.float64, device=x.device)
    right = torch.zeros((), dtype=torch.int64, device=x.device)
    training, dtype = model.training, model_dtype(model)
    model.eval()
    with torch.no_grad():
        for part in rows.split(size):
            logits, labels = model(normalise(x[part], *normalisation).to(dtype)), y[part]
            loss += F.cross_entropy(logits.double(), labels, reduction="sum")
            right += (logits.argmax(dim=1) == labels).sum()
    model.train(training)
    return float(loss) / len(rows), int(right) / len(rows)


def model_dtype(model: nn.Module) -> torch.dtype:
    """What ``model`` computes in: the dtype of its first floating-point parameter."""
    return next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
