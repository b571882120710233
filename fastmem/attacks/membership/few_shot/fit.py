"""The training that both kinds of fine-tuning share: many small problems at once, each until it stops by itself.

A problem is one episode, under one temperature or under several side by side. A problem that has stopped leaves the
batch, so that nothing is computed for it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot.adam import Adam
from fastmem.attacks.membership.few_shot.batch import last_best, true_positives
from fastmem.metrics.log_mia import regular_cap

__all__ = ["IMAGES", "TEXT", "Logits", "Problems", "Schedule", "fit", "learn_support"]

#: From a part's inputs and the trained values to logits [P, n, G, 2], G temperatures side by side.
Logits = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast, as published.

    Args:
        temperatures: To choose from.
        patience: Epochs in which the validation loss may fail to fall.
        regular_ties: Of temperatures with as many members found at no false positive, prefer that with more at
            ceil(ln V) of them, V the validation records; of equals the last is taken in any case.
        learning_rate: Of Adam.
        epochs: At most.
    """

    temperatures: tuple[float, ...]
    patience: int
    regular_ties: bool = False
    learning_rate: float = 5e-5
    epochs: int = 30

    def chosen(self, tuned: bool) -> tuple[float, ...]:
        """The temperatures to train with: all, or a middle one where there is nothing to tune on."""
        return self.temperatures if tuned else (self.temperatures[(len(self.temperatures) - 1) // 2],)

    def best(self, scores: Tensor, members: Tensor) -> Tensor:
        """The temperature that suits the validation records best: [E] of scores [E, G, V] and members [E, V]."""
        members = members[:, None]
        hits = true_positives(scores, members)
        if self.regular_ties:
            records = scores.shape[2]
            hits = hits * (records + 1) + true_positives(scores, members, regular_cap(records))
        return last_best(hits.T)


IMAGES = Schedule((7.0, 8.0, 9.0, 10.0, 11.0, 13.0), patience=2)
TEXT = Schedule((3.0, 5.0, 7.0, 9.0), patience=3, regular_ties=True)


@dataclass(frozen=True, eq=False)
class Problems:
    """What P problems are told, a row each; ``Logits`` knows what the inputs are.

    Args:
        support: Inputs [P, S, ...].
        label: int64 [P, S].
        query: Inputs [P, Q, ...].
        val: Inputs [P, V, ...], or None: no early stop.
        val_label: int64 [P, V].
    """

    support: Tensor
    label: Tensor
    query: Tensor
    val: Tensor | None
    val_label: Tensor | None

    def take(self, rows: Tensor) -> Problems:
        """Some of them."""
        val = None if self.val is None else self.val[rows]
        val_label = None if self.val_label is None else self.val_label[rows]
        return Problems(self.support[rows], self.label[rows], self.query[rows], val, val_label)


def learn_support(adam: Adam, problems: Problems, values: list[Tensor], logits: Logits) -> list[Tensor]:
    """The values after a step on the support's cross-entropy. It knows no temperature."""
    return _step(adam, values, lambda given: _cross_entropy(logits(problems.support, given), problems.label).sum())


def fit(
    schedule: Schedule, problems: Problems, temperature: Tensor, values: list[Tensor], adam: Adam, logits: Logits
) -> tuple[Tensor, Tensor | None]:
    """Trains on from the first step on the support, each problem until its validation loss has ceased to fall.

    Args:
        schedule: When to stop.
        problems: P of them.
        temperature: Of each, [P, G].
        values: What is trained, each problem with its own part along the first axis; changed in place.
        adam: Of those values, after that first step.
        logits: From inputs and values.

    Returns:
        Log-odds of the member class in each problem's best epoch, float64: of the query [P, G, Q], and of the
        validation records [P, G, V] if there are any.
    """
    rows = torch.arange(len(temperature), device=temperature.device)
    best, since = torch.full_like(temperature, math.inf), torch.zeros_like(temperature, dtype=torch.int64)
    shape = temperature.shape
    of_query = temperature.new_empty((*shape, problems.query.shape[1]), dtype=torch.float64)
    of_val = None if problems.val is None else of_query.new_empty((*shape, problems.val.shape[1]))
    for epoch in range(schedule.epochs):
        if epoch:
            values = learn_support(adam, problems, values, logits)
        values = _sharpen(adam, problems, temperature, values, logits)
        if problems.val is None or problems.val_label is None or of_val is None:
            continue
        with torch.no_grad():
            held = logits(problems.val, values)
            loss = _cross_entropy(held, problems.val_label)
            better = (loss < best) & (since < schedule.patience) if epoch else torch.ones_like(loss, dtype=torch.bool)
            since, best = torch.where(better, 0, since + 1), torch.where(better, loss, best)
            if better.any():
                _put(of_val, rows, better, _member(held))
                _put(of_query, rows, better, _member(logits(problems.query, values)))
            going = (since < schedule.patience).any(dim=1).nonzero()[:, 0]
            if len(going) == 0:
                break
            if len(going) < len(rows):
                rows, best, since, temperature = rows[going], best[going], since[going], temperature[going]
                problems, values = problems.take(going), [value[going] for value in values]
                adam = adam.mapped(lambda moments, going=going: moments[going])
    if of_val is None:
        with torch.no_grad():
            of_query = _member(logits(problems.query, values))
    return of_query, of_val


def _sharpen(adam: Adam, problems: Problems, temperature: Tensor, values: list[Tensor], logits: Logits) -> list[Tensor]:
    return _step(adam, values, lambda given: _entropy(logits(problems.query, given), temperature).sum())


def _put(kept: Tensor, rows: Tensor, better: Tensor, found: Tensor) -> None:
    kept[rows] = torch.where(better[:, :, None], found, kept[rows])


def _step(adam: Adam, values: list[Tensor], loss: Callable[[Sequence[Tensor]], Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [value.requires_grad_(True) for value in values]
        gradients = torch.autograd.grad(loss(leaves), leaves)
    return adam.step([value.detach() for value in values], gradients)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over records, [P, G]."""
    of_label = label[:, :, None, None].expand(*logits.shape[:3], 1)
    return -logits.log_softmax(dim=3).gather(3, of_label).mean(dim=(1, 3))


def _entropy(logits: Tensor, temperature: Tensor) -> Tensor:
    """Mean over records, [P, G]."""
    log_p = (logits / temperature[:, None, :, None]).log_softmax(dim=3)
    return -(log_p.exp() * log_p).sum(dim=3).mean(dim=1)


def _member(logits: Tensor) -> Tensor:
    """Log-odds [P, G, n]."""
    return (logits[..., 1] - logits[..., 0]).double().mT
