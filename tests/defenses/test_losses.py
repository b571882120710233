"""Training losses against their formulas, written out record by record."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastmem.defenses import LOSSES, make_loss
from fastmem.defenses.losses import Hamp
from fastmem.errors import InputError, UnknownNameError


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 4, dtype=torch.float64, generator=generator) * 2
    return logits, torch.randint(0, 4, (9,), generator=generator)


def _p(logits: Tensor) -> list[list[float]]:
    out = []
    for row in logits.tolist():
        total = sum(math.exp(value) for value in row)
        out.append([math.exp(value) / total for value in row])
    return out


def test_relaxloss_is_a_distance_to_alpha_in_even_epochs(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    mean = sum(-math.log(p[y]) for p, y in zip(_p(logits), labels.tolist(), strict=True)) / 9
    for alpha in (mean / 2, mean * 2):
        assert float(make_loss("relaxloss", alpha=alpha)(logits, labels, 0)) == pytest.approx(abs(mean - alpha))


def test_relaxloss_flattens_or_descends_in_odd_epochs(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    p, y = _p(logits), labels.tolist()
    mean = sum(-math.log(row[k]) for row, k in zip(p, y, strict=True)) / 9
    assert float(make_loss("relaxloss", alpha=mean / 2)(logits, labels, 1)) == pytest.approx(mean)
    total = 0.0
    for row, k in zip(p, y, strict=True):
        soft = [row[k] if c == k else (1 - row[k]) / 3 for c in range(4)]
        right = row.index(max(row)) == k
        total += (1 - right) * -sum(s * math.log(q) for s, q in zip(soft, row, strict=True)) + math.log(row[k])
    assert float(make_loss("relaxloss", alpha=mean * 2)(logits, labels, 1)) == pytest.approx(total / 9)


def test_relaxloss_climbs_below_alpha(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    slopes = []
    for alpha in (1e-3, 100.0):
        free = logits.clone().requires_grad_()
        make_loss("relaxloss", alpha=alpha)(free, labels, 0).backward()
        slopes.append(free.grad)
    assert torch.equal(slopes[0], -slopes[1])


def test_the_other_losses_are_their_formulas(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    p, y = _p(logits), labels.tolist()
    own = [row[k] for row, k in zip(p, y, strict=True)]
    assert float(make_loss("ce")(logits, labels, 3)) == pytest.approx(sum(-math.log(q) for q in own) / 9)
    smooth = sum(0.8 * -math.log(q) - 0.2 * sum(map(math.log, row)) / 4 for q, row in zip(own, p, strict=True)) / 9
    assert float(make_loss("label_smoothing", smoothing=0.2)(logits, labels, 0)) == pytest.approx(smooth)
    concave = sum(-0.3 * math.log(q) + 0.7 * (math.e - math.exp(q)) for q in own) / 9
    assert float(make_loss("ccl", share=0.3)(logits, labels, 0)) == pytest.approx(concave)
    peak = Hamp(0.6, 0.05).peak(4)
    total = 0.0
    for row, k in zip(p, y, strict=True):
        target = [peak if c == k else (1 - peak) / 3 for c in range(4)]
        total += sum(t * math.log(t / q) for t, q in zip(target, row, strict=True))
        total -= 0.05 * -sum(q * math.log(q) for q in row)
    assert float(make_loss("hamp", entropy=0.6, bonus=0.05)(logits, labels, 0)) == pytest.approx(total / 9)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_hamp_targets_have_the_entropy_asked_for(share: float) -> None:
    peak = Hamp(share).peak(10)
    rest = (1 - peak) / 9
    entropy = -peak * math.log(peak) - (9 * rest * math.log(rest) if rest else 0)
    assert entropy == pytest.approx(share * math.log(10), abs=1e-9)
    assert peak >= 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    # RelaxLoss's soft target is a constant, which differences would move: its even epochs are checked.
    assert torch.autograd.gradcheck(lambda z: make_loss(name)(z, labels, 0), logits.clone().requires_grad_())


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="relaxloss"):
        make_loss("relaxlos")
    with pytest.raises(InputError, match="alpha"):
        make_loss("ce", alpha=1.0)
    for name, option, value in (
        ("relaxloss", "alpha", 0.0),
        ("label_smoothing", "smoothing", 1.0),
        ("hamp", "entropy", 1.0),
        ("ccl", "share", 0.0),
    ):
        with pytest.raises(InputError, match=option):
            make_loss(name, **{option: value})
