"""How far the weights of a network are from a sum of gradients at given inputs: the objective of training-data reconstruction.

A homogeneous network that was trained long enough satisfies ``theta = sum_i lambda_i y_i grad Phi(theta; x_i)`` over some
of its training samples (Lyu and Li 2020, arXiv:1906.05890); Haim et al. 2022 (arXiv:2206.07758) search for x and lambda
that satisfy it. With coefficients ``c_i`` that hold multiplier, sign and scale, and ``e_i`` a direction of the outputs,

    L(x, c) = sum over parameters p of || T_p - sum_i c_i grad_p <e_i, f(theta; x_i)> ||^2,   T = theta by default.

A second backward pass gives the gradients for any network. For ReLU perceptrons they follow in closed form from one pass
up and one down the layers, without per-sample gradients; and where there are fewer candidates than inputs and outputs of a
layer, its residual is only ever seen through m x m matrices (the Gram form), so neither the gradient nor the residual of a
weight is built. The Gram form of the loss cancels near zero: ask for ``method="direct"`` where its value matters.

Roof: arithmetic. Of a perceptron of widths d, h, h, 1 and m candidates, operations: double backward ``12 m d h + 18 m h^2``,
direct ``10 m d h + 14 m h^2``, Gram ``4 m d h + 8 m h^2 + 4 m^2 d + 12 m^2 h``, of which symmetry saves up to
``m^2 d + 3 m^2 h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import positive_number, require_dtype, require_same_device, require_tensor
from fastmem.ops._kkt.network import KktNetwork
from fastmem.ops._kkt.problem import Problem
from fastmem.ops._registry import select

__all__ = ["METHODS", "PRECISIONS", "KktNetwork", "KktResidual", "kkt_residual"]

METHODS = ("auto", "autograd", "direct", "gram")
PRECISIONS = ("native", "compensated", "tf32x3")


@dataclass(frozen=True, eq=False)
class KktResidual:
    """The objective and its gradients.

    Attributes:
        per_parameter: Squared residual of each trainable parameter by name, float64 [S] (or a scalar tensor).
        grad_inputs: Gradient of the sum of these by the candidates, as ``inputs``.
        grad_coefficients: And by the coefficients, as ``coefficients``.
    """

    per_parameter: dict[str, Tensor]
    grad_inputs: Tensor
    grad_coefficients: Tensor

    @property
    def loss(self) -> Tensor:
        """Sum of the squared residuals, float64 [S] or a scalar tensor."""
        return torch.stack(list(self.per_parameter.values())).sum(0)


@torch.no_grad()
def kkt_residual(
    model: nn.Module | KktNetwork,
    inputs: Tensor,
    coefficients: Tensor,
    *,
    directions: Tensor | None = None,
    labels: Tensor | None = None,
    alpha: float | Tensor | None = None,
    targets: Mapping[str, Tensor] | None = None,
    method: str = "auto",
    precision: str = "native",
) -> KktResidual:
    """The squared distance of a network's weights from a weighted sum of its gradients, with gradients of its own.

    Args:
        model: A network in eval mode that maps [m, *sample] to [m, K] or [m]; or a :class:`KktNetwork`, which spares
            checks and packing in a loop. Frozen parameters do not take part. float32 or float64.
        inputs: Candidates [m, *sample], or [S, m, *sample] for S problems at once, of the network's dtype and device.
        coefficients: ``c`` [m] or [S, m]: multipliers, with the sign of the label and any scale.
        directions: ``e``, [m, K] or [S, m, K]. By default ones.
        labels: Instead of directions, classes int64 [m] or [S, m]: ``e_i`` then points along the margin
            ``f_y - max_{k != y} f_k`` (Buzaglo et al. 2023, arXiv:2307.01827).
        alpha: Replaces the derivative of every ReLU by ``sigmoid(alpha z)``, also where the objective is differentiated;
            a number, or [S]. By default the network's own derivative.
        targets: ``T`` by parameter name; the parameters themselves by default.
        method: ``autograd`` (any network), ``direct`` or ``gram`` (ReLU perceptrons), or ``auto``: for each layer the
            one with fewer operations.
        precision: ``native``; ``compensated``: sums that are compared with the weights are taken in float64; or, on CUDA
            devices and in closed form, ``tf32x3``: float32 products by TF32 tensor cores in three parts, which keep
            float32's digits where single TF32 products would lose the residual.

    Returns:
        A :class:`KktResidual`. It is a value with its own first derivatives, not a node of autograd's graph.

    Raises:
        UnknownNameError: There is no such method or precision.
        InputError: Shapes, dtypes or devices do not fit, m is 0, the model is not in order (see
            :meth:`KktNetwork.of`), or the method does not apply to it.
    """
    (problem,) = forward_arguments(
        model,
        inputs,
        coefficients,
        directions=directions,
        labels=labels,
        alpha=alpha,
        targets=targets,
        method=method,
        precision=precision,
    )
    losses, grad_x, grad_c = select("kkt_residual", problem).forward(problem)
    if coefficients.ndim == 1:
        losses, grad_x, grad_c = losses[0], grad_x[0], grad_c[0]
    per_parameter = dict(zip(problem.network.targets, losses.unbind(-1), strict=True))
    return KktResidual(per_parameter, grad_x, grad_c)


def forward_arguments(
    model: nn.Module | KktNetwork,
    inputs: Any,
    coefficients: Any,
    *,
    directions: Tensor | None = None,
    labels: Tensor | None = None,
    alpha: float | Tensor | None = None,
    targets: Mapping[str, Tensor] | None = None,
    method: str = "auto",
    precision: str = "native",
) -> tuple[Problem]:
    """What an implementation is handed for a public call, checked."""
    for argument, value, accepted in (("method", method, METHODS), ("precision", precision, PRECISIONS)):
        if value not in accepted:
            raise UnknownNameError(argument, str(value), accepted)
    if isinstance(model, KktNetwork):
        if targets is not None:
            raise InputError("targets", "given beside a prepared network", "give them to KktNetwork.of")
        network = model
    else:
        network = KktNetwork.of(model, targets)
    if method in ("direct", "gram") and not network.layers:
        raise InputError("method", f"{method!r}, but {network.no_closed_form}", "use 'auto' or 'autograd'")
    if precision == "tf32x3" and (reason := _why_no_tf32(network, method)):
        raise InputError("precision", f"'tf32x3', but {reason}", "use 'native' or 'compensated'")
    for argument, tensor in (("inputs", inputs), ("coefficients", coefficients)):
        require_tensor(argument, tensor)
        require_dtype(argument, tensor, (network.dtype,))
        if tensor.device != network.device:
            raise InputError(argument, f"is on {tensor.device}", f"the model is on {network.device}")
    if coefficients.ndim not in (1, 2):
        raise InputError("coefficients", f"has shape {list(coefficients.shape)}", "give [m] or [S, m]")
    lead = coefficients.shape
    if inputs.ndim <= len(lead) or inputs.shape[: len(lead)] != lead:
        raise InputError(
            "inputs",
            f"has shape {list(inputs.shape)} for coefficients {list(lead)}",
            "give [m, *sample] or [S, m, *sample]",
        )
    if 0 in lead:
        raise InputError("inputs", f"holds no candidates: {list(inputs.shape)}", "give at least one")
    single = len(lead) == 1
    x, c = (tensor.detach()[None] if single else tensor.detach() for tensor in (inputs, coefficients))
    _check_sample(network, x)
    if directions is not None and labels is not None:
        raise InputError("labels", "given beside directions", "give one of the two")
    if directions is not None:
        require_tensor("directions", directions)
        require_dtype("directions", directions, (network.dtype,))
        require_same_device("directions", directions, "inputs", inputs)
        if directions.ndim != len(lead) + 1 or directions.shape[:-1] != lead:
            raise InputError("directions", f"has shape {list(directions.shape)}", f"give {[*lead, 'K']}")
        directions = directions.detach()[None] if single else directions.detach()
    outputs = network.layers[-1].weight.shape[0] if network.layers else None
    if directions is not None and outputs is not None and directions.shape[-1] != outputs:
        raise InputError("directions", f"has {directions.shape[-1]} outputs", f"the network has {outputs}")
    if labels is not None:
        require_tensor("labels", labels)
        require_dtype("labels", labels, (torch.int64,))
        if labels.shape != lead:
            raise InputError("labels", f"has shape {list(labels.shape)}", f"give {list(lead)}")
        if int(labels.min()) < 0 or (outputs is not None and int(labels.max()) >= outputs):
            given = f"{int(labels.min())} to {int(labels.max())}"
            raise InputError("labels", f"values {given}", f"the network has {outputs} outputs")
        if outputs == 1:
            raise InputError("labels", "given for a network of one output", "put the sign into the coefficients")
        labels = labels[None] if single else labels
    return (Problem(network, x, c, directions, labels, _slopes(alpha, x), method, precision),)


def _why_no_tf32(network: KktNetwork, method: str) -> str | None:
    if network.device.type != "cuda":
        return f"TF32 is a format of CUDA's tensor cores, and the model is on {network.device.type}"
    if network.dtype != torch.float32:
        return "its parts are those of float32, and the model is float64"
    if method == "autograd" or not network.layers:
        return f"it is written for the closed form, and {network.no_closed_form or 'autograd is asked for'}"
    return None


def _slopes(alpha: float | Tensor | None, x: Tensor) -> Tensor | None:
    if alpha is None:
        return None
    problems = len(x)
    if not isinstance(alpha, Tensor):
        return x.new_full((problems,), positive_number("alpha", alpha), dtype=torch.float64)
    if alpha.shape not in ((), (problems,)) or not bool(((alpha > 0) & alpha.isfinite()).all()):
        raise InputError("alpha", f"{alpha.tolist()}", f"give one number above 0, or {problems}")
    return alpha.detach().to(x.device, torch.float64).expand(problems).contiguous()


def _check_sample(network: KktNetwork, x: Tensor) -> None:
    """That a perceptron can read the candidates; others say so themselves when they are run."""
    if not network.layers:
        return
    inputs = network.layers[0].weight.shape[1]
    if x[0, 0].numel() != inputs:
        raise InputError(
            "inputs", f"a candidate {list(x.shape[2:])} has {x[0, 0].numel()} values", f"the network takes {inputs}"
        )
