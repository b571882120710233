"""Scores of weights against their formulas, computed one record and one step at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.defenses import SCORES, Records, Scoring, eligible_weights, weight_scores
from fastmem.errors import InputError, UnknownNameError

from .conftest import Trained


def _gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def _close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == ["0.weight", "2.weight"]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", ["init_to_current", "current_to_init"])
@pytest.mark.parametrize(("kind", "mix"), [("pve", 0.3), ("tfo", 0.0), ("kl_only", 1.0), ("grad", 0.3)])
def test_scores_along_steps_are_the_sums_of_the_paper(
    trained64: Trained, kind: str, mix: float, direction: str
) -> None:
    # Whole sets as batches: then the order of records does not matter.
    scoring = Scoring(mix=0.3, steps=3, batch_size=64, learning_rate=0.05, kl_direction=direction)  # type: ignore[arg-type]
    found = weight_scores(
        trained64.model,
        trained64.members,
        trained64.reference,
        initial=trained64.initial,
        kind=kind,  # type: ignore[arg-type]
        scoring=scoring,
    )
    before, now = copy.deepcopy(trained64.model), copy.deepcopy(trained64.model)
    before.load_state_dict(trained64.initial)
    expected = {name: torch.zeros_like(value) for name, value in now.named_parameters()}
    for _ in range(3):
        loss = (1 - mix) * F.cross_entropy(now(trained64.members.x), trained64.members.y)
        if mix:
            log_q, log_p = (F.log_softmax(net(trained64.reference.x), 1) for net in (now, before))
            log_p = log_p.detach()
            if direction == "init_to_current":
                divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
            else:
                divergence = (log_q.exp() * (log_q - log_p)).sum(1).mean()
            loss = loss + mix * divergence
        gradient = _gradient(now, loss)
        with torch.no_grad():
            for name, value in now.named_parameters():
                expected[name] += gradient[name].abs() if kind == "grad" else (gradient[name] * value).abs()
                value -= 0.05 * gradient[name]
    _close(found, expected)


def test_scores_of_gradients_are_their_formulas(trained64: Trained) -> None:
    model, members, reference = trained64.model, trained64.members, trained64.reference

    def gradient(records: Records, rows: slice = slice(None)) -> dict[str, Tensor]:
        return _gradient(model, F.cross_entropy(model(records.x[rows]), records.y[rows]))

    def found(kind: str) -> dict[str, Tensor]:
        return weight_scores(model, members, reference, kind=kind, scoring=Scoring(batch_size=10))  # type: ignore[arg-type]

    inside, outside = gradient(members), gradient(reference)
    gap = {name: (outside[name] - inside[name]).abs() for name in inside}
    _close(found("past"), gap)
    _close(found("past_w"), {name: gap[name] * value.detach().abs() for name, value in model.named_parameters()})
    singles = [gradient(members, slice(i, i + 1)) for i in range(40)]
    _close(found("fisher"), {name: sum(g[name] ** 2 for g in singles) / 40 for name in inside})  # type: ignore[misc]
    batches = [gradient(members, slice(i, i + 10)) for i in range(0, 40, 10)]
    _close(found("ssd"), {name: sum(g[name] ** 2 for g in batches) / 4 for name in inside})  # type: ignore[misc]
    _close(found("salun"), {name: sum(g[name] for g in batches).abs() for name in inside})  # type: ignore[union-attr]


def test_scores_of_weights_alone(trained64: Trained) -> None:
    model, members = trained64.model, trained64.members
    now = {name: value.detach() for name, value in model.named_parameters()}
    _close(weight_scores(model, members, kind="weight"), {name: value.abs() for name, value in now.items()})
    moved = weight_scores(model, members, kind="moved", initial=trained64.initial)
    _close(moved, {name: (value - trained64.initial[name]).abs() for name, value in now.items()})
    draws = [weight_scores(model, members, kind="random", seed=seed)["0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("kind", SCORES)
def test_scoring_leaves_the_model_alone(trained_norm: Trained, kind: str) -> None:
    before = {name: value.clone() for name, value in trained_norm.model.state_dict().items()}
    scores = weight_scores(
        trained_norm.model.train(),
        trained_norm.members,
        trained_norm.reference,
        initial=trained_norm.initial,
        kind=kind,  # type: ignore[arg-type]
        scoring=Scoring(steps=2),
    )
    assert trained_norm.model.training
    assert all(value.grad is None for value in trained_norm.model.parameters())
    for name, value in trained_norm.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all((score >= 0).all() for score in scores.values())


def test_kl_alone_asks_no_member(trained: Trained) -> None:
    scored = [
        weight_scores(
            trained.model, members, trained.reference, initial=trained.initial, kind="kl_only", scoring=Scoring(steps=3)
        )
        for members in (trained.members, Records(torch.zeros(40, 6), trained.members.y))
    ]
    assert all(torch.equal(scored[0][name], scored[1][name]) for name in scored[0])


def test_what_may_be_ranked_is_told_by_layer(trained_norm: Trained) -> None:
    model = trained_norm.model
    assert eligible_weights(model) == {"0.weight": "linear", "3.weight": "linear"}
    both = eligible_weights(model, norms=True, biases=True)
    assert both["1.weight"] == both["1.bias"] == "norm"
    assert both["0.bias"] == "bias"
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert eligible_weights(tied) == {"0.weight": "linear"}
    assert eligible_weights(nn.Sequential(nn.Conv2d(1, 2, 3)))["0.weight"] == "conv"
    with pytest.raises(InputError, match="no weights"):
        eligible_weights(nn.BatchNorm1d(3))


def test_missing_input_is_named(trained: Trained) -> None:
    with pytest.raises(UnknownNameError, match="pve"):
        weight_scores(trained.model, trained.members, kind="pv")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="initial"):
        weight_scores(trained.model, trained.members, trained.reference)
    with pytest.raises(InputError, match=r"initial: 0\.weight is missing"):
        weight_scores(trained.model, trained.members, kind="moved", initial={})
    with pytest.raises(InputError, match="reference"):
        weight_scores(trained.model, trained.members, initial=trained.initial)
    with pytest.raises(InputError, match="not finite"):
        weight_scores(trained.model, trained.members, kind="tfo", scoring=Scoring(steps=60, learning_rate=1e30))
    for changes in ({"mix": 1.5}, {"steps": 0}, {"learning_rate": -1.0}, {"kl_direction": "both"}):
        with pytest.raises(InputError, match=next(iter(changes))):
            Scoring(**changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="records"):
        Records(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
