"""Asking models about every record: inputs in, statistics out, in one pass over the data.

A model is queried in eval mode: BatchNorm in training mode would make a record's answer depend on its neighbours in
the batch. Logits leave the device only if they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data.transforms import normalise
from fastmem.errors import InputError
from fastmem.signals.names import canonical_name, trailing_shape
from fastmem.signals.statistics import statistics

__all__ = ["query_model", "query_models"]


def query_model(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    queries: Sequence[Callable[[Tensor], Tensor]],
    stats: Sequence[str],
    normalisation: tuple[Tensor, Tensor] | None = None,
    batch_size: int = 1024,
    device: torch.device | str | None = None,
) -> dict[str, np.ndarray]:
    """Statistics of one model's answers to every record under every query.

    The model is put in eval mode, run without gradients and without autocast, and left as it was found.

    Args:
        model: A classifier: a batch of inputs to floating logits [B, C].
        x: Records as stored [N, ...], on any device; the queries see them so.
        y: Labels [N], int64.
        queries: Deterministic views of a batch, the clean one first (``fastmem.data.transforms.make_queries``).
        stats: Names of statistics (:mod:`fastmem.signals.names`), and ``"logits"`` to have those too.
        normalisation: Mean and standard deviation (``Dataset.channel_stats``), applied after the query; None where
            the model takes records as they are stored.
        batch_size: Records per forward pass.
        device: Where the model is; None to find out.

    Returns:
        For each name a numpy array: float64 [N, A], ``top3`` [N, A, 3], ``logits`` [N, A, C] in the model's dtype
        (bfloat16 widened to float32).

    Raises:
        InputError: if the model is elsewhere, returns something else than [B, C], or returns NaN or infinite logits
            (how many records, and the first); if labels and records disagree or a label is out of range.
    """
    return _query({"model": model}, x, y, queries, stats, normalisation, batch_size, device)[0]


def query_models(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    queries: Sequence[Callable[[Tensor], Tensor]],
    stats: Sequence[str],
    normalisation: tuple[Tensor, Tensor] | None = None,
    batch_size: int = 1024,
    device: torch.device | str | None = None,
) -> list[dict[str, np.ndarray]]:
    """What :func:`query_model` gives of each of several models, in one pass over the records.

    Each view of a batch is made and normalised once for all models; a model's answers do not depend on the others.

    Args:
        models: Classifiers, on one device.
        x: Records as stored [N, ...], on any device.
        y: Labels [N], int64.
        queries: As for :func:`query_model`.
        stats: The same.
        normalisation: The same.
        batch_size: Records per forward pass.
        device: Where the models are; None to find out.

    Returns:
        One dictionary a model, in order.

    Raises:
        InputError: As :func:`query_model`, where ``models[i]`` says which of them it was; or there is no model.
    """
    named = {f"models[{place}]": model for place, model in enumerate(models)}
    return _query(named, x, y, queries, stats, normalisation, batch_size, device)


def _query(
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    queries: Sequence[Callable[[Tensor], Tensor]],
    stats: Sequence[str],
    normalisation: tuple[Tensor, Tensor] | None,
    batch_size: int,
    device: torch.device | str | None,
) -> list[dict[str, np.ndarray]]:
    """Models by what errors call them."""
    names = tuple(dict.fromkeys(name if name == "logits" else canonical_name(name) for name in stats))
    _check_inputs(x, y, queries, names, batch_size)
    if not models:
        raise InputError("models", "none given", "give at least one")
    where = {_device_of(model, device) for model in models.values()}
    if len(where) > 1:
        raise InputError("models", f"they are on {', '.join(sorted(map(str, where)))}", "move them to one device")
    device = where.pop()
    answers = [_Answers(called, model, names, len(x), len(queries), device) for called, model in models.items()]
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(_answering(model, device))
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            batch = x[rows].to(device, non_blocking=True)
            target = y[rows].to(device, non_blocking=True)
            # Of all views at once where several models look at them; else one after the other.
            views = (query(batch) for query in queries)
            inputs = (normalise(view, *normalisation) if normalisation else view for view in views)
            if len(models) > 1:
                inputs = list(inputs)
            for own in answers:
                own.add(rows, inputs, target, y)
    return [own.result() for own in answers]


class _Answers:
    """What one model said so far."""

    def __init__(
        self,
        called: str,
        model: nn.Module,
        names: tuple[str, ...],
        num_samples: int,
        num_queries: int,
        device: torch.device,
    ) -> None:
        self._called = called
        self._model = model
        self._names = names
        self._out: dict[str, Tensor] = {}
        self._broken = torch.zeros(num_samples, num_queries, dtype=torch.bool, device=device)
        self._format = torch.channels_last if getattr(model, "channels_last", False) else torch.contiguous_format

    def add(self, rows: slice, inputs: Iterable[Tensor], target: Tensor, labels: Tensor) -> None:
        logits = _stack(self._called, [self._model(self._laid_out(view)) for view in inputs], len(target))
        if not self._out:
            _check_labels(labels, logits.shape[-1])
            self._out = {name: _buffer(name, len(labels), logits) for name in self._names}
        self._broken[rows] = ~logits.isfinite().all(dim=-1)
        values = statistics(logits, target, (name for name in self._names if name != "logits"))
        values["logits"] = logits
        for name in self._names:
            self._out[name][rows].copy_(values[name], non_blocking=True)

    def result(self) -> dict[str, np.ndarray]:
        _check_finite(self._called, self._broken)  # waits for the device: after this the buffers are filled
        return {name: values.numpy() for name, values in self._out.items()}

    def _laid_out(self, view: Tensor) -> Tensor:
        if view.ndim != 4 or self._format is torch.contiguous_format:
            return view
        # A clone: images of one channel count as channels-last as they are, but a convolution does not take them so.
        return view.clone(memory_format=self._format)


@contextmanager
def _answering(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full precision; every module's training flag is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # no_grad, not inference_mode: a model may keep tensors from this pass (caches) and train again later.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _stack(called: str, answers: list[Tensor], batch: int) -> Tensor:
    for answer in answers:
        if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[0] != batch or answer.shape[1] < 2:
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(called, f"answers a batch of {batch} with {shape}", "return logits [B, C], C at least 2")
        if not answer.is_floating_point():
            raise InputError(called, f"answers in {answer.dtype}", "return floating-point logits")
    return torch.stack(answers, dim=1)


def _buffer(name: str, num_samples: int, logits: Tensor) -> Tensor:
    """Where a statistic gathers on the host; pinned for a GPU, so that copies overlap with the next batch."""
    num_queries, num_classes = logits.shape[1:]
    shape = (num_samples, num_queries, *((num_classes,) if name == "logits" else trailing_shape(name)))
    dtype = torch.float64
    if name == "logits":
        dtype = torch.float32 if logits.dtype == torch.bfloat16 else logits.dtype
    return torch.empty(shape, dtype=dtype, pin_memory=logits.device.type == "cuda")


def _check_inputs(x: Tensor, y: Tensor, queries: Sequence[object], names: tuple[str, ...], batch_size: int) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise InputError("y", f"{len(y)} labels for {len(x)} records", "give one label per record, at least one record")
    if y.dtype != torch.int64 or y.ndim != 1:
        raise InputError("y", f"{y.dtype} of shape {tuple(y.shape)}", "give int64 [N]")
    if not queries:
        raise InputError("queries", "none given", "give at least one; the first is the clean record")
    if not names:
        raise InputError("stats", "none given", "name at least one statistic, for example 'margin'")
    if batch_size < 1:
        raise InputError("batch_size", f"{batch_size}", "give at least 1")


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    first = next(iter([*model.parameters(), *model.buffers()][:1]), None)
    found = first.device if first is not None else None
    if device is None:
        return found or torch.device("cpu")
    wanted = torch.device(device)
    if found is not None and (found.type != wanted.type or (wanted.index not in (None, found.index))):
        raise InputError("device", f"{wanted}, but the model is on {found}", f"move it with model.to({str(wanted)!r})")
    return found or wanted


def _check_labels(y: Tensor, num_classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise InputError("y", f"label {wrong} for a model of {num_classes} classes", f"give 0..{num_classes - 1}")


def _check_finite(called: str, broken: Tensor) -> None:
    count = int(broken.sum())
    if count:
        record, query = (int(index) for index in broken.nonzero()[0])
        raise InputError(
            called,
            f"NaN or infinite logits in {count} of {broken.numel()} answers, first for record {record}, query {query}",
            "the training has diverged: lower the learning rate, or leave this model out",
        )
