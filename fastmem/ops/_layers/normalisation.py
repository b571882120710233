"""Scale and shift of normalisation layers: sums over positions of ``delta * x_hat`` and of ``delta``, [B, D] each.

``x_hat`` is computed again from the input. Batch normalisation is covered with running statistics only: with those of
the batch every sample's loss depends on all samples, and a gradient of one sample does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastmem.ops._layers.forms import Direct, Form
from fastmem.ops._layers.rule import Arguments, Rule

__all__ = ["BATCH", "GROUP", "INSTANCE", "LAYER", "RMS"]


def _layer(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Arguments:
    last = tuple(normalized_shape)

    def x_hat(x: Tensor) -> Tensor:
        return F.layer_norm(x, last, eps=eps)

    return _by_element(input, weight, bias, last, x_hat)


def _rms(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Arguments:
    last = tuple(normalized_shape)

    def x_hat(x: Tensor) -> Tensor:
        return F.rms_norm(x, last, eps=eps)

    return _by_element(input, weight, None, last, x_hat)


def _group(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Arguments:
    def x_hat(x: Tensor) -> Tensor:
        return F.group_norm(x, num_groups, eps=eps)

    return _by_channel(input, weight, bias, x_hat)


def _batch(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Arguments:
    def x_hat(x: Tensor) -> Tensor:
        return F.batch_norm(x, _like(x, running_mean), _like(x, running_var), eps=eps)

    return _by_channel(input, weight, bias, x_hat)


def _instance(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Arguments:
    def x_hat(x: Tensor) -> Tensor:
        # Running statistics would be moved a second time: they are left out where they are not read.
        mean, var = (None, None) if use_input_stats else (_like(x, running_mean), _like(x, running_var))
        return F.instance_norm(x, mean, var, use_input_stats=use_input_stats, eps=eps)

    refusal = None
    if use_input_stats and running_mean is not None:
        refusal = "instance normalisation that moves running statistics"
    return _by_channel(input, weight, bias, x_hat, refusal)


def _like(x: Tensor, statistics: Tensor | None) -> Tensor | None:
    return None if statistics is None else statistics.to(x.dtype)


def _by_element(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, last: tuple[int, ...], x_hat: Callable[[Tensor], Tensor]
) -> Arguments:
    options: dict[str, Any] = {"x_hat": x_hat, "kept": len(last)}
    return Arguments(x, weight, bias, leading=x.ndim - len(last), options=options)


def _by_channel(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_hat: Callable[[Tensor], Tensor],
    refusal: str | None = None,
) -> Arguments:
    return Arguments(x, weight, bias, leading=1, options={"x_hat": x_hat, "kept": None}, refusal=refusal)


def _scale(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    assert arguments.options is not None
    x_hat = arguments.options["x_hat"](x.flatten(0, 1)).view(x.shape)
    return Direct(_over_positions(delta * x_hat.to(delta), arguments))


def _shift(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    return Direct(_over_positions(delta, arguments))


def _over_positions(values: Tensor, arguments: Arguments) -> Tensor:
    """Sum ``[B, R, ...]`` over all but the batch and the parameter's own dimensions."""
    assert arguments.options is not None
    kept = arguments.options["kept"]
    if kept is not None:
        return values.flatten(1, -kept - 1).sum(1)
    return values.unsqueeze(-1).flatten(3).sum((1, 3))


LAYER = Rule("layer_norm", _layer, _scale, _shift)
RMS = Rule("rms_norm", _rms, _scale, _shift)
GROUP = Rule("group_norm", _group, _scale, _shift)
BATCH = Rule("batch_norm", _batch, _scale, _shift)
INSTANCE = Rule("instance_norm", _instance, _scale, _shift)
