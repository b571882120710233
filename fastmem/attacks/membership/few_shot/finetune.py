"""Transductive fine-tuning: a member / non-member head, made surer of its answers on the records asked about.

On the network's logits (or other features) phi the head says relu(phi) W + b, with b = 0 and column c of W along the mean
m_c of the support's class c. Each epoch takes an Adam step on the cross-entropy of the support and another on the mean
entropy of softmax(logits / T) over the query; the score is the log-odds of "member" at T = 1, in the order of its softmax
probability. At most 30 epochs,
stopped when the cross-entropy of the validation records has not fallen for 2; the scores are those of the best epoch. T is
tuned on the validation records by the members found without a false positive, of equals the last (Dhillon et al. 2020,
arXiv:1909.02729, as Jimenez-Lopez et al. 2025 use it). Optimiser moments start anew for each T.

As published every weight of the network moves too: :class:`FineTune`, which needs the network itself (white box).
:class:`FineTuneHead` moves W and b only, which features alone allow. Either trains all episodes and all T at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fastmem.attacks.membership.few_shot.adam import Adam
from fastmem.attacks.membership.few_shot.batch import Batch, Scored, last_best, true_positives
from fastmem.ops.episodes import class_means

__all__ = ["TEMPERATURES", "FineTune", "FineTuneHead"]

TEMPERATURES = (7.0, 8.0, 9.0, 10.0, 11.0, 13.0)
_DEFAULT_TEMPERATURE = 9.0
_PATIENCE = 2
_SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class _Schedule:
    """How long and how fast.

    Args:
        temperatures: To choose from.
        learning_rate: Of Adam.
        epochs: At most.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    learning_rate: float = 5e-5
    epochs: int = 30

    def chosen(self, batch: Batch) -> tuple[float, ...]:
        """The temperatures to train with: all, or the default where there is nothing to tune on."""
        return self.temperatures if batch.val is not None else (_DEFAULT_TEMPERATURE,)


@dataclass(frozen=True, eq=False)
class FineTuneHead(_Schedule):
    """Fine-tuning of the head on fixed features."""

    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode."""
        temperatures = self.chosen(batch)
        support, query = batch.support.relu(), batch.query.relu()
        val = None if batch.val is None else batch.val.relu()
        start = _initial_head(support, batch.support_members)  # [E, d, 2]
        # The temperatures share the features: their heads stand side by side as columns.
        head = [start.repeat(1, 1, len(temperatures)), start.new_zeros(len(start), 1, 2 * len(temperatures))]

        def logits(features: Tensor, values: Sequence[Tensor]) -> Tensor:
            wide = torch.baddbmm(values[1].expand(-1, features.shape[1], -1), features, values[0])
            return wide.view(*features.shape[:2], len(temperatures), 2).permute(2, 0, 1, 3)

        return _train(self, batch, temperatures, head, logits, support, query, val)

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features, and heads with their moments and gradients."""
        return (support + val + query) * (width + 16 * len(self.temperatures)) + 10 * len(self.temperatures) * width


