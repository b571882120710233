"""Temperature, ensembles and recipes against values on paper, and the temperature against a search on a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmem.defenses import TemperatureScaling, decayed, ensemble_logits, smoothed
from fastmem.errors import InputError
from fastmem.training import Recipe


def test_a_fitted_temperature_is_the_best_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(400, 5, generator=generator)
    y = torch.multinomial((logits / 3).softmax(dim=1), 1, generator=generator)[:, 0]
    fitted = TemperatureScaling.fit(logits, y).temperature
    loss = {t: float(F.cross_entropy(logits.double() / t, y)) for t in np.linspace(0.5, 10, 2000)}
    assert fitted == pytest.approx(min(loss, key=loss.__getitem__), abs=0.01)
    assert fitted == pytest.approx(3, rel=0.2)


def test_a_temperature_keeps_every_answer() -> None:
    logits = torch.randn(50, 4)
    assert torch.equal(TemperatureScaling(10.0)(logits).argmax(dim=1), logits.argmax(dim=1))
    assert torch.equal(TemperatureScaling(4.0)(logits), logits / 4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_no_such_temperature(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        TemperatureScaling(temperature)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="NaN"):
        TemperatureScaling.fit([[0.0, float("nan")]], [0])
    with pytest.raises(InputError, match="1 labels for 2 records"):
        TemperatureScaling.fit([[0.0, 1.0], [0.0, 1.0]], [0])


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    parts = [torch.randn(6, 3), torch.randn(6, 3), 100 * torch.randn(6, 3)]
    expected = torch.stack([part.double().softmax(dim=1) for part in parts]).mean(dim=0)
    torch.testing.assert_close(ensemble_logits(parts).double().softmax(dim=1), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="shapes"):
        ensemble_logits([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(InputError, match="shapes"):
        ensemble_logits([])


def test_smoothing_is_the_published_loss() -> None:
    assert smoothed(Recipe(), 0.1) == Recipe(label_smoothing=0.1)
    assert decayed(Recipe(), 0.01) == Recipe(weight_decay=0.01)
    logits, y = torch.randn(7, 4).double(), torch.randint(0, 4, (7,))
    log_p = logits.log_softmax(dim=1)
    published = 0.9 * -log_p[torch.arange(7), y] + 0.1 * -log_p.mean(dim=1)
    torch.testing.assert_close(F.cross_entropy(logits, y, label_smoothing=0.1), published.mean())
    with pytest.raises(InputError, match="label_smoothing"):
        smoothed(Recipe(), 1.0)
