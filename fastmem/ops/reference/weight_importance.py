"""Weight importance in plain PyTorch, tensor by tensor: the definition, and the fallback on every device."""

from __future__ import annotations

from torch import Tensor

from fastmem.ops._registry import Backend, register

_ADDED = {
    "abs_gw": lambda w, g: (g * w).abs(),
    "sq_gw": lambda w, g: (g * w).square(),
    "abs_g": lambda w, g: g.abs(),
    "sq_g": lambda w, g: g.square(),
    "gw": lambda w, g: g * w,
}


def forward(
    scores: list[Tensor], weights: list[Tensor], gradients: list[Tensor], kind: str, scale: float, overwrite: bool
) -> None:
    """Add the importance of each weight to its score, or set it, computed in the dtype of the scores."""
    for score, weight, gradient in zip(scores, weights, gradients, strict=True):
        added = _ADDED[kind](weight.to(score.dtype), gradient.to(score.dtype)).mul_(scale)
        score.copy_(added) if overwrite else score.add_(added)


register(
    Backend(
        op="weight_importance",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda *args: None,
        forward=forward,
    )
)