@dataclass(frozen=True, eq=False)
class FineTune(_Schedule):
    """Fine-tuning of the whole network: features are its outputs, so ``Batch`` holds inputs.

    The network runs in eval mode: batch normalisation uses its running statistics, dropout is off.

    Args:
        model: Maps inputs [n, ...] to outputs.
        features: From the model's output to features [n, d]; by default the output itself.
    """

    model: nn.Module | None = None
    features: Callable[[Tensor], Tensor] = lambda output: output
    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode."""
        assert self.model is not None, "the attack has checked that there is one"
        model, training = self.model, self.model.training
        model.eval()
        try:
            return self._train(model, batch)
        finally:
            model.train(training)

    def _train(self, model: nn.Module, batch: Batch) -> Scored:
        temperatures, episodes = self.chosen(batch), len(batch.support)
        copies = len(temperatures) * episodes
        with torch.no_grad():
            flat = self.features(model(batch.support.flatten(0, 1)))
            start = _initial_head(flat.view(episodes, -1, flat.shape[-1]).relu(), batch.support_members)
        state, buffers = stack_module_state([model])
        names = list(state)
        weights = [state[name].detach().expand(copies, *state[name].shape[1:]).clone() for name in names]
        head = [start.repeat(len(temperatures), 1, 1), start.new_zeros(copies, 1, 2)]
        fixed = {name: value[0] for name, value in buffers.items()}

        def one(values: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return self.features(functional_call(model, (values, fixed), (inputs,)))

        def logits(inputs: Tensor, values: Sequence[Tensor]) -> Tensor:
            *body, matrix, bias = values
            outputs = vmap(one)(
                dict(zip(names, body, strict=True)), inputs.repeat(len(temperatures), *[1] * (inputs.ndim - 1))
            )
            return torch.baddbmm(bias, outputs.relu(), matrix).view(len(temperatures), episodes, -1, 2)

        return _train(self, batch, temperatures, [*weights, *head], logits, batch.support, batch.query, batch.val)

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """A copy of the network for each temperature, with its gradient and moments, and its activations."""
        assert self.model is not None, "the attack has checked that there is one"
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return len(self.temperatures) * (5 * size + 4 * (support + query) * width)


def _initial_head(active: Tensor, members: Tensor) -> Tensor:
    """[E, d, 2]: the class means of relu features, each of unit length."""
    means = class_means(active, members)
    return (means / means.norm(dim=2, keepdim=True).clamp_min(_SMALLEST_NORM)).mT.contiguous()


def _train(
    schedule: _Schedule,
    batch: Batch,
    temperatures: Sequence[float],
    values: list[Tensor],
    logits: Callable[[Tensor, Sequence[Tensor]], Tensor],
    support: Tensor,
    query: Tensor,
    val: Tensor | None,
) -> Scored:
    """Trains every episode under every temperature.

    Args:
        schedule: Learning rate and epochs.
        batch: For the labels.
        temperatures: G of them.
        values: What is trained; each problem has its own part of every tensor.
        logits: From inputs of the episodes and the values to [G, E, n, 2].
        support: Inputs of ``logits``.
        query: The same.
        val: The same, or None: no tuning and no early stop.
    """
    label = batch.support_members.long()
    cooled = support.new_tensor(temperatures)[:, None, None, None]
    adam = Adam(schedule.learning_rate)
    best = support.new_full((len(temperatures), len(support)), math.inf)
    since = torch.zeros_like(best)
    of_query = of_val = None
    for _ in range(schedule.epochs):
        values = _step(adam, values, lambda given: _cross_entropy(logits(support, given), label).sum())
        values = _step(adam, values, lambda given: _entropy(logits(query, given) / cooled).mean(dim=2).sum())
        with torch.no_grad():
            asked = _member(logits(query, values))
            if val is None or batch.val_members is None:
                of_query = asked
                continue
            held = logits(val, values)
            loss = _cross_entropy(held, batch.val_members.long())
            better = (loss < best) & (since < _PATIENCE)
            since = torch.where(better, 0, since + 1)
            best = torch.where(better, loss, best)
            if of_query is None or of_val is None:
                of_query, of_val = asked, _member(held)
            else:
                of_query = torch.where(better[:, :, None], asked, of_query)
                of_val = torch.where(better[:, :, None], _member(held), of_val)
            if (since >= _PATIENCE).all():
                break
    assert of_query is not None, "there is at least one epoch"
    episode = torch.arange(len(support), device=support.device)
    choice = torch.zeros_like(episode)
    if of_val is not None and batch.val_members is not None:
        choice = last_best(true_positives(of_val, batch.val_members))
        of_val = of_val[choice, episode]
    return Scored(of_query[choice, episode], of_val, {"temperature": support.new_tensor(temperatures)[choice]})


def _step(adam: Adam, values: list[Tensor], loss: Callable[[Sequence[Tensor]], Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [value.requires_grad_(True) for value in values]
        gradients = torch.autograd.grad(loss(leaves), leaves)
    return adam.step([value.detach() for value in values], gradients)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over records, [G, E]."""
    return -logits.log_softmax(dim=3).gather(3, label.expand(logits.shape[:3])[..., None]).mean(dim=(2, 3))


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=3)
    return -(log_p.exp() * log_p).sum(dim=3)


def _member(logits: Tensor) -> Tensor:
    return (logits[..., 1] - logits[..., 0]).double()
