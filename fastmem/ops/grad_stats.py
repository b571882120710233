"""Norms and sums of per-sample gradients, which are never held: memory for a few gradients, not for one a sample.

The norm of a sample's gradient says how hard the sample pulls at the model; sums of ``g^2`` (the diagonal of the
empirical Fisher information) and ``|g|`` over samples say which weights samples pull at. Each layer gives them without
multiplying out ``[B, P]``: linear layers by matrix products of squares (Dangel, Kunstner and Hennig 2020,
arXiv:1912.10985), norms by Gram matrices of positions (Li et al. 2022, arXiv:2110.05679; Bu et al. 2022,
arXiv:2205.10683) or by tiles, whichever takes fewer operations, convolutions and sequences by the fused operator
:func:`fastmem.ops.layer_grad_stats.layer_grad_stats`. The weight gradient of the plain backward pass is not computed.

Roof: the operations of a plain forward and backward pass (the statistics take the place of the weight gradients), and
``4 P`` bytes a statistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import accumulation_dtype, require_tensor
from fastmem.ops._layers.accumulate import Held, Request
from fastmem.ops._layers.capture import NotCoveredError
from fastmem.ops._layers.probe import Plan, plan_key
from fastmem.ops._layers.step import LossFn, Step, trainable
from fastmem.ops._layers.watch import Watch
from fastmem.ops._registry import Explanation
from fastmem.ops.per_sample_grads import explanation as _explanation

__all__ = ["STATS", "GradStats", "explanation", "grad_stats"]

Reduction = Literal["sum", "mean"]

STATS = ("norm", "sum", "sum_sq", "sum_abs", "gram")


def grad_stats(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Any,
    targets: Any,
    stats: Sequence[str] = ("norm", "sum_sq", "sum_abs"),
    weights: Tensor | None = None,
    direction: Mapping[str, Tensor] | None = None,
) -> GradStats:
    """Statistics of the gradients ``g_i`` of every sample's loss, in one forward and one backward pass.

    ============ =========================== ==================================
    stats        result                      shape
    ============ =========================== ==================================
    norm         ``|g_i|``, all parameters   [B]
    sum          ``sum_i g_i``               by name, the parameter's
    sum_sq       ``sum_i g_i^2``             by name, the parameter's
    sum_abs      ``sum_i |g_i|``             by name, the parameter's
    gram         ``<g_i, g_j>``              [B, B]
    (weights)    ``sum_i weights_i g_i``     by name, the parameter's
    (direction)  ``<g_i, direction>``        [B]
    ============ =========================== ==================================

    Which layers are covered, how others are treated and what is refused is as in :func:`fastmem.per_sample_grads`.

    Args:
        model: Its trainable parameters are asked about.
        loss_fn: ``loss_fn(outputs, targets)`` returns one loss a sample, [B].
        inputs: A tensor, or a tuple of the model's positional arguments; every tensor has the batch first.
        targets: Passed to ``loss_fn``; every tensor has the batch first.
        stats: Which statistics, from the table.
        weights: [B], for ``.weighted_sum``.
        direction: Tensors by parameter name, of the parameters' shapes, for ``.dot``; names left out count as zero.

    Returns:
        A :class:`GradStats`. Sums and norms are float64 for float64 parameters, float32 for narrower ones.

    Raises:
        UnknownNameError: ``stats`` has an unknown name.
        InputError: As :func:`fastmem.per_sample_grads`; or nothing is asked for, or ``weights`` or ``direction`` do
            not fit.
    """
    found = GradStats(model, stats, direction=direction, _weighted=weights is not None)
    return found.update(loss_fn, inputs, targets, weights)


class GradStats:
    """Statistics of per-sample gradients: of one batch, of many, or of one's own training steps.

    A function call's worth::

        found = fastmem.grad_stats(model, loss_fn, x, y)

    Over a data loader, sums add up and norms are put after one another::

        found = fastmem.GradStats(model, stats=("norm", "sum_sq")).update_all(loss_fn, loader)

    Around a training step, whose gradients come out as ever::

        found = fastmem.GradStats(model, stats=("norm",), reduction="mean")
        for x, y in loader:
            optimizer.zero_grad()
            with found:
                F.cross_entropy(model(x), y).backward()
            optimizer.step()

    Within the ``with`` block the calls of ``model`` are watched. Each backward pass counts as a batch; results are
    there when the block ends, and nothing of the last block is kept if it raises. The model must be covered by the
    layers' rules (see ``explain("grad_stats", ...)``); what is added to the loss outside the model's calls, such as a
    penalty on the weights, is in the parameters' gradients but not in the statistics.

    Args:
        model: Its trainable parameters are asked about.
        stats: Which statistics, see :func:`grad_stats`.
        direction: For ``.dot``.
        reduction: How the loss of a training step was reduced over the batch: ``"mean"`` or ``"sum"``. Statistics are
            of the samples' own losses either way.

    Attributes:
        num_samples: How many samples have been counted.

    Raises:
        UnknownNameError: ``stats`` or ``reduction`` is unknown.
        InputError: As :func:`grad_stats`.
    """

    def __init__(
        self,
        model: nn.Module,
        stats: Sequence[str] = ("norm", "sum_sq", "sum_abs"),
        *,
        direction: Mapping[str, Tensor] | None = None,
        reduction: Reduction = "mean",
        _weighted: bool = False,
    ) -> None:
        if isinstance(stats, str):
            raise InputError("stats", f"got {stats!r}", f"give a tuple of names, ({stats!r},)")
        for name in stats:
            if name not in STATS:
                raise UnknownNameError("stats", str(name), STATS)
        if not stats and direction is None and not _weighted:
            raise InputError("stats", "asks for nothing", f"accepted: {', '.join(STATS)}")
        if reduction not in get_args(Reduction):
            raise UnknownNameError("reduction", str(reduction), get_args(Reduction))
        self._model, self._reduction = model, reduction
        self._parameters = trainable(model)
        self._stats = frozenset(stats)
        self._direction = None if direction is None else _checked_direction(direction, self._parameters)
        self._held = Held()
        self._watch: Watch | None = None
        self._loss_fn: LossFn | None = None
        self._plans: dict[Any, Plan | str] = {}
        self._watch_plans: dict[Any, Plan] = {}

    def update(self, loss_fn: LossFn, inputs: Any, targets: Any, weights: Tensor | None = None) -> GradStats:
        """Count a batch; returns the object itself.

        Args:
            loss_fn: As for :func:`grad_stats`.
            inputs: As for :func:`grad_stats`.
            targets: As for :func:`grad_stats`.
            weights: [B], for ``.weighted_sum``; with all batches or with none.
        """
        step = Step.checked(self._model, loss_fn, inputs, targets)
        if list(step.parameters) != list(self._parameters):
            raise InputError("model", "has other trainable parameters than at first", "make a new GradStats")
        if "gram" in self._stats and self._held.batch:
            raise InputError("stats", "gram is of one batch", "make a new GradStats for every batch")
        if self._held.batch and (weights is not None) != ("weighted_sum" in self._held.sums):
            raise InputError("weights", "given with some batches only", "give them with all batches, or with none")
        request = Request(self._stats, _checked_weights(weights, step.batch), self._direction)
        self._append(self._batch(step, request))
        return self

    def update_all(self, loss_fn: LossFn, loader: Iterable[Any]) -> GradStats:
        """Count every batch of a loader that gives ``(inputs, targets)``; returns the object itself."""
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise InputError("loader", f"gave {type(batch).__name__}", "give pairs (inputs, targets)")
            self.update(loss_fn, *batch)
        return self

    def _batch(self, step: Step, request: Request) -> Held:
        if step.batch:
            plan = self._plan(step)
            if not isinstance(plan, str):
                held = self._empty(request, step.batch)
                try:
                    step.by_layers(plan, lambda name, form: held.take(request, name, form))
                except NotCoveredError:
                    pass
                else:
                    return held
        held = self._empty(request, step.batch)
        if step.batch:
            held.take_functional(request, step.functional(), self._dtypes())
        return held

    def _plan(self, step: Step) -> Plan | str:
        """What two samples tell, once for batches of one shape and one loss function."""
        if step.loss_fn is not self._loss_fn:
            self._loss_fn = step.loss_fn
            self._plans.clear()
        key = plan_key(step.model, step.inputs, step.targets)
        if key not in self._plans:
            self._plans[key] = step.plan()
        return self._plans[key]

    def _empty(self, request: Request, batch: int) -> Held:
        return Held.empty(request, batch, self._device())

    def _append(self, later: Held) -> None:
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        later.complete(shapes, self._dtypes(), self._device())
        self._held.append(later)

    def _dtypes(self) -> dict[str, torch.dtype]:
        return {name: accumulation_dtype(parameter.dtype) for name, parameter in self._parameters.items()}

    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def __enter__(self) -> GradStats:
        if self._watch is not None:
            raise InputError("GradStats", "is entered already", "use one object a model and block")
        trainable(self._model)  # its mode may have changed
        self._watch = Watch(self._model, self._parameters, self._begin, self._watch_plans)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        watch, self._watch = self._watch, None
        watch.stop()
        if kind is None:
            batches = watch.finish()
            if "gram" in self._stats and len(batches) + bool(self._held.batch) > 1:
                raise InputError("stats", "gram is of one batch", "make a new GradStats for every batch")
            for held in batches:
                self._append(held)

    def _begin(self, batch: int) -> tuple[Held, Request]:
        scale = float(batch) if self._reduction == "mean" else 1.0
        request = Request(self._stats, None, self._direction, scale, gradients=True)
        return self._empty(request, batch), request

    @property
    def num_samples(self) -> int:
        """How many samples have been counted."""
        return self._held.batch

    @property
    def norm(self) -> Tensor:
        """``|g_i|`` over all parameters, [B]."""
        return self._rows("norm", "norm_sq").sqrt().to(self._row_dtype())

    @property
    def sum(self) -> dict[str, Tensor]:
        """``sum_i g_i`` by parameter name."""
        return self._sums("sum")

    @property
    def sum_sq(self) -> dict[str, Tensor]:
        """``sum_i g_i^2`` by parameter name."""
        return self._sums("sum_sq")

    @property
    def sum_abs(self) -> dict[str, Tensor]:
        """``sum_i |g_i|`` by parameter name."""
        return self._sums("sum_abs")

    @property
    def weighted_sum(self) -> dict[str, Tensor]:
        """``sum_i weights_i g_i`` by parameter name."""
        return self._sums("weighted_sum")

    def importance(self, kind: Literal["abs_gw", "sq_gw", "abs_g", "sq_g"] = "abs_gw") -> dict[str, Tensor]:
        """How hard single samples pull at every weight: ``sum_i |g_i w|`` and its like, by parameter name.

        :func:`fastmem.weight_importance` looks at the gradient of a batch, in which the pulls of its samples cancel;
        here nothing cancels. Weights are taken as they are now, so call it before they change.

        Args:
            kind: ``"abs_gw"``: ``sum_i |g_i w|``; ``"sq_gw"``: ``sum_i (g_i w)^2``; ``"abs_g"``: ``sum_i |g_i|``;
                ``"sq_g"``: ``sum_i g_i^2``, B times the diagonal of the empirical Fisher information.

        Returns:
            Scores for :func:`fastmem.top_fraction`, in the dtype of the sums. From ``sum_abs`` or ``sum_sq``, which must
            be among the statistics.

        Raises:
            UnknownNameError: ``kind`` is none of the four.
        """
        kinds = ("abs_gw", "sq_gw", "abs_g", "sq_g")
        if kind not in kinds:
            raise UnknownNameError("kind", str(kind), kinds)
        power = 1 if kind.startswith("abs") else 2
        sums = self.sum_abs if power == 1 else self.sum_sq
        if not kind.endswith("w"):
            return {name: value.clone() for name, value in sums.items()}
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        return {name: value * weights[name].to(value).abs() ** power for name, value in sums.items()}

    @property
    def dot(self) -> Tensor:
        """``<g_i, direction>``, [B]."""
        return self._rows("dot", "dot").to(self._row_dtype())

    @property
    def gram(self) -> Tensor:
        """``<g_i, g_j>``, [B, B]."""
        if self._held.gram is None:
            raise self._not_held("gram")
        return self._held.gram.to(self._row_dtype())

    def __repr__(self) -> str:
        names = [*sorted(self._held.rows), *sorted(self._held.sums), *(["gram"] if "gram" in self._stats else [])]
        held = ", ".join("norm" if name == "norm_sq" else name for name in names)
        return f"GradStats({held or 'nothing yet'}; {self.num_samples} samples, {len(self._parameters)} parameters)"

    def _row_dtype(self) -> torch.dtype:
        dtypes = set(self._dtypes().values())
        return torch.float64 if dtypes == {torch.float64} else torch.float32

    def _rows(self, stat: str, name: str) -> Tensor:
        if name not in self._held.rows:
            raise self._not_held(stat)
        return self._held.rows[name]

    def _sums(self, stat: str) -> dict[str, Tensor]:
        if stat not in self._held.sums:
            raise self._not_held(stat)
        return self._held.sums[stat]

    def _not_held(self, stat: str) -> InputError:
        remedy = {"weighted_sum": "give weights", "dot": "give a direction"}.get(stat, f"add {stat!r} to stats")
        problem = f"holds {self!r}"
        return InputError(f"GradStats.{stat}", problem, remedy if self._held.batch else f"{remedy}, and count a batch")


def _checked_weights(weights: Tensor | None, batch: int) -> Tensor | None:
    if weights is None:
        return None
    require_tensor("weights", weights)
    if weights.shape != (batch,) or not weights.is_floating_point():
        given = f"has shape {list(weights.shape)} and dtype {str(weights.dtype).removeprefix('torch.')}"
        raise InputError("weights", given, f"give floating weights of shape [{batch}]")
    return weights.detach()


def _checked_direction(direction: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    if not isinstance(direction, Mapping):
        raise InputError("direction", f"got {type(direction).__name__}", "give tensors by parameter name")
    for name, tensor in direction.items():
        if name not in parameters:
            raise UnknownNameError("direction", str(name), parameters)
        require_tensor(f"direction[{name!r}]", tensor)
        if tensor.shape != parameters[name].shape:
            shape = f"has shape {list(tensor.shape)}"
            raise InputError(f"direction[{name!r}]", shape, f"its parameter has {list(parameters[name].shape)}")
    return {name: tensor.detach() for name, tensor in direction.items()}


def explanation(*args: Any, **kwargs: Any) -> Explanation:
    """What ``explain("grad_stats", model, loss_fn, inputs, targets)`` shows."""
    found = _explanation(*args[:4], **{name: value for name, value in kwargs.items() if name in _CALL})
    return Explanation("grad_stats", found.setting, found.arguments, found.chosen, found.remarks)


_CALL = ("model", "loss_fn", "inputs", "targets")
