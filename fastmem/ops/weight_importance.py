"""How important every weight of a network is for a loss, from its gradients, for all parameters in one launch.

Scores of this family look at one weight at a time: ``|g w|`` is the first-order change of the loss when the weight is
set to zero (Molchanov et al. 2019, arXiv:1906.10771), and its sum over the steps of an optimiser is the privacy
vulnerability and learnability score of Fang and Kim 2026 (arXiv:2603.13186); ``g^2`` is the diagonal of the empirical
Fisher information, ``|g|`` the saliency of SalUn (Fan et al. 2024, arXiv:2310.12508).

Roof: memory traffic. A step reads weight, gradient and score and writes the score, 16 bytes a float32 weight (12 where
the scores are new, 12 and 8 for half precision).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import accumulation_dtype, require_dtype, require_same_device, require_tensor
from fastmem.ops._modes import dispatched
from fastmem.ops._registry import select

__all__ = ["KINDS", "Kind", "weight_importance"]

Kind = Literal["abs_gw", "sq_gw", "abs_g", "sq_g", "gw"]
KINDS: tuple[str, ...] = get_args(Kind)


@torch.no_grad()
def weight_importance(
    weights: nn.Module | Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None] | None = None,
    kind: Kind = "abs_gw",
    *,
    scores: dict[str, Tensor] | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Add one step's importance of every weight to running scores.

    ======== =============== =====================================================
    kind     adds            known as
    ======== =============== =====================================================
    abs_gw   ``|g w|``       first-order Taylor importance; PVE, TFO over steps
    sq_gw    ``(g w)^2``     its squared form
    abs_g    ``|g|``         gradient saliency
    sq_g     ``g^2``         empirical Fisher (of the batch gradient)
    gw       ``g w``         signed, for sums whose absolute value is taken later
    ======== =============== =====================================================

    Args:
        weights: A module (its parameters that have a gradient), or tensors by name: float16, bfloat16, float32 or
            float64, all of one dtype and device.
        gradients: Gradients by the same names, of the weights' shapes and dtype; ``None`` entries are skipped. By
            default the weights' own ``.grad``.
        kind: What is added, see the table.
        scores: Running scores of an earlier call, added to in place. By default new ones.
        scale: Factor of what is added.

    Returns:
        Scores by name, of the weights' shapes, contiguous: float64 for float64 weights, float32 for narrower ones,
        in which a bfloat16 model's small steps do not vanish. It is ``scores`` where that was given.

    Raises:
        UnknownNameError: ``kind`` is none of these.
        InputError: Names, shapes, dtypes or devices do not fit, no weight has a gradient, or ``scale`` is not finite.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", str(kind), KINDS)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError("scale", f"got {scale!r}", "give a finite number")
    pairs = _pairs(weights, gradients)
    fresh = scores is None
    if scores is None:
        scores = {
            name: torch.empty(weight.shape, dtype=accumulation_dtype(weight.dtype), device=weight.device)
            for name, (weight, _) in pairs.items()
        }
    _require_scores(scores, pairs)
    # The kernel walks flat memory: anything else (channels-last kernels, say) is laid out first.
    lists = (
        [scores[name] for name in pairs],
        [weight.detach().contiguous() for weight, _ in pairs.values()],
        [gradient.detach().contiguous() for _, gradient in pairs.values()],
    )
    if dispatched():
        torch.ops.fastmem.weight_importance_.default(*lists, kind, float(scale), fresh)
    else:
        select("weight_importance", *lists, kind, scale, fresh).forward(*lists, kind, scale, fresh)
    return scores


def _pairs(
    weights: nn.Module | Mapping[str, Tensor], gradients: Mapping[str, Tensor | None] | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every weight with its gradient, checked; those without one are left out."""
    named = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    if not isinstance(named, Mapping):
        raise InputError("weights", f"got {type(named).__name__}", "give a module, or tensors by name")
    if gradients is not None and (unknown := [name for name in gradients if name not in named]):
        raise InputError("gradients", f"name {unknown[0]!r} is not among the weights", "give the weights' names")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, weight in named.items():
        require_tensor(f"weights[{name!r}]", weight)
        gradient = weight.grad if gradients is None else gradients.get(name)
        if gradient is None:
            continue
        require_tensor(f"gradients[{name!r}]", gradient)
        require_dtype(f"weights[{name!r}]", weight)
        first, (model, _) = next(iter(pairs.items()), (name, (weight, gradient)))
        for argument, tensor in ((f"weights[{name!r}]", weight), (f"gradients[{name!r}]", gradient)):
            require_same_device(argument, tensor, f"weights[{first!r}]", model)
            require_dtype(argument, tensor, (model.dtype,))
        if gradient.shape != weight.shape:
            raise InputError(
                f"gradients[{name!r}]", f"has shape {list(gradient.shape)}", f"its weight has {list(weight.shape)}"
            )
        pairs[name] = weight, gradient
    if not pairs:
        raise InputError("gradients", "no weight has a gradient", "call backward() first, or give gradients by name")
    return pairs


def _require_scores(scores: Mapping[str, Tensor], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, (weight, _) in pairs.items():
        argument, dtype = f"scores[{name!r}]", accumulation_dtype(weight.dtype)
        if name not in scores:
            raise InputError("scores", f"has no {name!r}", "give what an earlier call on the same weights returned")
        require_tensor(argument, scores[name])
        require_dtype(argument, scores[name], (dtype,))
        require_same_device(argument, scores[name], f"weights[{name!r}]", weight)
        if scores[name].shape != weight.shape or not scores[name].is_contiguous():
            raise InputError(argument, "has another shape or layout than its weight", "give contiguous scores")


def forward_arguments(
    weights: nn.Module | Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None] | None = None,
    kind: Kind = "abs_gw",
    *,
    scores: dict[str, Tensor] | None = None,
    scale: float = 1.0,
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], str, float, bool]:
    """What an implementation would be handed for a public call (for ``explain``)."""
    pairs = _pairs(weights, gradients)
    plain = [weight.detach() for weight, _ in pairs.values()]
    return plain, plain, [gradient for _, gradient in pairs.values()], kind, scale, scores is None


torch.library.define(
    "fastmem::weight_importance_",
    "(Tensor(a!)[] scores, Tensor[] weights, Tensor[] gradients, str kind, float scale, bool overwrite) -> ()",
)


def _run(
    scores: list[Tensor], weights: list[Tensor], gradients: list[Tensor], kind: str, scale: float, overwrite: bool
) -> None:
    arguments = (scores, weights, gradients, kind, scale, overwrite)
    select("weight_importance", *arguments).forward(*arguments)


torch.library.impl("fastmem::weight_importance_", "CompositeExplicitAutograd", _run)
torch.library.register_fake("fastmem::weight_importance_", lambda *args: None)
