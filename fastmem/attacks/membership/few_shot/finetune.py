"""Transductive fine-tuning: a member / non-member head, made surer of its answers on the records asked about.

On the network's logits (or other features) phi the head says relu(phi) W + b, with b = 0 and column c of W along the mean
m_c of the support's class c. Each epoch takes an Adam step on the cross-entropy of the support and another on the mean
entropy of softmax(logits / T) over the query; the score is the log-odds of "member" at T = 1, in the order of its softmax
probability. At most 30 epochs, stopped when the cross-entropy of the validation records has not fallen for 2 (text: 3);
the scores are those of the best epoch. T is tuned on the validation records by the members found without a false positive
(Dhillon et al. 2020, arXiv:1909.02729, as Jimenez-Lopez et al. 2025 use it). Optimiser moments start anew for each T; the
first step, on the support, is the same for all and is taken once.

As published every weight of the network moves too: :class:`FineTune`, which needs the network itself (white box).
:class:`FineTuneHead` moves W and b only, which features alone allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fastmem.attacks.membership.few_shot.adam import Adam
from fastmem.attacks.membership.few_shot.batch import Batch, Scored
from fastmem.attacks.membership.few_shot.fit import IMAGES, Logits, Problems, Schedule, fit, learn_support
from fastmem.ops.episodes import class_means

__all__ = ["FineTune", "FineTuneHead"]

_SMALLEST_NORM = 1e-6
# Weights that copies trained side by side may have together: more do not stay in the caches.
_SIDE_BY_SIDE = 1 << 21


@dataclass(frozen=True, eq=False)
class FineTuneHead:
    """Fine-tuning of the head on fixed features.

    Args:
        schedule: How long, and the temperatures.
    """

    schedule: Schedule = IMAGES
    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode."""
        val = None if batch.val is None else batch.val.relu()
        problems = _problems(batch, batch.support.relu(), batch.query.relu(), val)
        start = _initial_head(problems.support, batch.support_members)
        temperatures = _temperatures(self.schedule, batch, start)
        count = temperatures.shape[1]
        adam, values = Adam(self.schedule.learning_rate), [start, start.new_zeros(len(start), 1, 2)]
        values = learn_support(adam, problems, values, _head)
        # The temperatures share the features: from here on their heads stand side by side as columns.
        values, adam = [_columns(value, count) for value in values], adam.mapped(lambda value: _columns(value, count))
        return _scored(
            self.schedule, batch, temperatures, *fit(self.schedule, problems, temperatures, values, adam, _head)
        )

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features, and heads with their moments and gradients."""
        count = len(self.schedule.temperatures)
        return (support + val + query) * (width + 16 * count) + 10 * count * width


@dataclass(frozen=True, eq=False)
class FineTune:
    """Fine-tuning of the whole network: features are its outputs, so ``Batch`` holds inputs.

    The network runs in eval mode: batch normalisation uses its running statistics, dropout is off. Copies of a network
    of linear layers are trained side by side, those of others one after another.

    Args:
        model: Maps inputs [n, ...] to features [n, d].
        schedule: How long, and the temperatures.
    """

    model: nn.Module
    schedule: Schedule = IMAGES
    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode."""
        training = self.model.training
        self.model.eval()
        try:
            return self._train(batch)
        finally:
            self.model.train(training)

    def _train(self, batch: Batch) -> Scored:
        logits, weights = self._copies(batch.records)
        with torch.no_grad():
            phi = torch.stack([self.model(batch.records[rows]).relu() for rows in batch.support_rows])
        start = _initial_head(phi, batch.support_members)
        problems = _problems(batch, batch.support_rows, batch.query_rows, batch.val_rows)
        temperatures = _temperatures(self.schedule, batch, start)
        found = []
        for some in torch.arange(len(start), device=start.device).split(self._side_by_side()):
            own = problems.take(some)
            values = [weight.expand(len(some), *weight.shape[1:]).clone() for weight in weights]
            values += [start[some], start.new_zeros(len(some), 1, 2)]
            adam = Adam(self.schedule.learning_rate)
            values = learn_support(adam, own, values, logits)
            found += self._branches(own, temperatures[some], values, adam, logits)
        of_query = torch.cat([query for query, _ in found]).view(*temperatures.shape, -1)
        vals = [val for _, val in found if val is not None]
        of_val = torch.cat(vals).view(*temperatures.shape, -1) if vals else None
        return _scored(self.schedule, batch, temperatures, of_query, of_val)

    def _branches(
        self, problems: Problems, temperatures: Tensor, values: list[Tensor], adam: Adam, logits: Logits
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Goes on from the first step under each temperature: parts of the scores of E * G problems, in their order."""
        found = []
        count = temperatures.shape[1]
        for part in torch.arange(temperatures.numel(), device=temperatures.device).split(self._side_by_side()):
            rows = part // count
            own, moments = [value[rows] for value in values], adam.mapped(lambda value, rows=rows: value[rows])
            temperature = temperatures.flatten()[part, None]
            found.append(fit(self.schedule, problems.take(rows), temperature, own, moments, logits))
        return found

    def _copies(self, records: Tensor) -> tuple[Logits, list[Tensor]]:
        """The logits of copies of the network with heads, and the network's weights, each [1, ...]."""
        state, buffers = stack_module_state([self.model])
        names, fixed = list(state), {name: value[0] for name, value in buffers.items()}
        last = records.ndim == 4 and getattr(self.model, "channels_last", False)
        memory_format = torch.channels_last if last else torch.contiguous_format

        def one(body: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(self.model, (body, fixed), (inputs,))

        def logits(rows: Tensor, values: Sequence[Tensor]) -> Tensor:
            *body, matrix, bias = values
            if len(rows) == 1:
                single = {name: value.squeeze(0) for name, value in zip(names, body, strict=True)}
                phi = one(single, records[rows[0]].contiguous(memory_format=memory_format))[None]
            else:
                phi = vmap(one)(dict(zip(names, body, strict=True)), records[rows])
            return _head(phi.relu(), (matrix, bias))

        return logits, [state[name].detach() for name in names]

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """A copy of the network for each temperature, with its gradient and moments, and its activations."""
        return len(self.schedule.temperatures) * (5 * self._size() + 4 * (support + query) * width)

    def _size(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _side_by_side(self) -> int:
        # Stacked convolutions become grouped ones and stacked attention loses its kernel: both are slower than a loop.
        owners = [module for module in self.model.modules() if next(module.parameters(recurse=False), None) is not None]
        linear = all(isinstance(module, nn.Linear) for module in owners)
        return max(1, _SIDE_BY_SIDE // self._size()) if linear else 1


def _temperatures(schedule: Schedule, batch: Batch, like: Tensor) -> Tensor:
    """[E, G]."""
    return like.new_tensor(schedule.chosen(batch.val_rows is not None)).expand(len(batch.support_rows), -1)


def _problems(batch: Batch, support: Tensor, query: Tensor, val: Tensor | None) -> Problems:
    val_label = None if batch.val_members is None else batch.val_members.long()
    return Problems(support, batch.support_members.long(), query, val, val_label)


def _head(active: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Logits [P, n, G, 2] of relu features [P, n, d] by G heads, their columns side by side."""
    matrix, bias = values
    wide = torch.baddbmm(bias.expand(-1, active.shape[1], -1), active, matrix)
    return wide.view(*wide.shape[:2], -1, 2)


def _columns(value: Tensor, count: int) -> Tensor:
    return value.repeat(1, 1, count)


def _initial_head(active: Tensor, members: Tensor) -> Tensor:
    """[E, d, 2]: the class means of relu features, each of unit length."""
    means = class_means(active, members)
    return (means / means.norm(dim=2, keepdim=True).clamp_min(_SMALLEST_NORM)).mT.contiguous()


def _scored(schedule: Schedule, batch: Batch, temperatures: Tensor, of_query: Tensor, of_val: Tensor | None) -> Scored:
    """The scores [E, n] of each episode's best temperature, of those under all of them [E, G, n]."""
    episode = torch.arange(len(of_query), device=of_query.device)
    choice = torch.zeros_like(episode)
    if of_val is not None and batch.val_members is not None:
        choice = schedule.best(of_val, batch.val_members)
        of_val = of_val[episode, choice]
    return Scored(of_query[episode, choice], of_val, {"temperature": temperatures[episode, choice]})
